"""Figures that compare methods: aggregate scores, and the probability of improvement, each with its intervals."""

from collections.abc import Sequence
from math import isnan

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from usbpo.report import drawing
from usbpo.report.drawing import Look
from usbpo.report.scores import ALL_TASKS, BASE, SCORES, Improvement, Pooled, TaskScores
from usbpo.report.statistics import Estimate

Rows = dict[tuple[str, str], Estimate]
"""The estimates of one panel, by method and score."""


def aggregate(tasks: Sequence[TaskScores], pooled: Sequence[Pooled]) -> Figure:
    """Final return and area under the curve: a panel a task, a row a method; all tasks together come first."""
    methods = _methods(tasks)
    panels: dict[str, Rows] = {}
    if pooled:
        panels["All tasks"] = {(each.method, each.score): each.estimate for each in pooled}
    for task in tasks:
        panels[task.task] = {
            (method, score): scores.estimates[score] for method, scores in task.methods.items() for score in SCORES
        }
    figure, drawn = _panels(panels, methods, drawing.looks(methods))
    for axes, name in zip(drawn, panels, strict=True):
        whole = name == "All tasks" and bool(pooled)
        axes.set_xlabel("Share of the yardstick" if whole else "Return")
        drawing.value_axis(axes)
    seeds = _numbers({len(scores.curve.seeds) for task in tasks for scores in task.methods.values()})
    drawing.note(
        figure,
        f"Interquartile mean over {seeds}{_bars(seeds)}"
        + (" The yardstick of a task (comparison.md) makes its returns shares." if pooled else ""),
    )
    return figure


def probability_of_improvement(tasks: Sequence[TaskScores], improvements: Sequence[Improvement]) -> Figure:
    """How probably a run of USB-PO scores higher than one of another method: a panel a task, a row a method."""
    if not improvements:
        return drawing.message(
            f"The probability of improvement needs the method {BASE} and another one on the same task."
        )
    methods = _methods(tasks)
    panels: dict[str, Rows] = {}
    # The mean over tasks comes first.
    for each in sorted(improvements, key=lambda each: each.task != ALL_TASKS):
        name = "Mean over tasks" if each.task == ALL_TASKS else each.task
        panels.setdefault(name, {})[each.other, each.score] = each.estimate
    others = [method for method in methods if any(each.other == method for each in improvements)]
    figure, drawn = _panels(panels, others, drawing.looks(methods))
    for axes in drawn:
        axes.axvline(0.5, color=drawing.INK, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        axes.set_xlabel("P(USB-PO scores higher)")
    seeds = _numbers({count for each in improvements for count in (each.seeds, each.other_seeds)})
    drawing.note(
        figure, f"Pairs of runs out of {seeds} a method; a tie counts one half{_bars(seeds)} Dotted: neither is better."
    )
    return figure


def _panels(panels: dict[str, Rows], methods: Sequence[str], style: dict[str, Look]) -> tuple[Figure, list[Axes]]:
    """Panels in a grid with a row for each method, the first on top: final return above, area under the curve below."""
    figure, every = drawing.grid(len(panels), (7.6 if len(panels) == 1 else 4.6, 1.3 + 0.46 * max(len(methods), 3)))
    for axes, (name, rows) in zip(every, panels.items(), strict=True):
        for place, method in enumerate(methods):
            for score, shift in zip(SCORES, (-0.14, 0.2), strict=True):
                if (method, score) in rows:
                    estimate = rows[method, score]
                    ends = (float(estimate.low), float(estimate.high))
                    _interval_bar(
                        axes, place + shift, float(estimate.value), ends, style[method], hollow=score == "area"
                    )
        axes.set_title(name)
        axes.grid(axis="x", color=drawing.GRID)
        axes.grid(visible=False, axis="y")
        column = axes.get_subplotspec()
        named = column is None or column.is_first_col()
        axes.set_yticks(range(len(methods)), [style[method].label if named else "" for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
    figure.legend(handles=_kinds(), loc="outside upper left", ncols=2, borderpad=0.2)
    return figure, every


def _kinds() -> list[Line2D]:
    """Legend entries for the two scores, whatever the method."""
    kinds = [
        ("final return", 4.0, 8.0, drawing.QUIET, "white"),
        ("area under the curve", 2.5, 6.0, "white", drawing.QUIET),
    ]
    return [
        Line2D(
            *([], []),
            color=drawing.QUIET,
            marker="o",
            label=label,
            linewidth=width,
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=edge,
        )
        for label, width, size, face, edge in kinds
    ]


def _methods(tasks: Sequence[TaskScores]) -> list[str]:
    return list(dict.fromkeys(method for task in tasks for method in task.methods))


def _numbers(counts: set[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{most} seed{'s' if most > 1 else ''}" if least == most else f"{least} to {most} seeds"


def _bars(seeds: str) -> str:
    """What the bars are."""
    return (
        ". One seed has no interval over seeds."
        if seeds == "1 seed"
        else "; bars: 95 % stratified-bootstrap intervals."
    )


def _interval_bar(
    axes: Axes, place: float, value: float, ends: tuple[float, float], look: Look, *, hollow: bool
) -> None:
    """A statistic at the height `place`, with its interval as a bar where there is one (`ends` not NaN)."""
    if not isnan(ends[0]):
        axes.hlines(
            place,
            *ends,
            color=look.tint if hollow else look.colour,
            linewidth=3.0 if hollow else 5.0,
            alpha=1.0 if hollow else 0.45,
            zorder=2,
        )
    axes.plot(
        [value],
        [place],
        color=look.colour,
        linestyle="none",
        marker=look.marker,
        markersize=6 if hollow else 8.5,
        markerfacecolor="white" if hollow else look.colour,
        markeredgecolor=look.colour if hollow else "white",
        markeredgewidth=1.4 if hollow else 1.0,
        zorder=3,
    )
