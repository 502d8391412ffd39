"""Figures of returns over on-policy steps: ours, and beside the published ones. Colours are methods."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from usbpo.report import drawing
from usbpo.report.drawing import Array, Dashes, Look
from usbpo.report.published import RELATED, PublishedCurve, published, related, representative
from usbpo.report.scores import Curve

FEW_SEEDS = 5
"""Up to so many seeds are drawn as thin lines,"""
FEW_METHODS = 2
"""of up to so many methods; more would hide each other."""
GREYS = ("#4D4D4D", "#6E6E6E", "#8F8F8F", "#B0B0B0")
WIDEST = 4
"""Beside short curves of ours, published ones are drawn up to so many times as many steps."""
PUBLISHED_DASHES: tuple[Dashes, ...] = ((0, (5, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1, 1.2)))
COMPARED = ("mbpo", "cmlo", "sac")
"""Published algorithms that stand in the learning curves; all others only in their own figure."""


class End(NamedTuple):
    """The right end of a line, and what is written beside it."""

    value: float
    text: str
    colour: str
    bold: bool = True


def learning_curves(curves: Sequence[Curve]) -> Figure:
    """Interquartile mean over seeds with its interval, and what is published for the same steps: a panel a task."""
    tasks, style = _tasks(curves), _looks(curves)
    single = len(tasks) == 1
    figure, panels = drawing.grid(len(tasks), (9.4, 5.4) if single else (5.0, 4.0))
    shown: dict[str, PublishedCurve] = {}
    for axes, task in zip(panels, tasks, strict=True):
        ends = _draw(axes, [curve for curve in curves if curve.task == task], style)
        top = max(curve.steps[-1] for curve in curves if curve.task == task)
        for other in _within(task, top):
            x, y = _up_to(other, top)
            _published_line(axes, x, y, *_published_look(other, style), other.seeds == 1)
            shown[other.label] = other
            ends.append(_end(other, y, f"{other.label}, published", style))
        _finish(axes, task, 6 if single else 5)
        if single:
            _label_ends(axes, ends, gap=0.075 if len(ends) < 9 else 0.06)
    if not single:
        lines = [
            Line2D([], [], color=colour, linewidth=1.3, linestyle=dashes, label=f"{label}, published")
            for label, (colour, dashes) in sorted((name, _published_look(c, style)) for name, c in shown.items())
        ]
        drawing.legend(figure, style.values(), lines)
    drawing.label_first_column(panels, "Return")
    drawing.note(figure, _explanation(curves, bool(shown)))
    return figure


def beside_published(curves: Sequence[Curve]) -> Figure:
    """Ours as far as they go beside every published curve of the task, which may go on further: a panel a task."""
    tasks, style = _tasks(curves), _looks(curves)
    known = [task for task in tasks if published(task) or related(task)]
    if not known:
        return drawing.message("Nothing is published for the tasks of this experiment.")
    single = len(known) == 1
    figure, panels = drawing.grid(len(known), (10.4, 6.0) if single else (6.6, 4.6), widest=3)
    for axes, task in zip(panels, known, strict=True):
        _draw(axes, [curve for curve in curves if curve.task == task], style, plain=True)
        top, ends = _budget(task, curves), []
        for other in published(task) + related(task):
            if other.steps[0] >= top:
                continue
            x, y = _up_to(other, top)
            _published_line(axes, x, y, *_published_look(other, style), other.seeds == 1)
            name = f"{other.label}, {other.task}" if other.task != task else other.label
            ends.append(_end(other, y, name, style))
        _finish(axes, task, 5)
        _label_ends(axes, ends, size=11 if single else 10, gap=0.05 if single else 0.062)
    drawing.label_first_column(panels, "Return")
    drawing.legend(figure, [look for method, look in style.items() if _on(curves, known, method)])
    others = [RELATED[task] for task in known if related(task)]
    drawing.note(
        figure,
        "Bold: this experiment, interquartile mean over seeds. Thin: published, interquartile mean over the source's "
        "seeds, up to four times our steps; its source in brackets."
        + (f" {' and '.join(others)}: with the whole observation." if others else ""),
    )
    return figure


def _draw(axes: Axes, curves: Sequence[Curve], style: dict[str, Look], plain: bool = False) -> list[End]:
    """Our curves in one panel, with bands and thin lines unless `plain`; where they end."""
    ends = []
    for curve in curves:
        look, estimate = style[curve.method], curve.estimate
        seeds = len(curve.seeds)
        if not plain:
            spread = (curve.worst, curve.best) if seeds == 1 else (estimate.low, estimate.high)
            drawing.band(axes, curve.steps, np.array(spread), look)
            if _thin(curves) and 1 < seeds <= FEW_SEEDS:
                drawing.thin_lines(axes, curve.steps, curve.returns, look)
        ends.append(End(drawing.line(axes, curve.steps, estimate.value, look), look.label, look.colour))
    return ends


def _finish(axes: Axes, task: str, ticks: int) -> None:
    axes.set_title(task)
    drawing.x_axis(axes, ticks)
    drawing.y_axis(axes)
    axes.set_xlabel("On-policy steps")


def _within(task: str, top: float) -> list[PublishedCurve]:
    """One published curve for each algorithm of `COMPARED` that has two points or more within `top` steps."""
    return [
        curve
        for algorithm, curve in representative(task).items()
        if algorithm in COMPARED and (curve.steps <= top).sum() > 1
    ]


def _budget(task: str, curves: Iterable[Curve]) -> float:
    """Where the axis ends: with the published MBPO curve, or at `WIDEST` times our steps where that is sooner."""
    ours = max(curve.steps[-1] for curve in curves if curve.task == task)
    ends = [float(other.steps[-1]) for other in published(task) if other.algorithm == "mbpo"]
    return float(max(ours, min(WIDEST * ours, max(ends, default=2 * ours))))


def _up_to(curve: PublishedCurve, top: float) -> tuple[Array, Array]:
    """The curve as far as `top` steps."""
    x = np.append(curve.steps[curve.steps < top], top) if top < curve.steps[-1] else curve.steps
    return x, np.interp(x, curve.steps, curve.returns)


def _end(curve: PublishedCurve, returns: Array, text: str, style: dict[str, Look]) -> End:
    """The label of a published curve, in the colour of our method of the same name."""
    own = style.get(curve.algorithm)
    return End(float(returns[-1]), text, own.colour if own else drawing.QUIET, bold=False)


def _published_look(curve: PublishedCurve, style: dict[str, Look]) -> tuple[str, Dashes]:
    """The tint of our method of the same name, or a grey; a kind of dashes for each source."""
    names = sorted({other.algorithm for other in published(curve.task) + related(curve.task)} - set(style))
    own = style.get(curve.algorithm)
    sources = list(dict.fromkeys(other.source for other in published(curve.task) if other.algorithm == curve.algorithm))
    dashes = PUBLISHED_DASHES[sources.index(curve.source) % len(PUBLISHED_DASHES)]
    return own.faded if own else GREYS[names.index(curve.algorithm) % len(GREYS)], dashes


def _tasks(curves: Iterable[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.task for curve in curves))


def _looks(curves: Iterable[Curve]) -> dict[str, Look]:
    return drawing.looks(curve.method for curve in curves)


def _on(curves: Iterable[Curve], tasks: Sequence[str], method: str) -> bool:
    return any(curve.method == method and curve.task in tasks for curve in curves)


def _thin(curves: Sequence[Curve]) -> bool:
    return len({curve.method for curve in curves}) <= FEW_METHODS


def _explanation(curves: Sequence[Curve], compared: bool) -> str:
    """What is drawn in the learning curves."""
    episodes = " or ".join(map(str, sorted({curve.episodes for curve in curves})))
    seeds = sorted({len(curve.seeds) for curve in curves})
    more = " Dashed: published curves of the same task." if compared else ""
    if seeds == [1]:
        return f"One seed. Line: mean of {episodes} evaluation episodes. Shaded: their minimum to maximum.{more}"
    number = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    single = "; where there is one seed, minimum to maximum of its episodes" if seeds[0] == 1 else ""
    few = f", wide and rough with {number}" if seeds[-1] <= 3 else ""
    drawn = any(1 < len(curve.seeds) <= FEW_SEEDS for curve in curves) and any(
        _thin([curve for curve in curves if curve.task == task]) for task in _tasks(curves)
    )
    thin = f" Thin: one seed, mean of {episodes} evaluation episodes." if drawn else ""
    return f"Bold: interquartile mean over {number}. Shaded: its 95 % bootstrap interval{few}{single}.{thin}{more}"


def _published_line(axes: Axes, x: Array, y: Array, colour: str, dashes: Dashes, single: bool) -> None:
    """A curve of other people: thin, broken, behind our means; thinner yet, as it jumps, if it is of a single seed."""
    axes.plot(x, y, color=colour, linewidth=0.7 if single else 1.3, linestyle=dashes, zorder=2.5)


def _label_ends(axes: Axes, ends: Sequence[End], size: float = 16, gap: float = 0.075) -> None:
    """Write at the right end of each line what it is, none over another.

    Args:
        axes: the panel; its y axis is fixed by this.
        ends: the first one comes to stand on top of equally high ones.
        size: of the text, in points.
        gap: between two lines of text, as a share of the panel's height.
    """
    low, high = axes.get_ylim()
    # Ties from the last one up, so that the first one comes to stand on top.
    places = sorted(((end.value - low) / (high - low), -i) for i, end in enumerate(ends))
    # Least squares under "each at least `gap` above the one below": pool neighbours that are too close.
    pools: list[list[float]] = []
    for i, (place, _) in enumerate(places):
        pools.append([place - i * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    heights = [float(np.mean(pool)) for pool in pools for _ in pool]
    heights = [height + i * gap for i, height in enumerate(heights)]
    for height, (_, i) in zip(heights, places, strict=True):
        end = ends[-i]
        axes.text(
            1.015,
            height,
            end.text,
            transform=axes.transAxes,
            color=end.colour,
            fontsize=size if end.bold else min(size, 11),
            fontweight="bold" if end.bold else "normal",
            va="center",
            ha="left",
        )
    axes.set_ylim(low, high)
