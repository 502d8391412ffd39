"""The theory's quantities over training, from the CSV files of an entry; remake.py draws it."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from usbpo.report import drawing

PANELS = {
    "shift": ("theory_bracket", "Model shift"),
    "surrogate_bias": ("theory_bias", "Bias, surrogate"),
    "true_bias": ("theory_bias", "Bias, true"),
    "bracket": ("theory_bracket", "Bracket of eq 1"),
}
"""By column: its file, and its title"""
STILL = "surrogate_bias_fixed"
"""Stands beside the surrogate, dashed"""

Series = dict[tuple[str, str], dict[int, dict[str, float]]]
"""By task and method, by on-policy steps, by seed"""


def draw(folder: Path) -> Figure:
    """A row for each task, a panel for each quantity, a line for each method."""
    series = {
        column: _series(folder / f"{file}.csv", column)
        for column, file in {**{name: file for name, (file, _) in PANELS.items()}, STILL: "theory_bias"}.items()
    }
    measured = series["true_bias"]
    tasks = list(dict.fromkeys(task for task, _ in measured))
    with open(folder / "evaluations.csv", encoding="utf-8", newline="") as file:
        every = drawing.looks(row["method"] for row in csv.DictReader(file))  # the colours of the learning curves
    looks = {method: look for method, look in every.items() if any(method == other for _, other in measured)}
    figure, rows = drawing.panels(len(tasks), len(PANELS), (3.9, 3.3))
    drawing.name_rows(rows, tasks)
    for row, task in zip(rows, tasks, strict=True):
        for axes, (column, (_, title)) in zip(row, PANELS.items(), strict=True):
            for method, look in looks.items():
                _line(axes, series[column].get((task, method), {}), look, dashed=False)
                if column == "surrogate_bias":
                    _line(axes, series[STILL].get((task, method), {}), look, dashed=True)
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


def _series(path: Path, column: str) -> Series:
    found: Series = defaultdict(lambda: defaultdict(dict))
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["place"] == "rollout" and row["phase"] == "after" and row.get(column):
                found[row["task"], row["method"]][int(row["on_policy_steps"])][row["seed"]] = float(row[column])
    return found


def _line(axes: Axes, values: dict[int, dict[str, float]], look: drawing.Look, *, dashed: bool) -> None:
    """The steps at which every seed has a value."""
    seeds = {seed for of_step in values.values() for seed in of_step}
    steps = sorted(step for step, of_step in values.items() if of_step.keys() == seeds)
    if steps:
        lines = np.array([[values[step][seed] for step in steps] for seed in sorted(seeds)])
        drawing.mean_line(axes, np.array(steps, dtype=float), lines, look, dashed=dashed, shaded=not dashed)
