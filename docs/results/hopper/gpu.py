"""Draws gpu.svg from the lines of the loop that lie beside it, and published curves; remake.py runs it."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from usbpo.report import drawing
from usbpo.report.published import published

HERE = Path(__file__).resolve().parent
LABELS = {"usbpo-moving": "USB-PO, moving M*, ours", "mbpo": "MBPO, ours"}
AVERAGED = 5
"""Evaluations in a running mean: one of 5 episodes every 250 steps"""


def columns(name: str, *wanted: str) -> list[np.ndarray]:
    """Columns of one of the loop's files."""
    with open(HERE / f"loop_gpu_{name}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [np.array([float(row[column]) for row in rows]) for column in wanted]


def draw() -> Figure:
    """Returns beside published ones, temperature, and mean Q."""
    made = Figure(figsize=(11, 3.6), layout="constrained")
    returns, temperature, q = made.subplots(1, 3)
    style = drawing.looks(list(LABELS))
    for method, look in style.items():
        steps, each, alpha, values = columns(method, "step", "return", "temperature", "q_real")
        mean = np.convolve(each, np.ones(AVERAGED) / AVERAGED, mode="valid")
        returns.plot(steps, each, color=look.tint, linewidth=1)
        returns.plot(steps[AVERAGED - 1 :], mean, color=look.colour, linewidth=2, label=LABELS[method])
        temperature.plot(steps, alpha, color=look.colour, linewidth=2)
        q.plot(steps, values, color=look.colour, linewidth=2)
    for curve, dash in zip((c for c in published("Hopper") if c.algorithm == "mbpo"), ("--", ":", "-."), strict=False):
        kept = curve.steps <= 25_000
        returns.plot(curve.steps[kept], curve.returns[kept], color=drawing.QUIET, linestyle=dash, label=curve.label)
    for axes, title in ((returns, "Return"), (temperature, "Temperature"), (q, "Mean Q on real rows")):
        axes.set_title(title)
        axes.set_xlim(0, 25_000)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("On-policy steps")
        drawing.x_axis(axes)
    returns.legend(fontsize=8, loc="upper left")
    return made


if __name__ == "__main__":
    drawing.save(draw, HERE / "gpu")
