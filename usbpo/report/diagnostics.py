"""Figures of what happens inside a run: the model and the policy. Colours are methods, thin lines are members."""

from collections.abc import Iterable, Sequence
from math import nan

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from usbpo.report import drawing
from usbpo.report.drawing import Array, Look
from usbpo.report.records import PolicyLine, Run, grouped, methods_of, on_policy_steps, seeds_by_method, tasks_of

FEW_METHODS = 3
"""Up to so many methods have a column each, with all members."""


def model_shift_and_bias(runs: Sequence[Run]) -> Figure:
    """Model shift, model bias and their sum, before and after each phase 2: a row a task, a colour a method."""
    if not any(run.files.phase2 for run in runs):
        return drawing.message("No method of this experiment has a phase 2.")
    style = _looks(runs)
    tuned = [run for run in runs if run.phase2]
    if not tuned:
        return drawing.message("No phase 2 has run yet: it begins with the second model update.")
    tasks = tasks_of(tuned)
    figure, panels = drawing.panels(len(tasks), 3, (4.6, 4.2) if len(tasks) == 1 else (4.6, 3.6), sharey="row")
    for row, task in zip(panels, tasks, strict=True):
        for axes, term in zip(row, ("shift", "bias", "sum"), strict=True):
            for method, seeds in seeds_by_method(tuned, task).items():
                before = _in_force(seeds, [{m.cycle: getattr(m.before, term) for m in run.phase2} for run in seeds])
                after = _in_force(seeds, [{m.cycle: getattr(m.after, term) for m in run.phase2} for run in seeds])
                drawing.mean_line(axes, *before, style[method], dashed=True, shaded=False)
                drawing.mean_line(axes, *after, style[method])
            drawing.x_axis(axes)
        row[0].set_ylabel("W₂ distance")
        drawing.log_axis_or_from_zero(row)
    for axes, title in zip(panels[0], ("Model shift", "Model bias", "Shift + bias"), strict=True):
        axes.set_title(title)
    for axes in panels[-1]:
        axes.set_xlabel("On-policy steps")
    shown = [look for method, look in style.items() if any(run.files.method == method for run in tuned)]
    kinds = drawing.line_kinds(solid="after phase 2", dashed="before phase 2")
    drawing.legend(figure, shown, kinds, title=tasks[0] if len(tasks) == 1 else None)
    drawing.name_rows(panels, tasks)
    drawing.note(figure, _spread(tuned))
    return figure


def holdout_error(runs: Sequence[Run]) -> Figure:
    """Hold-out error after each phase 1: of each member, or of the elites of each method where methods are many."""
    modelled = [run for run in runs if run.phase1]
    if not modelled:
        return drawing.message("No method of this experiment has a model.")
    return _members(modelled, _looks(runs)) if len(methods_of(modelled)) <= FEW_METHODS else _elites(runs, modelled)


def _members(modelled: Sequence[Run], style: dict[str, Look]) -> Figure:
    """A row a task, a column a method, a thin line a member, bold the elites."""
    tasks, methods = tasks_of(modelled), methods_of(modelled)
    size = (9.4, 5.4) if len(tasks) == len(methods) == 1 else (5.4, 4.6) if len(tasks) == 1 else (4.2, 3.4)
    figure, panels = drawing.panels(len(tasks), len(methods), size, sharey="row")
    for row, task in zip(panels, tasks, strict=True):
        groups = seeds_by_method(modelled, task)
        for axes, method in zip(row, methods, strict=True):
            for run in groups.get(method, []):
                x = on_policy_steps(run, [metrics.cycle for metrics in run.phase1])
                members = np.array([metrics.holdout_mse for metrics in run.phase1]).T
                drawing.thin_lines(axes, x, members, style[method])
            if method in groups:
                drawing.mean_line(axes, *_elite_errors(groups[method]), style[method], shaded=False)
            drawing.x_axis(axes)
        row[0].set_ylabel("Hold-out MSE")
        drawing.log_axis(row)
    for axes, method in zip(panels[0], methods, strict=True):
        axes.set_title(style[method].label, color=style[method].colour)
    for axes in panels[-1]:
        axes.set_xlabel("On-policy steps")
    if len(tasks) == 1:
        figure.suptitle(tasks[0], x=0.012, ha="left", fontsize=16, fontweight="bold")
    drawing.name_rows(panels, tasks)
    seeds = max(len(group) for group in grouped(modelled).values())
    over = f", over {seeds} seeds" if seeds > 1 else ""
    of = " of each seed" if seeds > 1 else ""
    drawing.note(figure, f"Thin: each member of the ensemble{of}. Bold: mean of the elites{over}.")
    return figure


