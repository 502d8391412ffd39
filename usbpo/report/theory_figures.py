"""The figures of the theory, measured: bracket, surrogate bias, error over depth, bound. Colours are methods."""

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from usbpo.artifacts.files import write_text
from usbpo.report import drawing, theory_tables
from usbpo.report.drawing import Array, Look
from usbpo.report.records import DepthLine, Run, Terms, Theory
from usbpo.report.theory_tables import Phase, Place, first_seeds

Pick = Callable[[Theory], float | None]
End = tuple[float, float, int, str]
"""Where a line over depth ends, height and depth; the on-policy steps that name it, and its colour"""

UNIT = "W₂ distance"
NOTHING = "No method of this experiment measures the theory."
NO_TRUTH = (
    "The simulator's state cannot be set from the observations of these tasks, so there is no truth to compare with."
)
DOTTED = (0, (1, 1.4))
ENOUGH_BRANCHES = 0.1
"""Share of the branches that must go on at a depth for their median to be drawn there"""
NOT_YET = "Nothing to compare yet: model shift begins with the second model update."


class View(NamedTuple):
    """A panel of single rows: of which model, and beside which members."""

    phase: Phase
    fixed: bool
    """Whether the other members are those that phase 1 left"""
    title: str
    label: str = "Surrogate: W₂ to the other members"


VIEWS = (
    View("before", False, "Before phase 2"),
    View("after", False, "The model that rolls out"),
    View("after", True, "… with the fixed stand-in for M*", "Surrogate: W₂ to those before phase 2"),
)


def save(runs: Sequence[Run], output: Path) -> None:
    """Write the figures of the theory and the numbers behind them into the folder `output`."""
    for name, draw, table in (
        ("theory_bracket", bracket, theory_tables.bracket),
        ("theory_bias", bias, theory_tables.bias),
        ("theory_surrogate", surrogate, theory_tables.surrogate),
        ("theory_depth", depth, theory_tables.depth),
        ("theory_bound", bound, theory_tables.bound),
    ):
        write_text(output / f"{name}.csv", table(runs).csv())
        drawing.save(lambda draw=draw: draw(runs), output / name)  # type: ignore[misc]


def bracket(runs: Sequence[Run]) -> Figure:
    """The three distances of eq 1 and the bracket that they make, before and after phase 2: a row a task."""
    measured, place = _with(runs, lambda terms: terms.bracket)
    if not measured:
        return drawing.message(_why_not(runs))
    figure, panels = drawing.panels(tasks := len(_tasks(measured)), 4, (4.3, 4.2) if tasks == 1 else (4.2, 3.5))
    style = _looks(runs)
    for row, task in zip(panels, _tasks(measured), strict=True):
        for other in row[1:3]:
            other.sharey(row[0])
        for method, seeds in _seeds(measured, task).items():
            look = style[method]
            _line(row[0], seeds, _term(place, "after", "previous_bias"), look)
            for axes, name in zip(row[1:], ("shift", "true_bias", "bracket"), strict=True):
                _before_and_after(axes, seeds, place, name, look)
        for axes in row:
            drawing.x_axis(axes)
        drawing.log_axis_or_from_zero(row[:3])
        drawing.y_axis(row[3])
        row[3].axhline(0, color=drawing.INK, linewidth=1.2)
        row[3].set_ylim(top=0)
        row[0].set_ylabel(UNIT)
    titles = ("W₂(M1, M*): bias of M1", "W₂(M1, M2): shift", "W₂(M2, M*): bias of M2", "Bracket: 1st − 2nd − 3rd")
    _finish(figure, panels, measured, style, titles, place)
    return figure


