"""What methods are compared by: curves over seeds, final returns, areas, steps to a return, improvement."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from usbpo.errors import UsbpoError
from usbpo.report import statistics
from usbpo.report.published import SHARES, Yardstick, published_yardstick
from usbpo.report.records import Run, grouped, on_policy_steps
from usbpo.report.statistics import Estimate

Array = NDArray[np.float64]

SCORES = ("final", "area")
"""The return of the last evaluation that all methods of the task have reached, and the mean height of the curve."""
ALL_TASKS = "all tasks"
BASE = "usbpo"
"""The method whose improvement over the others is asked for."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of all seeds of one method on one task."""

    task: str
    method: str
    seeds: tuple[int, ...]
    episodes: int
    """Of one evaluation of one seed"""
    steps: Array
    """(points,), on-policy"""
    returns: Array
    """(seeds, points): means over episodes"""
    worst: Array
    """(points,): of all episodes of all seeds"""
    best: Array
    """(points,): of all episodes of all seeds"""

    @cached_property
    def estimate(self) -> Estimate:
        """Interquartile mean over seeds with its interval, each (points,)."""
        return statistics.iqm_over_seeds(self.returns, statistics.generator(self.task, self.method, "curve"))


@dataclass(frozen=True)
class Scores:
    """One method on one task, up to the on-policy steps that every method of the task has reached."""

    curve: Curve
    steps: int
    """On-policy steps of the evaluation that counts as the last one"""
    values: dict[str, Array]
    """For each of `SCORES` (seeds,)"""

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """For each of `SCORES` the interquartile mean over seeds with its interval, arrays of no dimension."""
        return {score: self._estimate(score) for score in SCORES}

    def _estimate(self, score: str) -> Estimate:
        random = statistics.generator(self.curve.task, self.curve.method, score)
        one = statistics.iqm_over_seeds(self.values[score][:, None], random)
        return Estimate(one.value[0], one.low[0], one.high[0])

    def steps_to(self, level: float) -> Array:
        """On-policy steps (seeds,) at each seed's first evaluation at or above a return, NaN where there is none."""
        shown = self.curve.steps <= self.steps
        return statistics.steps_to_reach(self.curve.steps[shown], self.curve.returns[:, shown], level)


@dataclass(frozen=True)
class TaskScores:
    """All methods on one task."""

    task: str
    yardstick: Yardstick | None
    """None where nothing is published and no method has learned anything yet"""
    methods: dict[str, Scores]
    returns: tuple[float, ...] = ()
    """Returns that the experiment names, whose first reaching is timed beside `levels`; ascending"""

    @property
    def levels(self) -> list[tuple[float, float]]:
        """(share, return) of each share of the yardstick whose first reaching is timed."""
        return [(share, self.yardstick.level(share)) for share in SHARES] if self.yardstick else []


def metrics(tasks: Iterable[TaskScores]) -> dict[str, dict[str, dict[str, float]]]:
    """`metrics.json`, by task and method: the interquartile mean of each of `SCORES` over seeds, and their number."""
    return {
        task.task: {
            method: {score: float(scores.estimates[score].value) for score in SCORES}
            | {"on_policy_steps": scores.steps, "seeds": len(scores.curve.seeds)}
            for method, scores in task.methods.items()
        }
        for task in tasks
    }


@dataclass(frozen=True)
class Pooled:
    """One method over all tasks, its scores as shares of each task's yardstick."""

    method: str
    score: str
    seeds: int
    estimate: Estimate


@dataclass(frozen=True)
class Improvement:
    """The probability that a run of `BASE` scores higher than one of another method."""

    task: str
    """`ALL_TASKS`: the mean over tasks"""
    other: str
    score: str
    seeds: int
    other_seeds: int
    estimate: Estimate


def curves(runs: Iterable[Run]) -> list[Curve]:
    """The curve of every task and method, in order of appearance.

    Raises:
        UsbpoError: seeds of one method have other evaluations.
    """
    return [_curve(task, method, seeds) for (task, method), seeds in grouped(runs).items()]


def _curve(task: str, method: str, seeds: Sequence[Run]) -> Curve:
    _check_alike(f"{task}/{method}", seeds)

    def of_each(statistic: Callable[[Array], float]) -> Array:
        """A statistic of the episodes of each evaluation (seeds, points)."""
        return np.array([[statistic(evaluation.returns) for evaluation in run.evaluations] for run in seeds])

    return Curve(
        task=task,
        method=method,
        seeds=tuple(run.files.seed for run in seeds),
        episodes=len(seeds[0].evaluations[-1].returns),
        steps=on_policy_steps(seeds[0], [evaluation.cycle for evaluation in seeds[0].evaluations]),
        returns=of_each(np.mean),
        worst=of_each(np.min).min(axis=0),
        best=of_each(np.max).max(axis=0),
    )


