"""Runs are compared by their published evaluations alone, to the bytes of the results that they were drawn with."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.workflow import finished_workspace

from usbpo.commands import cli
from usbpo.report.evaluations import COLUMNS

OF_EVALUATIONS = (
    *("final_returns.csv", "final_returns.md", "learning_curves.csv", "learning_curves.svg", "learning_curves.png"),
    *("comparison.csv", "comparison.md", "steps_to_return.csv", "aggregate.csv", "metrics.json"),
    *("probability_of_improvement.csv", "probability_of_improvement.svg", "beside_published.csv"),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the test experiment left; not to be changed."""
    return finished_workspace(tmp_path_factory) / "data/results/test"


def test_the_evaluations_alone_give_the_bytes_of_the_results(results: Path, tmp_path: Path) -> None:
    words = ["compare", str(results / "evaluations.csv"), "--output", str(tmp_path / "out"), "--experiment", "test"]
    assert cli.main(words) == 0
    for name in OF_EVALUATIONS:
        assert (tmp_path / "out" / name).read_bytes() == (results / name).read_bytes(), name


def test_a_method_of_a_second_file_stands_beside_those_of_the_first(results: Path, tmp_path: Path) -> None:
    with open(results / "evaluations.csv", newline="") as file:
        rows = list(csv.reader(file))
    ours = sorted({row[1] for row in rows[1:]})
    paths = [tmp_path / f"{method}.csv" for method in ours]
    for path, method in zip(paths, ours, strict=True):
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([rows[0], *(row for row in rows[1:] if row[1] == method)])
    assert cli.main(["compare", *map(str, paths), "--output", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out/comparison.csv", newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == set(ours)


def cell(line: int, column: int, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[line][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cell(0, 0, "tasks"), "its columns are not task, method, seed, "),
        (cell(3, 7, "nan"), "line 4 is no episode of an evaluation (a number is out of its range)"),
        (cell(3, 7, "much"), "line 4 is no episode of an evaluation"),
        (cell(3, 2, "-1"), "line 4 is no episode of an evaluation"),
        (cell(3, 4, "9" * 40), "line 4 is no episode of an evaluation"),
        (cell(3, 0, ""), "line 4 is no episode of an evaluation"),
        (lambda rows: rows[2].pop(), "line 3 is no episode of an evaluation"),
        (lambda rows: rows.pop(1), "are not in order, each once, at the ends of cycles of one length"),
        (lambda rows: rows.insert(2, rows[2]), "are not in order, each once, at the ends of cycles of one length"),
        (cell(-1, 4, "7"), "are not in order, each once, at the ends of cycles of one length"),
        (lambda rows: rows.clear(), "its columns are not task, method, seed, "),
        (lambda rows: rows.__delitem__(slice(1, None)), "no runs are given"),
    ],
)
def test_evaluations_that_are_none_are_named(
    results: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[list[list[str]]], None],
    said: str,
) -> None:
    with open(results / "evaluations.csv", newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with open(tmp_path / "e.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert cli.main(["compare", str(tmp_path / "e.csv"), "--output", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert error.startswith("usbpo compare: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0" * 300, b'"' + b"x" * 200_000])
def test_a_file_that_is_no_csv_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "e.csv").write_bytes(content)
    assert cli.main(["compare", str(tmp_path / "e.csv"), "--output", str(tmp_path / "out")]) == 1
    assert "e.csv: " in capfd.readouterr().err


def test_a_run_in_two_files_is_named(results: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(results / "evaluations.csv")
    assert cli.main(["compare", path, path, "--output", str(tmp_path)]) == 1
    assert "stands in a file before it, too; give it once." in capfd.readouterr().err


def evaluations(path: Path, *seeds: dict[int, int], method: str = "usbpo") -> Path:
    """A file of seeds that are evaluated at some cycles of 250 steps, in so many episodes each."""
    rows = [
        ["Pendulum", method, seed, cycle, 250 * cycle, episode, episode, float(cycle), 200]
        for seed, cycles in enumerate(seeds)
        for cycle, episodes in cycles.items()
        for episode in range(episodes)
    ]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (({0: 1, 1: 1, 4: 1}, {0: 1, 3: 1, 4: 1}), "Pendulum/usbpo: seeds 0 and 1 are not evaluated at the"),
        (({0: 1, 1: 1, 2: 1, 4: 1}, {0: 1, 4: 1}), "Pendulum/usbpo: seeds 0 and 1 are not evaluated at the"),
        (({0: 1, 4: 1}, {0: 2, 4: 2}), "Pendulum/usbpo: its evaluations have 1 and 2 episodes"),
        (({0: 1, 4: 2},), "e.csv: the evaluations of Pendulum/usbpo/seed-0 have 1 and 2 episodes"),
    ],
)
def test_seeds_that_are_evaluated_otherwise_are_not_drawn_over_each_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seeds: tuple[dict[int, int], ...], said: str
) -> None:
    path = evaluations(tmp_path / "e.csv", *seeds)
    assert cli.main(["compare", str(path), "--output", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_methods_may_be_evaluated_otherwise(tmp_path: Path) -> None:
    often = evaluations(tmp_path / "often.csv", {0: 1, 1: 1, 2: 1, 4: 1})
    seldom = evaluations(tmp_path / "seldom.csv", {0: 2, 3: 2, 4: 2}, method="mbpo")
    assert cli.main(["compare", str(often), str(seldom), "--output", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out/learning_curves.csv", newline="") as file:
        steps = [(row["method"], float(row["on_policy_steps"])) for row in csv.DictReader(file)]
    assert steps == [("usbpo", 250 * n) for n in (0, 1, 2, 4)] + [("mbpo", 250 * n) for n in (0, 3, 4)]