def bias(runs: Sequence[Run]) -> Figure:
    """Surrogate and true bias of M2 and what the true one is made of, before and after phase 2: a row a task."""
    measured, place = _with(runs, lambda terms: terms.true_bias)
    if not measured:
        return drawing.message(_why_not(runs))
    figure, panels = drawing.panels(
        tasks := len(_tasks(measured)), 4, (4.3, 4.2) if tasks == 1 else (4.2, 3.5), sharey="row"
    )
    style = _looks(runs)
    for row, task in zip(panels, _tasks(measured), strict=True):
        for method, seeds in _seeds(measured, task).items():
            for axes, name in zip(row, ("surrogate_bias", "true_bias", "error", "spread"), strict=True):
                _before_and_after(axes, seeds, place, name, style[method])
            _line(row[0], seeds, _term(place, "after", "surrogate_bias_fixed"), style[method], dotted=True)
        for axes in row:
            drawing.x_axis(axes)
        drawing.log_axis_or_from_zero(row)
        row[0].set_ylabel(UNIT)
    titles = ("Surrogate bias", "True bias W₂(M2, M*)", "… error of M2's mean", "… spread of M2")
    _finish(figure, panels, measured, style, titles, place, _fixed_line(measured, place))
    return figure


def bound(runs: Sequence[Run]) -> Figure:
    """The bound on |Δ| of eq 4 beside the bracket, and its two terms: a row a task."""
    measured, place = _with(runs, lambda terms: terms.bound)
    if not measured:
        return drawing.message(_why_not(runs))
    figure, panels = drawing.panels(
        tasks := len(_tasks(measured)), 3, (4.8, 4.2) if tasks == 1 else (4.6, 3.5), sharey="row"
    )
    style = _looks(runs)
    for row, task in zip(panels, _tasks(measured), strict=True):
        for method, seeds in _seeds(measured, task).items():
            look = style[method]
            for axes, name in zip(row, ("bound", "bound_shift_term", "bound_policy_term"), strict=True):
                _before_and_after(axes, seeds, place, name, look)
            for run in seeds:
                x, size = _series(run, _negative(_term(place, "after", "bracket")))
                row[0].plot(*drawing.binned(x, size), color=look.colour, linewidth=1.6, linestyle=DOTTED)
        for axes in row:
            drawing.x_axis(axes)
        drawing.log_axis(row)
        row[0].set_ylabel("Value")
    titles = ("Bound on |Δ|, and −bracket", "Its term of the model shift", "Its term of the policy shift")
    _finish(figure, panels, measured, style, titles, place, [_dotted_line("−bracket")])
    return figure


def surrogate(runs: Sequence[Run]) -> Figure:
    """Surrogate against true bias of single rows after the last model update, and their rank correlation over steps."""
    measured, place = _with(runs, lambda terms: terms.true_bias)
    if not measured:
        return drawing.message(_why_not(runs))
    tuned = any((found := getattr(theory, place)) and found.before for run in measured for theory in run.theory)
    views = [view for view in VIEWS if tuned or view.phase == "after"]
    views = [view for view in views if not view.fixed or _fixed_line(measured, place)]
    columns = len(views) + 1
    figure, panels = drawing.panels(tasks := len(_tasks(measured)), columns, (4.8, 4.6) if tasks == 1 else (4.3, 4.0))
    style = _looks(runs)
    for row, task in zip(panels, _tasks(measured), strict=True):
        shown = [run for run in first_seeds(measured) if run.files.task == task and run.rows]
        _scatters(row[:-1], [(run, style[run.files.method]) for run in shown], place, views)
        for method, seeds in _seeds(measured, task).items():
            _before_and_after(row[-1], seeds, place, "rank_correlation", style[method])
            _line(row[-1], seeds, _term(place, "after", "rank_correlation_fixed"), style[method], dotted=True)
        drawing.x_axis(row[-1])
        drawing.y_axis(row[-1])
        low, _ = row[-1].get_ylim()
        row[-1].set_ylim(min(low, 0.0), 1.0)
        row[0].set_ylabel("True bias W₂(M2, M*)")
        row[-1].set_ylabel("Spearman's ρ")
    titles = (*(view.title for view in views), "Rank correlation")
    _finish(figure, panels, measured, style, titles, place, _fixed_line(measured, place))
    for axes, view in zip(panels[-1][:-1], views, strict=True):
        axes.set_xlabel(view.label)
    return figure


