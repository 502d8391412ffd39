"""The figure of the theory's quantities over training; remake.py has it drawn."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from usbpo.report import drawing

PANELS = {
    "shift": "Model shift",
    "surrogate_bias": "Bias, surrogate",
    "true_bias": "Bias, true",
    "bracket": "Bracket of eq 1",
}
"""Titles, by column"""
STILL = "surrogate_bias_fixed"
"""Stands beside the surrogate, dashed"""

Values = dict[int, dict[str, float]]
"""By on-policy steps, by seed"""


def draw(measured: Sequence[Mapping[str, str]], methods: Iterable[str]) -> Figure:
    """A row for each task, a panel for each quantity, a line for each method.

    Args:
        measured: rows of theory_bias.csv and theory_bracket.csv in one, of one place.
        methods: all of the entry, in order, so that each has the colour of the learning curves.
    """
    tasks = list(dict.fromkeys(row["task"] for row in measured))
    shown = {row["method"] for row in measured}
    looks = {method: look for method, look in drawing.looks(methods).items() if method in shown}
    figure, rows = drawing.panels(len(tasks), len(PANELS), (3.9, 3.3))
    drawing.name_rows(rows, tasks)
    for row, task in zip(rows, tasks, strict=True):
        for axes, (column, title) in zip(row, PANELS.items(), strict=True):
            for method, look in looks.items():
                found = [each for each in measured if (each["task"], each["method"]) == (task, method)]
                _line(axes, _values(found, column), look, dashed=False)
                if column == "surrogate_bias":
                    _line(axes, _values(found, STILL), look, dashed=True)
            axes.set_title(title)
            axes.set_xlabel("On-policy steps")
            drawing.x_axis(axes, 4)
            drawing.y_axis(axes)
        drawing.log_axis(row[:3])
    drawing.legend(figure, looks.values())
    drawing.note(
        figure,
        "On rows of model rollouts, with the model that rolls out, in raw units of (reward, next state): mean over "
        "seeds, shaded their range. Dashed: the surrogate to the other members as phase 1 left them.",
    )
    return figure


def _values(found: Iterable[Mapping[str, str]], column: str) -> Values:
    """A quantity with the model that rolls out."""
    values: Values = defaultdict(dict)
    for row in found:
        if row["phase"] == "after" and row[column]:
            values[int(row["on_policy_steps"])][row["seed"]] = float(row[column])
    return values


def _line(axes: Axes, values: Values, look: drawing.Look, *, dashed: bool) -> None:
    """The steps at which every seed has a value."""
    seeds = {seed for of_step in values.values() for seed in of_step}
    steps = sorted(step for step, of_step in values.items() if of_step.keys() == seeds)
    if steps:
        lines = np.array([[values[step][seed] for step in steps] for seed in sorted(seeds)])
        drawing.mean_line(axes, np.array(steps, dtype=float), lines, look, dashed=dashed, shaded=not dashed)
