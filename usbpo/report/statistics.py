"""Statistics over seeds: interquartile means, stratified-bootstrap intervals, areas, steps to a return, improvement.

A score is one number of one run, for instance its final return; a run is a seed and enters by the mean of its episodes,
so episodes are never counted as runs. Intervals and names are those of Agarwal et al., *Deep Reinforcement Learning at
the Edge of the Statistical Precipice* (NeurIPS 2021), whose library rliable is the oracle of the tests. Bootstraps are
stratified: the runs of each task are drawn with replacement among the runs of that task, all tasks are kept.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

REPETITIONS = 2000
"""Bootstrap resamples. The ends of a 95 % interval move by about 3 % of its width between two sets of so many."""
PIECE = 200
"""Points of a curve that are resampled at once."""
LEVEL = 0.95
"""Share of the resamples that lies within an interval."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and the ends of its bootstrap interval, of one shape; the ends are NaN where a run stands alone."""

    value: Array
    low: Array
    high: Array


def generator(*names: str) -> np.random.Generator:
    """A numpy generator for the resamples of what `names` say.

    It depends on the names alone, so that another method in the experiment moves no interval.
    """
    entropy = np.random.SeedSequence(entropy=0, spawn_key=tuple(zlib.crc32(name.encode()) for name in names))
    return np.random.Generator(np.random.PCG64(entropy))


def iqm(scores: Array) -> Array:
    """Interquartile mean over the first axis: the mean without the ⌊n/4⌋ lowest and as many highest of n scores."""
    return np.asarray(trim_mean(scores, 0.25, axis=0), dtype=np.float64)


def resamples(num_runs: int, num_tasks: int, random: np.random.Generator, repetitions: int = REPETITIONS) -> Indices:
    """Indices of runs (repetitions, num_runs, num_tasks), drawn with replacement within each task."""
    return random.integers(num_runs, size=(repetitions, num_runs, num_tasks))


def iqm_over_seeds(scores: Array, random: np.random.Generator, repetitions: int = REPETITIONS) -> Estimate:
    """The interquartile mean over seeds at every point of a curve, with its bootstrap interval.

    A resample draws whole seeds, the same for all points.

    Args:
        scores: (num_seeds, num_points)
        random: draws the resamples.
        repetitions: number of resamples.

    Returns:
        Arrays (num_points,).
    """
    drawn = np.sort(resamples(len(scores), 1, random, repetitions)[:, :, 0], axis=1)
    # A few seeds can be drawn in a few ways only: 126 for 5 seeds. Each way is computed once.
    ways, which = np.unique(drawn, axis=0, return_inverse=True)
    # In pieces, so that many seeds at many points stay small in memory.
    pieces = [
        _estimate(iqm(piece), iqm(piece[ways].swapaxes(0, 1))[which.reshape(-1)], len(scores))
        for piece in np.array_split(scores, -(-scores.shape[1] // PIECE), axis=1)
    ]
    return Estimate(*(np.concatenate([getattr(e, name) for e in pieces]) for name in ("value", "low", "high")))


def iqm_over_tasks(scores: Array, random: np.random.Generator, repetitions: int = REPETITIONS) -> Estimate:
    """The interquartile mean of the scores of all runs on all tasks, with its stratified-bootstrap interval.

    Args:
        scores: (num_runs, num_tasks), in units in which tasks can be compared.
        random: draws the resamples.
        repetitions: number of resamples.

    Returns:
        Arrays of no dimension.
    """
    num_runs, num_tasks = scores.shape
    drawn = scores[resamples(num_runs, num_tasks, random, repetitions), np.arange(num_tasks)]
    replicates = iqm(drawn.reshape(repetitions, -1).T)
    return _estimate(iqm(scores.reshape(-1)), replicates, num_runs)


def probability_of_improvement(x: Array, y: Array) -> Array:
    """P(X > Y) for each task: the share of pairs of runs in which X scores higher; a tie counts one half.

    Args:
        x: (num_runs_x, num_tasks)
        y: (num_runs_y, num_tasks)

    Returns:
        (num_tasks,)
    """
    return np.asarray(_wins(x, y).mean(axis=(0, 1)))


def improvement_by_task(
    x: Array, y: Array, random: np.random.Generator, repetitions: int = REPETITIONS
) -> tuple[Estimate, Estimate]:
    """P(X > Y) for each task (num_tasks,), and its mean over tasks (no dimension), with stratified-bootstrap intervals.

    Args:
        x: (num_runs_x, num_tasks)
        y: (num_runs_y, num_tasks)
        random: draws the resamples, those of X before those of Y.
        repetitions: number of resamples.
    """
    shares = [_shares(resamples(len(scores), scores.shape[1], random, repetitions)) for scores in (x, y)]
    replicates = np.einsum("rit,ijt,rjt->rt", shares[0], _wins(x, y), shares[1], optimize=True)
    by_task, runs = probability_of_improvement(x, y), min(len(x), len(y))
    return (
        _estimate(by_task, replicates, runs),
        _estimate(np.asarray(by_task.mean()), replicates.mean(axis=1), runs),
    )


def area_under_curve(steps: Array, returns: Array, end: float) -> Array:
    """Mean height of each curve from its first point to `end`, in units of return.

    The trapezoidal area divided by the span; the curve is linear between its points, and `end` may lie between two.

    Args:
        steps: (num_points,), ascending
        returns: (num_seeds, num_points)
        end: on-policy steps, between the first and the last of `steps`.

    Returns:
        (num_seeds,)
    """
    x = np.append(steps[steps < end], end)
    y = np.stack([np.interp(x, steps, line) for line in returns])
    span = x[-1] - x[0]
    return np.asarray(np.trapezoid(y, x, axis=1) / span if span > 0 else y[:, -1], dtype=np.float64)


def steps_to_reach(steps: Array, returns: Array, level: float) -> Array:
    """On-policy steps at the first evaluation at or above `level`, NaN where there is none.

    Args:
        steps: (num_points,), ascending
        returns: (num_seeds, num_points)
        level: a return.

    Returns:
        (num_seeds,)
    """
    reached = returns >= level
    return np.where(reached.any(axis=1), steps[reached.argmax(axis=1)], np.nan)


def median_with_never(steps: Array) -> float:
    """The median over seeds of `steps` (num_seeds,), where NaN means never and is later than any step.

    NaN if the middle seed, or one of the two middle seeds, never got there.
    """
    median = float(np.median(np.where(np.isnan(steps), np.inf, steps)))
    return median if np.isfinite(median) else float("nan")


def _wins(x: Array, y: Array) -> Array:
    """(num_runs_x, num_runs_y, num_tasks): 1 where X scores higher, ½ for a tie, else 0."""
    return (np.sign(x[:, None] - y[None]) + 1) / 2


def _shares(drawn: Indices) -> Array:
    """How often each run was drawn (repetitions, num_runs, num_tasks), as a share of all draws of its task."""
    runs = np.arange(drawn.shape[1])
    return np.asarray((drawn[:, :, None, :] == runs[:, None]).mean(axis=1))


def _estimate(value: Array, replicates: Array, runs: int) -> Estimate:
    """`replicates` (repetitions, …) as a percentile interval around `value` (…)."""
    if runs < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Estimate(value, np.asarray(low), np.asarray(high))