def depth(runs: Sequence[Run]) -> Figure:
    """Error over rollout depth after the first, a middle and the last model update: a row a task, a column a method."""
    measured = [run for run in runs if any(theory.depth for theory in run.theory)]
    if not measured:
        return drawing.message(_why_not(runs))
    tasks, style = _tasks(measured), _looks(runs)
    methods = [method for method in style if any(run.files.method == method for run in measured)]
    size = (5.6, 4.6) if len(tasks) == 1 else (4.4, 3.6)
    figure, panels = drawing.panels(len(tasks), len(methods), size, sharey="row")
    for row, task in zip(panels, tasks, strict=True):
        groups, named = _seeds(measured, task), []
        deepest = max(len(theory.depth or ()) for seeds in groups.values() for run in seeds for theory in run.theory)
        for axes, method in zip(row, methods, strict=True):
            ends = _depths(axes, groups[method], style[method]) if method in groups else []
            drawing.x_axis(axes, 6)
            air = 0.03 * max(deepest - 1, 1)
            axes.set_xlim(1 - air, deepest + air)
            named.append((axes, ends))
        drawing.log_axis(row)
        for axes, ends in named:
            _name_ends(axes, ends)
        row[0].set_ylabel("Distance of states")
    for axes, method in zip(panels[0], methods, strict=True):
        axes.set_title(style[method].label, color=style[method].colour)
    for axes in panels[-1]:
        axes.set_xlabel("Rollout depth (steps)")
    solid, dashed = "model against simulator", "one step from the model's own state"
    figure.legend(
        handles=drawing.line_kinds(solid=solid, dashed=dashed)[::-1],
        loc="outside upper left",
        ncols=2,
        title=tasks[0] if len(tasks) == 1 else None,
        title_fontproperties={"size": 16, "weight": "bold"},
        alignment="left",
    )
    drawing.name_rows(panels, tasks)
    drawing.note(
        figure,
        "Light to full colour: after the first, the middle and the last model update (its on-policy steps stand at "
        "the line's end).\nSolid: median over branches, as far as a tenth of them go. Shaded: quartiles, of the last. "
        f"{_spread(measured)}",
    )
    return figure


# Parts of figures


def _scatters(row: Sequence[Axes], shown: Sequence[tuple[Run, Look]], place: Place, views: Sequence[View]) -> None:
    """Surrogate against true bias with the line on which they are equal, on the same logarithmic axes in all panels."""
    drawn = [
        (axes, look, surrogate, of_rows.true)
        for axes, view in zip(row, views, strict=True)
        for run, look in shown
        if run.rows and (of_rows := run.rows.biases.get((place, view.phase)))
        if (surrogate := of_rows.fixed if view.fixed else of_rows.surrogate) is not None
    ]
    for axes, look, x, y in drawn:
        points = (x > 0) & (y > 0)  # an axis of logarithms has no place for 0
        axes.scatter(
            x[points], y[points], s=9, color=look.colour, alpha=0.3, linewidths=0, zorder=3 - look.rank / 100,
            rasterized=True,
        )  # fmt: skip
    for axes, view in zip(row, views, strict=True):
        name = "rank_correlation_fixed" if view.fixed else "rank_correlation"
        said = [(look, _term(place, view.phase, name)(run.theory[-1])) for run, look in shown]
        for line, (look, rho) in enumerate([(look, rho) for look, rho in said if rho is not None][::-1]):
            axes.text(
                0.97, 0.04 + 0.08 * line, f"ρ = {rho:.2f}", transform=axes.transAxes, color=look.colour, ha="right"
            )
    values = np.concatenate([v[v > 0] for _, _, x, y in drawn for v in (x, y)] or [np.array([1.0])])
    # A few extreme rows shall not squeeze the others together.
    low, high = np.quantile(values, 0.001) / 1.3, np.quantile(values, 0.999) * 1.3
    for axes in row:
        axes.plot([low, high], [low, high], color=drawing.INK, linewidth=1.2, linestyle=(0, (1, 2)))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_box_aspect(1)


