"""The history of the event trigger (CMLO): its figure and its table."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from usbpo.report import drawing
from usbpo.report.drawing import Array, Look
from usbpo.report.records import Run, grouped, methods_of
from usbpo.report.tabular import Cell, Table


def figure(runs: Sequence[Run]) -> Figure:
    """S with its threshold, the hull's volume, the model's error, and how often it trained: a row a task and method.

    Bold is the first seed, thin are the others; S, which begins anew at each training, is that of the first seed alone.
    """
    triggered = [run for run in runs if run.checks]
    if not triggered:
        return drawing.message("No method of this experiment has a trigger.")
    style, groups = drawing.looks(methods_of(runs)), grouped(triggered)
    made, panels = drawing.panels(len(groups), 4, (4.8, 4.0) if len(groups) == 1 else (4.6, 3.3))
    for row, ((_, method), seeds) in zip(panels, groups.items(), strict=True):
        look, first = style[method], seeds[0]
        estimate, volume, error, interval = row
        _estimate(estimate, first, look)
        for run in reversed(seeds):
            _line(volume, *_checks(run, "volume"), look, bold=run is first)
            _line(error, *_checks(run, "mean_error"), look, bold=run is first)
            fired = _fired(run)
            _line(interval, fired[1:], np.diff(fired), look, bold=run is first, dots=True)
        for axes in row:
            axes.set_xlim(0, first.files.steps(first.files.cycles))
            drawing.x_axis(axes)
            drawing.y_axis(axes)
            axes.set_ylim(bottom=0)
    titles = ("S", "Volume of the hull", "Model error L̄", "Steps between trainings")
    for axes, name in zip(panels[0], titles, strict=True):
        axes.set_title(name)
    for axes in panels[-1]:
        axes.set_xlabel("On-policy steps")
    drawing.name_rows(panels, [task if len(groups) > 1 else "" for task, _ in groups])
    only_task = next(iter(groups))[0] if len({task for task, _ in groups}) == 1 else None
    drawing.legend(made, dict.fromkeys(style[method] for _, method in groups), title=only_task)
    several = max(len(seeds) for seeds in groups.values()) > 1
    seeds_said = " Bold: the first seed, the only one of S. Thin: the other seeds." if several else ""
    drawing.note(made, f"Dotted: the threshold α. Strokes at the foot of S: the model was trained.{seeds_said}")
    return made


def table(runs: Iterable[Run]) -> Table:
    """`trigger_history.csv`: one row for every check of every trigger."""
    quantities = ("on_policy_steps", "estimate", "threshold", "volume", "mean_error", "steps", "fired", "reason")
    rows: list[tuple[Cell, ...]] = [
        (
            *(run.files.task, run.files.method, run.files.seed),
            *(getattr(check, name) for name in quantities),
        )
        for run in runs
        for check in run.checks
    ]
    return Table(("task", "method", "seed", *quantities), rows)


def _estimate(axes: Axes, run: Run, look: Look) -> None:
    """S as it grows from 0 after each training, its thresholds, and a stroke for each training."""
    steps, values = _checks(run, "estimate")
    fired = _fired(run)
    # A line that falls to 0 after each training: NaN lifts the pen, and 0 sets it down again.
    x, y = [0.0], [0.0]
    for step, value in zip(steps, values, strict=True):
        x.append(step)
        y.append(value)
        if step in fired:
            x += [step, step]
            y += [np.nan, 0.0]
    axes.plot(x, y, color=look.colour, linewidth=1.6)
    for threshold in sorted({check.threshold for check in run.checks}):
        axes.axhline(threshold, color=drawing.INK, linewidth=1.2, linestyle=(0, (1, 2)))
    axes.plot(fired, np.zeros(len(fired)), color=look.colour, linestyle="none", marker="|", markersize=12)


def _line(axes: Axes, x: Array, y: Array, look: Look, *, bold: bool, dots: bool = False) -> None:
    axes.plot(
        x,
        y,
        color=look.colour if bold else look.tint,
        linewidth=2.2 if bold else 1.0,
        linestyle="none" if dots else "solid",
        marker="o" if dots else None,
        markersize=5 if bold else 3,
        zorder=3 if bold else 2,
    )


def _checks(run: Run, name: str) -> tuple[Array, Array]:
    """On-policy steps (checks,) and one quantity (checks,) of all checks."""
    steps = np.array([float(check.on_policy_steps) for check in run.checks])
    return steps, np.array([float(getattr(check, name)) for check in run.checks])


def _fired(run: Run) -> Array:
    """On-policy steps (trainings,) at which the model was trained."""
    return np.array([float(check.on_policy_steps) for check in run.checks if check.fired])