def _check_alike(name: str, seeds: Sequence[Run]) -> None:
    """Check that the evaluations of all seeds are at the same cycles and of equally many episodes."""
    cycles = [[evaluation.cycle for evaluation in run.evaluations] for run in seeds]
    for run, its_cycles in zip(seeds, cycles, strict=True):
        if its_cycles != cycles[0]:
            raise UsbpoError(
                f"{name}: seeds {seeds[0].files.seed} and {run.files.seed} are not evaluated at the same cycles; give "
                "seeds of one schedule."
            )
    episodes = sorted({len(evaluation.returns) for run in seeds for evaluation in run.evaluations})
    if len(episodes) > 1:
        raise UsbpoError(
            f"{name}: its evaluations have {' and '.join(map(str, episodes))} episodes; give seeds with equally "
            "many in each."
        )


def by_task(all_curves: Iterable[Curve], returns: Mapping[str, Sequence[float]] | None = None) -> list[TaskScores]:
    """The scores of every method on every task; methods of one task are compared at their last common step.

    Args:
        all_curves: of every method and task.
        returns: for a task the returns whose first reaching is timed beside the shares of its yardstick.
    """
    tasks: dict[str, list[Curve]] = {}
    for curve in all_curves:
        tasks.setdefault(curve.task, []).append(curve)
    return [_task_scores(task, its_curves, (returns or {}).get(task, ())) for task, its_curves in tasks.items()]


def _task_scores(task: str, its_curves: Sequence[Curve], returns: Sequence[float]) -> TaskScores:
    end = min(curve.steps[-1] for curve in its_curves)
    methods = {}
    for curve in its_curves:
        last = int(np.searchsorted(curve.steps, end, side="right")) - 1
        area = statistics.area_under_curve(curve.steps, curve.returns, end)
        values = {"final": curve.returns[:, last], "area": area}
        methods[curve.method] = Scores(curve, int(curve.steps[last]), values)
    yardstick = published_yardstick(task) or _own_yardstick(methods.values())
    return TaskScores(task, yardstick, methods, tuple(sorted(map(float, returns))))


def _own_yardstick(methods: Iterable[Scores]) -> Yardstick | None:
    """From the lowest untrained policy to the best final return of the experiment itself."""
    every = list(methods)
    low = min(float(statistics.iqm(scores.curve.returns[:, 0])) for scores in every)
    best = max(every, key=lambda scores: float(statistics.iqm(scores.values["final"])))
    high = float(statistics.iqm(best.values["final"]))
    if high <= low:
        return None
    return Yardstick(low, high, f"untrained policy to {best.curve.method} at {best.steps:,} steps, of this experiment")


def pooled(tasks: Sequence[TaskScores]) -> list[Pooled]:
    """Every method that has run on all of several tasks; a task without a yardstick leaves nothing to pool."""
    if len(tasks) < 2:
        return []
    found = []
    for method in _methods(tasks):
        for score in SCORES:
            columns = [
                task.yardstick.share(task.methods[method].values[score])
                for task in tasks
                if method in task.methods and task.yardstick
            ]
            if len(columns) == len(tasks) and len({len(column) for column in columns}) == 1:
                scores = np.stack(columns, axis=1)
                random = statistics.generator(ALL_TASKS, method, score)
                found.append(Pooled(method, score, len(scores), statistics.iqm_over_tasks(scores, random)))
    return found


def improvements(tasks: Sequence[TaskScores]) -> Iterator[Improvement]:
    """The improvement of `BASE` over every other method, by task, and its mean over tasks where there are several."""
    for other in _methods(tasks):
        shared = [task for task in tasks if other != BASE and {BASE, other} <= set(task.methods)]
        for score in SCORES:
            pairs = [(task.methods[BASE].values[score], task.methods[other].values[score]) for task in shared]
            for task, (x, y) in zip(shared, pairs, strict=True):
                random = statistics.generator(task.task, BASE, other, score)
                one, _ = statistics.improvement_by_task(x[:, None], y[:, None], random)
                estimate = Estimate(one.value[0], one.low[0], one.high[0])
                yield Improvement(task.task, other, score, len(x), len(y), estimate)
            sizes = {(len(x), len(y)) for x, y in pairs}
            if len(shared) > 1 and len(sizes) == 1:
                x, y = (np.stack(columns, axis=1) for columns in zip(*pairs, strict=True))
                random = statistics.generator(ALL_TASKS, BASE, other, score)
                _, mean = statistics.improvement_by_task(x, y, random)
                yield Improvement(ALL_TASKS, other, score, len(x), len(y), mean)


def _methods(tasks: Iterable[TaskScores]) -> list[str]:
    return list(dict.fromkeys(method for task in tasks for method in task.methods))