def _depths(axes: Axes, seeds: Sequence[Run], look: Look) -> list[End]:
    """Three model updates of one method: first, middle, last; means over seeds of their medians.

    Returns:
        The right end of each line.
    """
    updates = [[(theory, _well_reached(theory.depth)) for theory in run.theory if theory.depth] for run in seeds]
    updates = [each for each in updates if each]
    fewest = min(len(each) for each in updates)
    shares = {1: (1.0,), 2: (0.0, 1.0)}.get(fewest, (0.0, 0.5, 1.0))
    ends = []
    for share in shares:
        chosen = [each[round(share * (len(each) - 1))] for each in updates]
        steps = min(len(lines) for _, lines in chosen)
        x = np.arange(1, steps + 1, dtype=np.float64)
        colour = look.colour if share == shares[-1] else look.tint
        weight = 3.0 if share == shares[-1] else 2.0 if share else 1.3

        def mean(name: str, of: Sequence[tuple[Theory, list[DepthLine]]] = chosen, count: int = steps) -> Array:
            values = [[getattr(line, name) for line in lines[:count]] for _, lines in of]
            return np.asarray(np.mean(np.array(values, dtype=np.float64), axis=0))

        if share == shares[-1]:
            drawing.band(axes, x, np.array([mean("error_q25"), mean("error_q75")]), look)
        axes.plot(x, mean("error_q50"), color=colour, linewidth=weight, zorder=2 + share)
        axes.plot(x, mean("one_step"), color=colour, linewidth=weight * 0.6, linestyle=drawing.DASHES, zorder=2 + share)
        ends.append((float(mean("error_q50")[-1]), float(x[-1]), seeds[0].files.steps(chosen[0][0].cycle), colour))
    return ends


def _well_reached(lines: Sequence[DepthLine]) -> list[DepthLine]:
    """The depths up to which enough branches go on: the few that go further say little, and are not like the others."""
    return list(takewhile(lambda line: line.branches >= ENOUGH_BRANCHES * lines[0].branches, lines))


def _name_ends(axes: Axes, ends: Iterable[End]) -> None:
    """Write the on-policy steps at the end of each line, none over another; the axis is logarithmic."""
    (low, high), (left, right) = np.log(axes.get_ylim()), axes.get_xlim()
    placed: list[tuple[float, float]] = []
    for end, depth, steps, colour in sorted(ends):
        along = (depth - left) / (right - left) + 0.03
        height = float((np.log(end) - low) / (high - low))
        height = max([height, *(other + 0.065 for at, other in placed if abs(at - along) < 0.2)])
        axes.text(
            along, height, f"{steps:,}", transform=axes.transAxes, color=colour, fontsize=12, va="center",
            path_effects=[withStroke(linewidth=3, foreground="white")], zorder=5,
        )  # fmt: skip
        placed.append((along, height))


def _before_and_after(axes: Axes, seeds: Sequence[Run], place: Place, name: str, look: Look) -> None:
    """A term of the theory before phase 2, dashed where there is one, and of the model that rolls out."""
    _line(axes, seeds, _term(place, "before", name), look, dashed=True)
    _line(axes, seeds, _term(place, "after", name), look)


def _line(
    axes: Axes, seeds: Iterable[Run], pick: Pick, look: Look, *, dashed: bool = False, dotted: bool = False
) -> None:
    """One quantity over on-policy steps: the mean over seeds; seeds that trained at different steps each for itself."""
    lines = [(x, y[None]) for x, y in (_series(run, pick) for run in seeds) if len(x)]
    if lines and all(np.array_equal(x, lines[0][0]) for x, _ in lines):
        lines = [(lines[0][0], np.concatenate([y for _, y in lines]))]
    for x, values in lines:
        if dotted:
            mean = values.mean(axis=0)
            axes.plot(*drawing.binned(x, mean), color=look.colour, linewidth=2.2, linestyle=DOTTED, zorder=3)
        else:
            drawing.mean_line(axes, x, values, look, dashed=dashed)


