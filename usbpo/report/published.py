"""Published learning curves of other people, to stand beside ours; `published_curves.md` names the sources."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from usbpo.errors import UsbpoError
from usbpo.report.statistics import iqm

Array = NDArray[np.float64]

DATA = Path(__file__).with_name("published_curves.csv")
"""Its content is one of the parameters of the results (`usbpo.experiment.plan`), so that other data draw them again."""

SOURCES = {
    "4kubo/erl_lib results/main/gym": "erl_lib",
    "CMLO slides figure, digitised (about 2 % of the axis)": "CMLO's figure",
    "x35f/model_based_rl results/mbpo": "x35f",
    "thu-ml/tianshou examples/mujoco/benchmark": "Tianshou",
    "RajGhugare19/alm scores": "ALM's code",
}
"""Short names of the sources. Where an algorithm has several on a task, the first one here speaks for it."""

NAMES = {"alm": "ALM", "cmlo": "CMLO", "dhmbpo": "DHMBPO", "macura": "MACURA", "mbpo": "MBPO", "sac": "SAC"}

RELATED = {"AntTruncated": "Ant", "HumanoidTruncated": "Humanoid"}
"""Published under another name: the same robot and reward, but with the whole observation; to look at only."""

SHARES = (0.25, 0.5, 0.75, 0.9)
"""Shares of a task's yardstick whose first reaching is timed."""


@dataclass(frozen=True)
class PublishedCurve:
    """One algorithm on one task from one source: the interquartile mean over the seeds that the source gives."""

    task: str
    """As the source's data name it; see `RELATED`"""
    algorithm: str
    source: str
    seeds: int | None
    """None where the source gives a mean alone"""
    steps: Array
    """(points,), as the source counts them"""
    returns: Array
    """(points,)"""

    @property
    def label(self) -> str:
        """Algorithm and source, as figures name them."""
        return f"{NAMES[self.algorithm]} ({SOURCES[self.source]})"


@dataclass(frozen=True)
class Yardstick:
    """Two returns of a task, between which scores of several tasks become comparable."""

    low: float
    high: float
    source: str
    """What they are, for people"""

    def level(self, share: float) -> float:
        """The return at a share of the way from `low` to `high`."""
        return self.low + share * (self.high - self.low)

    def share(self, returns: Array) -> Array:
        """Returns as shares of the way from `low` to `high`."""
        return (returns - self.low) / (self.high - self.low)


def published(task: str) -> list[PublishedCurve]:
    """The curves published for exactly this task, by algorithm and then by source, in the order of `SOURCES`."""
    return [curve for curve in _curves() if curve.task == task]


def related(task: str) -> list[PublishedCurve]:
    """The curves published for the same robot with another observation; none for most tasks."""
    return published(RELATED[task]) if task in RELATED else []


def representative(task: str) -> dict[str, PublishedCurve]:
    """One curve for each algorithm published for exactly this task."""
    first: dict[str, PublishedCurve] = {}
    for curve in published(task):
        first.setdefault(curve.algorithm, curve)
    return first


def published_yardstick(task: str) -> Yardstick | None:
    """From a return of 0 to the last point of the published MBPO curve, if there is one for exactly this task."""
    curve = representative(task).get("mbpo")
    if curve is None:
        return None
    return Yardstick(0.0, float(curve.returns[-1]), f"published {curve.label} at {curve.steps[-1]:,.0f} steps")


@cache
def _curves() -> tuple[PublishedCurve, ...]:
    """All curves of the data file.

    Raises:
        UsbpoError: it is missing or damaged.
    """
    sources = list(SOURCES)
    try:
        return tuple(sorted(_read(), key=lambda curve: (curve.task, curve.algorithm, sources.index(curve.source))))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsbpoError(
            f"{DATA}: the file is missing or damaged ({error}); `git checkout` it, install usbpo again or, if you have "
            "changed it, mend that."
        ) from error


def _read() -> Iterator[PublishedCurve]:
    """The curves in the order of the file; the seeds of a source share their points."""
    points: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = {}
    with DATA.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] not in SOURCES or row["algorithm"] not in NAMES:
                raise ValueError(f"published.py does not know {row['algorithm']} of {row['source']}")
            seeds = points.setdefault((row["task"], row["algorithm"], row["source"]), {})
            seeds.setdefault(row["seed"], []).append((float(row["env_steps"]), float(row["return"])))
    if not points:
        raise ValueError("it holds no curve")
    for (task, algorithm, source), seeds in points.items():
        curves = np.array([sorted(curve) for curve in seeds.values()])  # (seeds, points, 2)
        yield PublishedCurve(
            *(task, algorithm, source),
            seeds=None if list(seeds) == ["mean"] else len(seeds),
            steps=curves[0, :, 0],
            returns=iqm(curves[:, :, 1]),
        )