def _elites(runs: Sequence[Run], modelled: Sequence[Run]) -> Figure:
    """A panel a task, a colour a method."""
    tasks, style = tasks_of(modelled), _looks(runs)
    figure, panels = drawing.grid(len(tasks), (9.4, 5.4) if len(tasks) == 1 else (5.0, 4.0))
    for axes, task in zip(panels, tasks, strict=True):
        for method, seeds in seeds_by_method(modelled, task).items():
            drawing.mean_line(axes, *_elite_errors(seeds), style[method])
        axes.set_title(task)
        axes.set_xlabel("On-policy steps")
        drawing.x_axis(axes)
        drawing.log_axis([axes])
    drawing.label_first_column(panels, "Hold-out MSE")
    drawing.legend(figure, [style[method] for method in methods_of(modelled)])
    drawing.note(figure, f"Mean of the elites. {_spread(modelled)}")
    return figure


def policy_diagnostics(runs: Sequence[Run]) -> Figure:
    """Temperature, entropy, critic loss and Q over steps: a row a task (four panels in a square if there is one)."""
    tasks, style = tasks_of(runs), _looks(runs)
    one = len(tasks) == 1
    figure, panels = drawing.panels(2 if one else len(tasks), 2 if one else 4, (6.2, 3.7) if one else (4.4, 3.3))
    rows = [panels[0] + panels[1]] if one else panels
    for row, task in zip(rows, tasks, strict=True):
        temperature, entropy, loss, value = row
        for method, seeds in seeds_by_method(runs, task).items():
            look = style[method]
            for axes, name in ((temperature, "temperature"), (entropy, "entropy"), (loss, "critic_loss")):
                drawing.mean_line(axes, *_history(seeds, name), look)
            drawing.mean_line(value, *_history(seeds, "q_real"), look)
            drawing.mean_line(value, *_history(seeds, "q_model"), look, dashed=True, shaded=False)
        for axes in row:
            drawing.x_axis(axes)
            drawing.y_axis(axes)
        targets = {metrics.target_entropy for run in runs if run.files.task == task for metrics in run.policy}
        for target in sorted(target for target in targets if target is not None):
            _target_line(entropy, target)
        drawing.log_axis([temperature])
        drawing.log_axis([loss])
    for axes, title in zip(rows[0], ("Temperature", "Entropy (nats)", "Critic loss", "Q value"), strict=True):
        axes.set_title(title)
    for axes in panels[-1]:
        axes.set_xlabel("On-policy steps")
    rows[0][-1].legend(handles=drawing.line_kinds(solid="real rows", dashed="model rows"), loc="best", fontsize=12)
    drawing.legend(figure, style.values(), title=tasks[0] if one else None)
    drawing.name_rows(panels, tasks)
    drawing.note(figure, _spread(runs))
    return figure


# Data


def _looks(runs: Iterable[Run]) -> dict[str, Look]:
    return drawing.looks(methods_of(runs))


def _elite_errors(seeds: Sequence[Run]) -> tuple[Array, Array]:
    """On-policy steps (points,) and the mean error of the elites (seeds, points)."""
    errors = [{m.cycle: float(np.mean(np.take(m.holdout_mse, m.elites))) for m in run.phase1} for run in seeds]
    return _in_force(seeds, errors)


def _in_force(seeds: Sequence[Run], values: Sequence[dict[int, float]]) -> tuple[Array, Array]:
    """On-policy steps (points,) and the newest value of each seed (seeds, points).

    `values` are given by cycle, in ascending order. Where a trigger decides, seeds update their models in cycles of
    their own: there is a point wherever one of them does, from the first cycle on in which all have a value.
    """
    first = max(min(of_seed) for of_seed in values)
    cycles = np.array(sorted({cycle for of_seed in values for cycle in of_seed if cycle >= first}))
    newest = [
        np.array(list(of_seed.values()))[np.searchsorted(list(of_seed), cycles, side="right") - 1] for of_seed in values
    ]
    return on_policy_steps(seeds[0], cycles), np.array(newest)


def _history(seeds: Sequence[Run], name: str) -> tuple[Array, Array]:
    """Steps (points,) and one quantity (seeds, points), where all seeds report it; what is null is NaN.

    Methods take unlike numbers of updates for a step, so an update stands at its share of its cycle's steps.
    """
    histories = [
        {
            run.files.steps(metrics.cycle - 1)
            + run.files.cycle_steps * (line.update - metrics.history[0].update) / metrics.updates: _number(line, name)
            for metrics in run.policy
            for line in metrics.history
        }
        for run in seeds
    ]
    steps = [step for step in histories[0] if all(step in history for history in histories)]
    return np.array(steps), np.array([[history[step] for step in steps] for history in histories])


def _number(line: PolicyLine, name: str) -> float:
    value = getattr(line, name)
    return nan if value is None else float(value)


def _spread(runs: Sequence[Run]) -> str:
    """What is drawn where a line is a mean over seeds."""
    seeds = max(len(group) for group in grouped(runs).values())
    return "One seed." if seeds == 1 else f"Lines: mean over {seeds} seeds. Shaded, of solid lines: minimum to maximum."


def _target_line(axes: Axes, value: float) -> None:
    """A dotted line at the value that is aimed at, named beside it."""
    axes.axhline(value, color=drawing.INK, linewidth=1.2, linestyle=(0, (1, 2)))
    axes.annotate(
        "target",
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=12,
    )
