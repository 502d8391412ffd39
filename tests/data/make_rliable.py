"""Makes rliable.json again: what rliable says about a few small arrays of scores.

rliable 1.2 needs pandas < 3 and ignores the random state that it is given, so it stays out of the project's
environment, and its intervals differ a little from run to run. Recipe:

    python -m venv /tmp/rliable && /tmp/rliable/bin/pip install 'rliable==1.2.0' 'pandas<3'
    /tmp/rliable/bin/python tests/data/make_rliable.py

Scores of a case are x (runs, tasks) and, of another method, y (runs, tasks). Recorded are the interquartile mean of x
and the probability of improvement of x over y, each with the ends of its 95 % stratified-bootstrap interval, and the
same for each task by itself.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
from rliable import library, metrics

REPETITIONS = 10_000


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of different sizes, with and without ties."""
    random = np.random.default_rng(20231210)
    return {
        "five runs, three tasks": (random.normal(1.0, 0.3, (5, 3)), random.normal(0.8, 0.3, (5, 3))),
        "ten runs, two tasks": (random.gamma(2.0, 0.5, (10, 2)), random.gamma(2.0, 0.4, (10, 2))),
        "three runs, one task": (random.normal(300.0, 80.0, (3, 1)), random.normal(250.0, 80.0, (3, 1))),
        "four runs against six, with ties": (
            random.integers(0, 4, (4, 2)).astype(float),
            random.integers(0, 4, (6, 2)).astype(float),
        ),
    }


def interval(scores: dict, function) -> dict:
    """A statistic and the ends of its interval."""
    points, intervals = library.get_interval_estimates(scores, function, reps=REPETITIONS)
    (value,), (ends,) = points.values(), intervals.values()
    return {"value": float(value[0]), "low": float(ends[0, 0]), "high": float(ends[1, 0])}


def of(x: np.ndarray, y: np.ndarray) -> dict:
    """What is recorded of two arrays of scores."""
    return {
        "iqm": interval({"x": x}, lambda scores: np.array([metrics.aggregate_iqm(scores)])),
        "improvement": interval({"x,y": (x, y)}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)])),
    }


if __name__ == "__main__":
    recorded = {
        name: {
            "x": x.tolist(),
            "y": y.tolist(),
            "together": of(x, y),
            "tasks": [of(x[:, [task]], y[:, [task]]) for task in range(x.shape[1])],
        }
        for name, (x, y) in cases().items()
    }
    versions = {package: importlib.metadata.version(package) for package in ("rliable", "arch", "numpy", "scipy")}
    content = {"repetitions": REPETITIONS, "versions": versions, "cases": recorded}
    path = Path(__file__).with_name("rliable.json")
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
