"""Statistics over seeds: those of rliable on the same numbers, worked by hand, and the same in every run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from usbpo.artifacts.files import read_json
from usbpo.report import statistics
from usbpo.report.statistics import Array, Estimate

RECORDED = read_json(Path(__file__).parents[1] / "data/rliable.json")
CASES = RECORDED["cases"]
REPETITIONS = 20_000
"""Resamples of ours in the comparison; rliable had `RECORDED["repetitions"]`."""

finite = st.floats(-1e3, 1e3, allow_nan=False)


def scores(runs: int = 5, tasks: int = 3) -> st.SearchStrategy[Array]:
    return arrays(np.float64, (runs, tasks), elements=finite)


def replicates_of_iqm(x: Array, random: np.random.Generator) -> Array:
    """Bootstrap replicates whose resamples are drawn the slow way, one after the other."""
    runs, tasks = x.shape
    drawn = [np.stack([x[random.integers(runs, size=runs), t] for t in range(tasks)], 1) for _ in range(4000)]
    return statistics.iqm(np.array([each.reshape(-1) for each in drawn]).T)


def replicates_of_improvement(x: Array, y: Array, random: np.random.Generator) -> Array:
    def resample(z: Array) -> Array:
        return np.stack([z[random.integers(len(z), size=len(z)), t] for t in range(z.shape[1])], 1)

    return np.array([statistics.probability_of_improvement(resample(x), resample(y)).mean() for _ in range(4000)])


def assert_same_interval(ours: Estimate, theirs: dict[str, float], replicates: Array) -> None:
    """Each end of our interval lies where the recorded one may lie by chance.

    The end at share p of n resamples is the replicates' quantile at a share that is binomial around p with standard
    error √(p(1−p)/n): 0.0011 for our 20,000 resamples, 0.0016 for rliable's 10,000 and 0.0025 for the 4,000 of
    `replicates`, by which shares become values. Four standard errors of all three together are 0.013.
    """
    np.testing.assert_allclose(ours.value, theirs["value"], rtol=1e-12, atol=1e-12)
    for share, end, recorded in ((0.025, ours.low, theirs["low"]), (0.975, ours.high, theirs["high"])):
        least, most = np.quantile(replicates, [share - 0.013, share + 0.013])
        assert least - 1e-9 <= recorded <= most + 1e-9
        assert least - 1e-9 <= end <= most + 1e-9


@pytest.mark.parametrize("name", CASES)
def test_all_tasks_together_are_scored_as_by_rliable(name: str) -> None:
    case = CASES[name]
    x, y = np.array(case["x"]), np.array(case["y"])
    ours = statistics.iqm_over_tasks(x, np.random.default_rng(1), REPETITIONS)
    assert_same_interval(ours, case["together"]["iqm"], replicates_of_iqm(x, np.random.default_rng(2)))
    _, mean = statistics.improvement_by_task(x, y, np.random.default_rng(3), REPETITIONS)
    theirs = case["together"]["improvement"]
    assert_same_interval(mean, theirs, replicates_of_improvement(x, y, np.random.default_rng(4)))


@pytest.mark.parametrize("name", CASES)
def test_each_task_is_scored_as_by_rliable(name: str) -> None:
    case = CASES[name]
    x, y = np.array(case["x"]), np.array(case["y"])
    by_point = statistics.iqm_over_seeds(x, np.random.default_rng(5), REPETITIONS)
    by_task, _ = statistics.improvement_by_task(x, y, np.random.default_rng(6), REPETITIONS)
    for task, theirs in enumerate(case["tasks"]):
        x1, y1 = x[:, [task]], y[:, [task]]
        replicates = replicates_of_iqm(x1, np.random.default_rng(7))
        assert_same_interval(at(by_point, task), theirs["iqm"], replicates)
        replicates = replicates_of_improvement(x1, y1, np.random.default_rng(8))
        assert_same_interval(at(by_task, task), theirs["improvement"], replicates)


def at(estimate: Estimate, place: int) -> Estimate:
    return Estimate(estimate.value[place], estimate.low[place], estimate.high[place])


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert statistics.iqm(np.array([0.0, 1, 2, 3, 4, 5, 6, 1000])) == 3.5
    # One in four of five is one; of three it is none.
    assert statistics.iqm(np.array([-1000.0, 2, 3, 4, 1000])) == 3
    assert statistics.iqm(np.array([1.0, 2, 9])) == 4


def test_a_single_seed_has_no_interval() -> None:
    curve = statistics.iqm_over_seeds(np.array([[1.0, 2.0]]), statistics.generator("x"))
    np.testing.assert_array_equal(curve.value, [1, 2])
    assert np.isnan([curve.low, curve.high]).all()
    by_task, mean = statistics.improvement_by_task(np.ones((1, 2)), np.zeros((1, 2)), statistics.generator("x"))
    assert (by_task.value == 1).all()
    assert np.isnan([mean.low, mean.high]).all()
    _, against_many = statistics.improvement_by_task(np.ones((1, 2)), np.eye(2), statistics.generator("x"))
    assert against_many.value == 0.75
    assert np.isnan(against_many.low)


def test_names_alone_choose_the_resamples() -> None:
    x = np.random.default_rng(0).normal(size=(5, 7))
    one, again, other = (statistics.iqm_over_seeds(x, statistics.generator("Hopper", n)) for n in ("a", "a", "b"))
    np.testing.assert_array_equal(one.low, again.low)
    assert (one.low != other.low).any()


def test_a_resample_draws_whole_seeds() -> None:
    # Where one seed is always a copy of the others shifted by its number, so are the ends of the interval.
    x = np.arange(5.0)[:, None] + np.zeros(300)
    estimate = statistics.iqm_over_seeds(x, statistics.generator("x"))
    assert len(set(estimate.low)) == len(set(estimate.high)) == 1
    assert estimate.low.shape == (300,)


@given(scores())
def test_an_interval_lies_within_the_scores(x: Array) -> None:
    estimate = statistics.iqm_over_seeds(x, np.random.default_rng(0), 50)
    assert (estimate.low <= estimate.high).all()
    assert (estimate.low >= x.min(axis=0) - 1e-9).all()
    assert (estimate.high <= x.max(axis=0) + 1e-9).all()


@given(scores(), scores(4))
def test_improvement_over_each_other_adds_up_to_one(x: Array, y: Array) -> None:
    one, other = statistics.probability_of_improvement(x, y), statistics.probability_of_improvement(y, x)
    np.testing.assert_allclose(one + other, 1)
    np.testing.assert_allclose(statistics.probability_of_improvement(x, x), 0.5)


def test_a_tie_counts_one_half() -> None:
    x, y = np.array([[3.0], [1.0]]), np.array([[1.0], [2.0]])
    assert statistics.probability_of_improvement(x, y) == (1 + 1 + 0.5 + 0) / 4


def test_the_area_is_the_mean_height_up_to_the_end() -> None:
    steps, returns = np.array([0.0, 100, 300]), np.array([[0.0, 10, 30], [4.0, 4, 4]])
    np.testing.assert_allclose(statistics.area_under_curve(steps, returns, 300), [(500 + 4000) / 300, 4])
    # Between two points the curve is a straight line.
    np.testing.assert_allclose(statistics.area_under_curve(steps, returns, 200), [(500 + 1500) / 200, 4])
    np.testing.assert_allclose(statistics.area_under_curve(steps, returns, 0), [0, 4])


@given(scores(3, 6), st.floats(0.1, 100), st.floats(-100, 100))
def test_the_area_has_the_unit_of_a_return(returns: Array, factor: float, shift: float) -> None:
    steps = np.array([0.0, 1, 3, 4, 8, 9])
    area = statistics.area_under_curve(steps, returns, 7.0)
    np.testing.assert_allclose(
        statistics.area_under_curve(steps, factor * returns + shift, 7.0), factor * area + shift, atol=1e-6
    )


def test_a_return_is_reached_by_the_first_evaluation_at_or_above_it() -> None:
    steps = np.array([0.0, 250, 500])
    returns = np.array([[0.0, 50, 20], [0.0, 49, 60], [0.0, 1, 2]])
    np.testing.assert_array_equal(statistics.steps_to_reach(steps, returns, 50), [250, 500, np.nan])


@pytest.mark.parametrize(
    ("steps", "median"),
    [([1.0, 2.0, np.nan], 2.0), ([1.0, np.nan, np.nan], np.nan), ([1.0, 3.0], 2.0), ([1.0, np.nan], np.nan)],
)
def test_never_is_later_than_any_step(steps: list[Any], median: float) -> None:
    np.testing.assert_equal(statistics.median_with_never(np.array(steps)), median)
