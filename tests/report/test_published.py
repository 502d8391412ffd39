"""Published curves: whole, exact about what may be compared, and no more than their sources give."""

import csv

import numpy as np
import pytest
from helpers.workflow import FOLDERS

from usbpo.experiment.loading import load_run
from usbpo.report import published as module
from usbpo.report.published import DATA, NAMES, SOURCES, published, published_yardstick, related, representative

TASKS = ("Hopper", "Walker2d", "HalfCheetah", "Swimmer", "AntTruncated", "HumanoidTruncated")


def rows() -> list[dict[str, str]]:
    with DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_has_a_known_source_and_algorithm_and_finite_numbers() -> None:
    for row in rows():
        assert row["source"] in SOURCES
        assert row["algorithm"] in NAMES
        assert row["seed"] == "mean" or row["seed"].isdigit()
        assert np.isfinite([float(row["env_steps"]), float(row["return"])]).all()


def test_every_source_is_described() -> None:
    text = DATA.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"`{source}`" in text for source in SOURCES)


def test_no_source_has_seeds_that_are_a_mean_and_a_spread_in_disguise() -> None:
    points: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in rows():
        seeds = points.setdefault((row["task"], row["algorithm"], row["source"]), {})
        seeds.setdefault(row["seed"], []).append(float(row["return"]))
    for curve, seeds in points.items():
        values = np.array(list(seeds.values()))
        if len(values) > 2:
            gaps = np.diff(values, axis=0)
            assert np.abs(gaps - gaps.mean(axis=0)).max() > 1, curve


def test_a_curve_is_the_interquartile_mean_over_the_seeds_of_its_source() -> None:
    (curve,) = [c for c in published("Hopper") if (c.algorithm, SOURCES[c.source]) == ("sac", "Tianshou")]
    at = [float(r["return"]) for r in rows() if r["source"] == curve.source and r["task"] == "Hopper"][46::47]
    assert curve.seeds == 10
    # Ten seeds: without the two lowest and the two highest.
    np.testing.assert_allclose(curve.returns[-1], np.mean(sorted(at)[2:-2]))
    assert (np.diff(curve.steps) > 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_mbpo_is_published_for_the_tasks_of_its_paper(task: str) -> None:
    assert load_run(task, "mbpo", FOLDERS)  # a task of ours
    yardstick = published_yardstick(task)
    assert yardstick is not None
    assert yardstick.level(0) == 0
    assert yardstick.level(1) == representative(task)["mbpo"].returns[-1] > 0
    np.testing.assert_allclose(yardstick.share(np.array([yardstick.level(0.25)])), 0.25)


def test_the_yardstick_of_hopper_is_the_known_final_return() -> None:
    yardstick = published_yardstick("Hopper")
    assert yardstick is not None
    assert round(yardstick.high) == 3280
    assert yardstick.source == "published MBPO (erl_lib) at 125,019 steps"


def test_a_curve_with_another_observation_is_related_and_no_yardstick() -> None:
    assert {curve.task for curve in related("AntTruncated")} == {"Ant"}
    assert {curve.task for curve in published("AntTruncated")} == {"AntTruncated"}
    assert related("Hopper") == []
    assert all(curve.task == "HumanoidTruncated" for curve in representative("HumanoidTruncated").values())


def test_nothing_is_published_for_a_task_of_ones_own() -> None:
    assert published("my-task") == related("my-task") == []
    assert published_yardstick("my-task") is None


def test_the_first_source_speaks_for_an_algorithm() -> None:
    names = [SOURCES[curve.source] for curve in published("Hopper") if curve.algorithm == "mbpo"]
    assert names == ["erl_lib", "CMLO's figure", "x35f"]
    assert module.representative("Hopper")["mbpo"].label == "MBPO (erl_lib)"