def _dotted_line(label: str) -> Line2D:
    return Line2D([], [], color=drawing.QUIET, linewidth=1.6, linestyle=DOTTED, label=label)


def _fixed_line(runs: Iterable[Run], place: Place) -> list[Line2D]:
    """The legend's entry for the surrogate whose stand-in for M* is fixed; none where it was measured nowhere."""
    pick = _term(place, "after", "surrogate_bias_fixed")
    measured = any(pick(theory) is not None for run in runs for theory in run.theory)
    return [_dotted_line("after phase 2, with the fixed stand-in for M*")] if measured else []


def _finish(
    figure: Figure,
    panels: Sequence[Sequence[Axes]],
    runs: Sequence[Run],
    style: dict[str, Look],
    titles: Sequence[str],
    place: Place,
    further: Sequence[Line2D] = (),
) -> None:
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=13)
    for axes in panels[-1]:
        axes.set_xlabel("On-policy steps")
    tasks = _tasks(runs)
    shown = [look for method, look in style.items() if any(run.files.method == method for run in runs)]
    kinds = drawing.line_kinds(solid="after phase 2, or without it", dashed="before phase 2")
    drawing.legend(figure, shown, [*kinds, *further], title=tasks[0] if len(tasks) == 1 else None)
    drawing.name_rows(panels, tasks)
    on = {"rollout": "state-actions of the model rollouts of the cycles before", "holdout": "held-out real transitions"}
    drawing.note(figure, f"On {on[place]}. {_spread(runs)}")


# Data


def _with(runs: Sequence[Run], needed: Callable[[Terms], float | None]) -> tuple[list[Run], Place]:
    """The runs in which a term was measured, and where: on model rollouts, or else on the hold-out."""

    def has(run: Run, place: Place) -> bool:
        found = [getattr(theory, place) for theory in run.theory]
        return any(measured and needed(measured.after) is not None for measured in found)

    places: tuple[Place, ...] = ("rollout", "holdout")
    for place in places:
        if any(has(run, place) for run in runs):
            return [run for run in runs if has(run, place)], place
    return [], "holdout"


def _why_not(runs: Iterable[Run]) -> str:
    measured = [theory for run in runs for theory in run.theory]
    if not measured:
        return NOTHING
    return NOT_YET if any(theory.reconstruction for theory in measured) else NO_TRUTH


def _term(place: Place, phase: Phase, name: str) -> Pick:
    def pick(theory: Theory) -> float | None:
        measured = getattr(theory, place)
        terms = measured and getattr(measured, phase)
        value: float | None = terms and getattr(terms, name)
        return value

    return pick


def _negative(pick: Pick) -> Pick:
    def negative(theory: Theory) -> float | None:
        value = pick(theory)
        return None if value is None else -value

    return negative


def _series(run: Run, pick: Pick) -> tuple[Array, Array]:
    """On-policy steps and values where there are any, (points,) each."""
    points = [(run.files.steps(theory.cycle), value) for theory in run.theory if (value := pick(theory)) is not None]
    x, y = zip(*points, strict=True) if points else ((), ())
    return np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)


def _tasks(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(run.files.task for run in runs))


def _looks(runs: Iterable[Run]) -> dict[str, Look]:
    return drawing.looks(run.files.method for run in runs)


def _seeds(runs: Iterable[Run], task: str) -> dict[str, list[Run]]:
    """The seeds of each method on one task."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.files.task == task:
            groups.setdefault(run.files.method, []).append(run)
    return groups


def _spread(runs: Iterable[Run]) -> str:
    """What is drawn where a line is a mean over seeds."""
    seeds = max(len(group) for task in _tasks(runs) for group in _seeds(runs, task).values())
    return "One seed." if seeds == 1 else f"Lines: mean over {seeds} seeds. Shaded: minimum to maximum over seeds."
