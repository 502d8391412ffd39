"""Figures and tables of an experiment: right numbers, the same bytes every time, and clear errors."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from usbpo.artifacts import evaluations, metrics
from usbpo.artifacts.header import Header
from usbpo.artifacts.layout import EVALUATION, PHASE1_METRICS, PHASE2_METRICS, POLICY_METRICS
from usbpo.errors import UsbpoError
from usbpo.experiment.run_files import FILES, RunFiles, parse_returns, returns_option
from usbpo.report import comparison, curves, diagnostics, drawing, scores
from usbpo.report.records import Phase1, Run, read_run
from usbpo.report.results import results

EPISODES = 3


def run(method: str = "usbpo", seed: int = 0, cycles: int = 3, task: str = "Pendulum", **options: Any) -> RunFiles:
    return RunFiles(task, method, seed, cycles, 250, phase2=method == "usbpo", **options)


def write_evaluation(
    root: Path, files: RunFiles, cycle: int, returns: Sequence[float], header: dict[str, Any] | None = None
) -> Path:
    path = root / files.path(EVALUATION, cycle)
    identity = {**identity_of(files, cycle), "kind": "evaluation", **(header or {})}
    found = Header(**identity, parameters={"on_policy_steps": files.steps(cycle)})
    number = np.arange(len(returns))
    evaluations.write(path, found, evaluations.Episodes(np.array(returns), number + 10, number + 100))
    return path


def identity_of(files: RunFiles, cycle: int) -> dict[str, Any]:
    return {"task": files.task, "method": files.method, "seed": files.seed, "cycle": cycle}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a stage's metrics, of the run and cycle that they say."""
    identity = {name: content[name] for name in ("task", "method", "seed", "cycle")}
    metrics.write(path, Header("test", **identity), content, "")


def read_json(path: Path) -> dict[str, Any]:
    return metrics.read(path)[0]


def write_run(root: Path, files: RunFiles) -> None:
    """A run that learns: returns 100 · cycle + 10 · seed + episode."""
    for cycle in files.evaluations():
        returns = [100.0 * cycle + 10.0 * files.seed + episode for episode in range(EPISODES)]
        write_evaluation(root, files, cycle, returns)
    for cycle in files.model_updates():
        errors = [0.1 / cycle * (1 + member) for member in range(4)]
        found = {"holdout_mse_before": [2 * error for error in errors], "holdout_mse": errors, "elites": [0, 1]}
        write_json(root / files.path(PHASE1_METRICS, cycle), {**identity_of(files, cycle), "epochs": 9, **found})
    for cycle in files.fine_tunings():
        before = {"shift": 2.0 / cycle, "bias": 1.0 / cycle, "sum": 3.0 / cycle}
        after = {"shift": 1.0 / cycle, "bias": 0.5 / cycle, "sum": 1.5 / cycle}
        found = {"before": before, "after": after, "steps": 30, "best_step": 19, "stopped": "no improvement"}
        write_json(root / files.path(PHASE2_METRICS, cycle), {**identity_of(files, cycle), **found})
    for cycle in files.policy_updates():
        history = [
            {
                "update": 1000 * (cycle - 1) + update,
                **{"critic_loss": 8.0 / cycle, "actor_loss": -1.5, "q_real": 5.0 * cycle, "q_model": 6.0 * cycle},
                **{"entropy": 1.0 / cycle, "temperature": 0.5 / cycle},
            }
            for update in (0, 500, 999)
        ]
        found = {"updates": 1000, "target_entropy": -0.05, "history": history}
        write_json(root / files.path(POLICY_METRICS, cycle), {**identity_of(files, cycle), **found})


def experiment(root: Path, runs: Sequence[RunFiles]) -> Path:
    """Write the runs and their results; return the results' folder."""
    for files in runs:
        write_run(root, files)
    results(experiment="trial", runs=runs, output=root / "out", root=root)
    return root / "out"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with three seeds each."""
    root = tmp_path_factory.mktemp("two_methods")
    return experiment(root, [run(method, seed) for method in ("usbpo", "mbpo") for seed in range(3)])


def test_every_result_is_written_and_nothing_else(two_methods: Path) -> None:
    assert sorted(path.name for path in two_methods.iterdir()) == sorted(FILES)
    assert all((two_methods / name).stat().st_size > 0 for name in FILES)


def test_final_returns_count_seeds_not_episodes(two_methods: Path) -> None:
    # Last evaluation of seed s: 300 + 10 s + {0, 1, 2}, mean 301 + 10 s; over seeds 301, 311, 321.
    rows = table(two_methods / "final_returns.csv")
    expected = {"seeds": "3", "on_policy_steps": "750", "mean": "311.0", "std": "10.0", "min": "301.0", "max": "321.0"}
    assert rows == [{"task": "Pendulum", "method": method, **expected} for method in ("usbpo", "mbpo")]


def test_the_markdown_table_says_the_same_rounded(two_methods: Path) -> None:
    text = (two_methods / "final_returns.md").read_text(encoding="utf-8")
    assert text.startswith("# Final returns of the experiment trial\n")
    assert "| Pendulum | usbpo | 3 | 750 | 311.0 | 10.00 | 301.0 | 321.0 |\n" in text


def test_one_seed_has_no_spread_over_seeds(tmp_path: Path) -> None:
    out = experiment(tmp_path, [run()])
    assert table(out / "final_returns.csv")[0]["std"] == ""
    assert "| Pendulum | usbpo | 1 | 750 | 301.0 | – | 301.0 | 301.0 |" in (out / "final_returns.md").read_text("utf-8")


def test_evaluations_list_every_episode(two_methods: Path) -> None:
    rows = table(two_methods / "evaluations.csv")
    assert len(rows) == 2 * 3 * 4 * EPISODES
    assert rows[3 * 4 * EPISODES - 1] == {
        **{"task": "Pendulum", "method": "usbpo", "seed": "2", "cycle": "3", "on_policy_steps": "750"},
        **{"episode": "2", "episode_seed": "102", "return": "322.0", "length": "12"},
    }


def test_model_shift_and_bias_has_a_row_for_each_phase_2(two_methods: Path) -> None:
    rows = table(two_methods / "model_shift_and_bias.csv")
    assert [(row["method"], row["seed"], row["cycle"]) for row in rows] == [
        ("usbpo", seed, cycle) for seed in "012" for cycle in "23"
    ]
    assert rows[0] == {
        **{"task": "Pendulum", "method": "usbpo", "seed": "0", "cycle": "2", "on_policy_steps": "500"},
        **{"shift_before": "1.0", "bias_before": "0.5", "sum_before": "1.5"},
        **{"shift_after": "0.5", "bias_after": "0.25", "sum_after": "0.75"},
        **{"steps": "30", "best_step": "19", "stopped": "no improvement"},
    }


def test_holdout_error_names_the_elites(two_methods: Path) -> None:
    rows = table(two_methods / "holdout_error.csv")
    assert len(rows) == 2 * 3 * 3 * 4
    assert [row["elite"] for row in rows[:4]] == ["true", "true", "false", "false"]
    assert (rows[1]["member"], rows[1]["holdout_mse"], rows[1]["holdout_mse_before"]) == ("1", "0.2", "0.4")


def test_policy_diagnostics_hold_the_whole_history(two_methods: Path) -> None:
    rows = table(two_methods / "policy_diagnostics.csv")
    assert [row["update"] for row in rows[:9]] == [str(1000 * c + u) for c in range(3) for u in (0, 500, 999)]
    assert rows[3]["q_model"] == "12.0"
    assert {row["target_entropy"] for row in rows} == {"-0.05"}


def read(root: Path, runs: Sequence[RunFiles]) -> list[Run]:
    """Write runs and read them again."""
    for files in runs:
        write_run(root, files)
    return [read_run(files, root) for files in runs]


def test_learning_curves_draw_seeds_thin_and_their_interquartile_mean_bold(tmp_path: Path) -> None:
    # Five seeds end at 301, 311, …, 341: without the lowest and the highest the mean is 321.
    runs = read(tmp_path, [run(method, seed) for method in ("usbpo", "mbpo") for seed in range(5)])
    figure = curves.learning_curves(scores.curves(runs))
    (axes,) = figure.axes
    bold = [line for line in axes.lines if line.get_linewidth() > 2]
    thin = [line for line in axes.lines if line.get_linewidth() <= 1]
    assert (len(bold), len(thin)) == (2, 10)
    for line in bold:
        np.testing.assert_array_equal(line.get_xdata(), [0, 250, 500, 750])
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [21, 121, 221, 321])
    assert {text.get_text() for text in axes.texts} == {"USB-PO", "MBPO"}
    assert "5 seeds" in figure.get_supxlabel()


def test_the_plotted_curve_stands_beside_it(two_methods: Path) -> None:
    rows = table(two_methods / "learning_curves.csv")
    assert [row["on_policy_steps"] for row in rows] == ["0", "250", "500", "750"] * 2
    last = rows[3]
    assert (last["seeds"], last["iqm"], last["band"]) == ("3", "311.0", "seeds")
    # A third of a third of a third of the resamples of three seeds is the lowest seed alone: 3.7 %, more than 2.5 %.
    assert (last["low"], last["high"]) == ("301.0", "321.0")


def test_a_single_seed_is_shaded_from_worst_to_best_episode_and_says_so(tmp_path: Path) -> None:
    figure = curves.learning_curves(scores.curves(read(tmp_path, [run()])))
    (band,) = figure.axes[0].collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (0, 302)
    assert figure.get_supxlabel().startswith("One seed.")
    assert "3 evaluation episodes" in figure.get_supxlabel()
    row = table(experiment(tmp_path, [run()]) / "learning_curves.csv")[-1]
    assert (row["iqm"], row["low"], row["high"], row["band"]) == ("301.0", "300.0", "302.0", "episodes")


def test_tasks_have_a_panel_each(tmp_path: Path) -> None:
    runs = [run(task=task, method=method) for task in ("A", "B", "C", "D", "E") for method in ("usbpo", "mbpo")]
    figure = curves.learning_curves(scores.curves(read(tmp_path, runs)))
    assert [axes.get_title() for axes in figure.axes] == ["A", "B", "C", "D", "E"]


def test_published_curves_stand_beside_ours_as_far_as_ours_go(tmp_path: Path) -> None:
    long = RunFiles("Hopper", "mbpo", 0, cycles=4, cycle_steps=5000)
    evaluated = scores.curves(read(tmp_path, [long]))
    (axes,) = curves.learning_curves(evaluated).axes
    assert {text.get_text() for text in axes.texts} >= {"MBPO", "MBPO (erl_lib), published", "SAC (erl_lib), published"}
    assert max(float(np.max(line.get_xdata())) for line in axes.lines) == 20000
    (axes,) = curves.beside_published(evaluated).axes
    names = {text.get_text() for text in axes.texts}
    assert {"MBPO (erl_lib)", "MBPO (x35f)", "MACURA (erl_lib)", "SAC (Tianshou)"} <= names
    assert max(float(np.max(line.get_xdata())) for line in axes.lines) == 4 * 20000
    longer = RunFiles("Hopper", "mbpo", 0, cycles=8, cycle_steps=5000)
    (axes,) = curves.beside_published(scores.curves(read(tmp_path / "longer", [longer]))).axes
    assert max(float(np.max(line.get_xdata())) for line in axes.lines) == 125019


def test_published_curves_without_a_second_point_so_early_are_left_out(tmp_path: Path) -> None:
    short = RunFiles("Hopper", "mbpo", 0, cycles=2, cycle_steps=250)
    (axes,) = curves.learning_curves(scores.curves(read(tmp_path, [short]))).axes
    assert {text.get_text() for text in axes.texts} == {"MBPO"}


def test_published_rows_name_their_source(tmp_path: Path) -> None:
    rows = table(experiment(tmp_path, [run(task="AntTruncated")]) / "beside_published.csv")
    assert rows[0]["source"] == "this experiment"
    assert {row["published_task"] for row in rows} == {"", "Ant"}
    assert "4kubo/erl_lib results/main/gym" in {row["source"] for row in rows}


def test_a_task_of_ones_own_has_nothing_beside_it(tmp_path: Path) -> None:
    evaluated = scores.curves(read(tmp_path, [run()]))
    assert curves.beside_published(evaluated).texts[0].get_text().startswith("Nothing is published for the tasks")


def test_the_metrics_for_dvc_are_the_scores_of_the_comparison(two_methods: Path) -> None:
    found = json.loads((two_methods / "metrics.json").read_text())["Pendulum"]
    assert found["usbpo"] == {"final": 311.0, "area": 161.0, "on_policy_steps": 750, "seeds": 3}
    assert set(found) == {row["method"] for row in table(two_methods / "comparison.csv")}


def test_methods_are_compared_by_return_area_and_steps(two_methods: Path) -> None:
    # A straight line from 11 to 311; nothing is published for the task, so 0 % is the untrained 11 and 100 % is 311.
    row = table(two_methods / "comparison.csv")[0]
    assert (row["method"], row["seeds"], row["on_policy_steps"]) == ("usbpo", "3", "750")
    assert (row["final_iqm"], row["area_iqm"], row["return_50"]) == ("311.0", "161.0", "161.0")
    assert (float(row["final_low"]), float(row["final_high"])) == (301, 321)
    # Seeds pass 161 at 500 steps; 281 at 750.
    assert (row["seeds_there_50"], row["steps_50"], row["steps_90"]) == ("3", "500", "750")
    assert row["yardstick"].startswith("untrained policy to usbpo at 750 steps")
    text = (two_methods / "comparison.md").read_text(encoding="utf-8")
    assert (
        "| Pendulum | usbpo | 3 | 750 | 311.0 [301.0, 321.0] | 161.0 [151.0, 171.0] | 250 | 500 | 750 | 750 |" in text
    )


def test_steps_to_a_return_are_listed_by_seed_and_empty_where_never(tmp_path: Path) -> None:
    files = [run(seed=seed) for seed in range(2)]
    read(tmp_path, files)
    write_evaluation(tmp_path, files[1], 3, [0.0] * 3)
    results(experiment="trial", runs=files, output=tmp_path / "out", root=tmp_path)
    rows = table(tmp_path / "out/steps_to_return.csv")
    assert [(row["seed"], row["on_policy_steps"]) for row in rows if row["share"] == "0.9"] == [
        ("0", "500"),
        ("1", "500"),
    ]
    row = table(tmp_path / "out/comparison.csv")[0]
    assert (row["final_iqm"], row["final_low"], row["final_high"]) == ("150.5", "0.0", "301.0")


def test_steps_to_returns_that_the_experiment_names_stand_beside_the_shares(tmp_path: Path) -> None:
    # At 0, 250, 500, 750 steps seed 0 returns 1, 101, 201, 301 and seed 1 returns 11, 111, 211, 311.
    # 105: seed 0 at 500, seed 1 at 250; the median is 375. 305: seed 0 never, seed 1 at 750; of two seeds one that
    # never gets there leaves no median. 1: both at once.
    files = [run(seed=seed) for seed in range(2)]
    for each in files:
        write_run(tmp_path, each)
    results(experiment="t", runs=files, output=tmp_path / "out", returns={"Pendulum": [305, 1, 105]}, root=tmp_path)
    row = table(tmp_path / "out/comparison.csv")[0]
    of_named = [[row[f"{name}_named_{n}"] for name in ("return", "seeds_there", "steps")] for n in (1, 2, 3)]
    assert of_named == [["1.0", "2", "0"], ["105.0", "2", "375"], ["305.0", "1", ""]]
    assert row["steps_50"] == "500", "the shares are there as before"
    named = [row for row in table(tmp_path / "out/steps_to_return.csv") if not row["share"]]
    assert [(row["return"], row["seed"], row["on_policy_steps"]) for row in named] == [
        *(("1.0", "0", "0"), ("1.0", "1", "0")),
        *(("105.0", "0", "500"), ("105.0", "1", "250")),
        *(("305.0", "0", ""), ("305.0", "1", "750")),
    ]
    text = (tmp_path / "out/comparison.md").read_text(encoding="utf-8")
    assert text.endswith(
        "## Steps to returns that the experiment names\n\n| task | return | usbpo |\n|:--|:--|--:|\n"
        "| Pendulum | 1 | 0 |\n| Pendulum | 105 | 375 |\n| Pendulum | 305 | – (1/2) |\n"
    )
    html = (tmp_path / "out/comparison.html").read_text(encoding="utf-8")
    assert "<tr><td>Pendulum</td><td>105</td><td>375</td></tr>" in html


def test_each_task_has_returns_of_its_own_and_each_method_a_column(tmp_path: Path) -> None:
    files = [run(task="A"), run("mbpo", task="A"), run(task="B", cycles=6), run(task="C")]
    for each in files:
        write_run(tmp_path, each)
    named = {"A": [-2.5], "B": [1000, 600]}
    results(experiment="t", runs=files, output=tmp_path / "out", returns=named, root=tmp_path)
    rows = table(tmp_path / "out/comparison.csv")
    # B returns 601 at its end, 1,500 steps; nothing is asked of C, nor a second return of A.
    assert [(row["task"], row["return_named_1"], row["return_named_2"]) for row in rows] == [
        *(("A", "-2.5", ""), ("A", "-2.5", "")),
        *(("B", "600.0", "1000.0"), ("C", "", "")),
    ]
    text = (tmp_path / "out/comparison.md").read_text(encoding="utf-8")
    assert text.endswith(
        "| task | return | usbpo | mbpo |\n|:--|:--|--:|--:|\n"
        "| A | −2.5 | 0 | 0 |\n| B | 600 | 1,500 |  |\n| B | 1,000 | – (0/1) |  |\n"
    )


def test_a_named_return_needs_no_yardstick(tmp_path: Path) -> None:
    files = run(cycles=1)
    write_run(tmp_path, files)
    write_evaluation(tmp_path, files, 1, [-5.0, -5.5, -6.0])
    results(experiment="t", runs=[files], output=tmp_path / "out", returns={"Pendulum": [0.5]}, root=tmp_path)
    row = table(tmp_path / "out/comparison.csv")[0]
    # The untrained policy returns 1, and is never as good again.
    assert (row["yardstick"], row["steps_50"], row["return_named_1"], row["steps_named_1"]) == ("", "", "0.5", "0")


def test_without_named_returns_there_is_no_table_of_them(two_methods: Path) -> None:
    assert not [name for name in table(two_methods / "comparison.csv")[0] if "named" in name]
    for suffix in ("md", "html"):
        assert "experiment names" not in (two_methods / f"comparison.{suffix}").read_text(encoding="utf-8")


def test_returns_of_a_task_without_runs_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, run())
    with pytest.raises(
        UsbpoError, match=r"^returns are given for the task Hopper, but none of the runs is of it; .*\.$"
    ):
        results(experiment="t", runs=[run()], output=tmp_path / "out", returns={"Hopper": [1]}, root=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("returns", [{"Hopper": [1000.0, 3000.0]}, {"A-b_c.d": [-2.5, 1e-7, 123456789.0], "B": [0.0]}])
def test_returns_are_read_as_they_are_written(returns: dict[str, list[float]]) -> None:
    assert parse_returns(returns_option(task, values) for task, values in returns.items()) == returns
    assert returns_option("Hopper", [1000.0, 2.5]) == "Hopper=1000,2.5"


@pytest.mark.parametrize(
    "word", ["Hopper", "Hopper=", "=1000", "Hopper=1000,", "Hopper=many", "Hopper=nan", "Hopper:1"]
)
def test_returns_in_another_form_are_refused_with_the_form(word: str) -> None:
    with pytest.raises(UsbpoError, match=rf"^returns '{word}': write them as TASK=RETURN,RETURN…, each a number\.$"):
        parse_returns([word])


def test_returns_of_a_task_are_given_once() -> None:
    with pytest.raises(UsbpoError, match="returns of the task Hopper are given twice"):
        parse_returns(["Hopper=1", "Hopper=2"])


def test_published_mbpo_sets_the_returns_to_reach(tmp_path: Path) -> None:
    row = table(experiment(tmp_path, [run(task="Hopper")]) / "comparison.csv")[0]
    assert (row["yardstick"], row["return_25"]) == ("published MBPO (erl_lib) at 125,019 steps", str(0.25 * 3279.8))
    assert (row["seeds_there_25"], row["steps_25"]) == ("0", "")
    assert "– (0/1)" in (tmp_path / "out/comparison.md").read_text(encoding="utf-8")


def test_methods_that_learn_nothing_have_no_yardstick(tmp_path: Path) -> None:
    files = run(cycles=1)
    read(tmp_path, [files])
    write_evaluation(tmp_path, files, 1, [-5.0, -5.5, -6.0])
    results(experiment="trial", runs=[files], output=tmp_path / "out", root=tmp_path)
    row = table(tmp_path / "out/comparison.csv")[0]
    assert (row["yardstick"], row["return_25"]) == ("", "")
    assert "- Pendulum, 100 %: nothing learned yet." in (tmp_path / "out/comparison.md").read_text(encoding="utf-8")


def test_methods_are_compared_at_the_last_step_that_all_have_reached(tmp_path: Path) -> None:
    short = RunFiles("Pendulum", "mbpo", 0, cycles=5, cycle_steps=125)
    rows = table(experiment(tmp_path, [run(), short]) / "comparison.csv")
    # 625 steps: the evaluation before that is at 500 for the one; both curves are straight lines up to 625.
    assert [(row["method"], row["on_policy_steps"], row["final_iqm"]) for row in rows] == [
        ("usbpo", "500", "201.0"),
        ("mbpo", "625", "501.0"),
    ]
    assert [float(row["area_iqm"]) for row in rows] == [1 + 125, 251]


def test_all_tasks_are_pooled_as_shares_of_their_yardsticks(tmp_path: Path) -> None:
    runs = [run(method, seed, task=task) for task in "AB" for method in ("usbpo", "mbpo") for seed in range(4)]
    out = experiment(tmp_path, runs)
    pooled = [row for row in table(out / "aggregate.csv") if row["task"] == "all tasks"]
    assert [(row["method"], row["score"], row["unit"]) for row in pooled] == [
        (method, score, "share") for method in ("usbpo", "mbpo") for score in ("final", "area")
    ]
    assert float(pooled[0]["iqm"]) == pytest.approx(1)
    assert float(pooled[0]["low"]) < 1 < float(pooled[0]["high"])
    tasks = scores.by_task(scores.curves([read_run(files, tmp_path) for files in runs]))
    figure = comparison.aggregate(tasks, scores.pooled(tasks))
    assert [axes.get_title() for axes in figure.axes] == ["All tasks", "A", "B"]


def test_improvement_is_that_of_usbpo_over_each_other_method(tmp_path: Path) -> None:
    runs = [run(method, seed, task=task) for task in "AB" for method in ("mbpo", "usbpo", "sac") for seed in range(2)]
    read(tmp_path, runs)
    for seed in range(2):
        write_evaluation(tmp_path, run("usbpo", seed, task="A"), 3, [1000.0] * 3)
    results(experiment="trial", runs=runs, output=tmp_path / "out", root=tmp_path)
    rows = [r for r in table(tmp_path / "out/probability_of_improvement.csv") if r["score"] == "final"]
    assert [(row["task"], row["over"], row["probability"]) for row in rows] == [
        (task, other, probability)
        for other in ("mbpo", "sac")
        for task, probability in (("A", "1.0"), ("B", "0.5"), ("all tasks", "0.75"))
    ]


def test_without_usbpo_there_is_no_improvement_to_show(tmp_path: Path) -> None:
    out = experiment(tmp_path, [run("mbpo"), run("cmlo")])
    assert table(out / "probability_of_improvement.csv") == []
    tasks = scores.by_task(scores.curves([read_run(run("mbpo"), tmp_path)]))
    figure = comparison.probability_of_improvement(tasks, list(scores.improvements(tasks)))
    assert figure.texts[0].get_text().startswith("The probability of improvement needs the method usbpo")


def test_seeds_that_update_their_models_in_other_cycles_have_one_line(tmp_path: Path) -> None:
    runs = read(tmp_path, [run("mbpo", seed, cycles=4) for seed in range(2)])
    runs[1].phase1[:] = [metrics for metrics in runs[1].phase1 if metrics.cycle in (1, 4)]
    (axes,) = diagnostics.holdout_error(runs).axes
    (bold,) = [line for line in axes.lines if line.get_linewidth() > 2]
    np.testing.assert_array_equal(bold.get_xdata(), [250, 500, 750, 1000])

    def elites(metrics: Phase1) -> float:
        return float(np.mean(np.take(metrics.holdout_mse, metrics.elites)))

    # The second seed keeps its model of cycle 1 in cycles 2 and 3.
    expected = [(elites(runs[0].phase1[c]) + elites(runs[1].phase1[int(c == 3)])) / 2 for c in range(4)]
    np.testing.assert_allclose(np.asarray(bold.get_ydata(), float), expected)


def test_many_methods_share_a_panel_and_are_told_apart(tmp_path: Path) -> None:
    names = ["usbpo", "mbpo", "cmlo", "sac", "usbpo-shift", "usbpo-bias", "usbpo-as-released", "mbpo-lr1e-4"]
    runs = read(tmp_path, [run(method, cycles=2) for method in names])
    looks = drawing.looks(names)
    assert (
        len({(look.colour, look.marker) for look in looks.values()})
        == len({look.colour for look in looks.values()})
        == 8
    )
    (axes,) = diagnostics.holdout_error(runs).axes
    assert len(axes.lines) == 8
    legend = curves.learning_curves(
        scores.curves(read(tmp_path, [run(m, task=t) for t in "AB" for m in names]))
    ).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [look.label for look in looks.values()]
    assert legend._ncols < 8


def test_long_histories_are_drawn_as_means_of_consecutive_points() -> None:
    x, values = drawing.binned(np.arange(450.0), np.arange(900.0).reshape(2, 450))
    assert values.shape == (2, 150)
    np.testing.assert_allclose(x[:2], [1, 4])
    np.testing.assert_allclose(values[:, -1], [448, 898])


def test_equal_inputs_give_equal_bytes(two_methods: Path, tmp_path: Path) -> None:
    matplotlib.rcParams["lines.linewidth"], before = 7.0, matplotlib.rcParams["lines.linewidth"]
    try:
        again = experiment(tmp_path, [run(method, seed) for method in ("usbpo", "mbpo") for seed in range(3)])
    finally:
        matplotlib.rcParams["lines.linewidth"] = before
    assert [name for name in FILES if (again / name).read_bytes() != (two_methods / name).read_bytes()] == []


def test_pictures_hold_no_date_and_no_version(two_methods: Path) -> None:
    for name in FILES:
        content = (two_methods / name).read_bytes()
        assert not re.search(rb"<dc:date>|Software|20\d\d-\d\d-\d\d", content), name


def test_an_experiment_without_phase_2_says_so(tmp_path: Path) -> None:
    out = experiment(tmp_path, [run("mbpo")])
    assert table(out / "model_shift_and_bias.csv") == []
    figure = diagnostics.model_shift_and_bias([read_run(run("mbpo"), tmp_path)])
    assert figure.texts[0].get_text() == "No method of this experiment has a phase 2."


def test_one_cycle_has_results_but_no_phase_2_yet(tmp_path: Path) -> None:
    out = experiment(tmp_path, [run(cycles=1), run("mbpo", cycles=1)])
    assert all((out / name).is_file() for name in FILES)
    figure = diagnostics.model_shift_and_bias([read_run(run(cycles=1), tmp_path)])
    assert figure.texts[0].get_text().startswith("No phase 2 has run yet")


def test_a_method_without_a_model_has_no_holdout_error(tmp_path: Path) -> None:
    sac = run("sac", model_every=0)
    write_run(tmp_path, sac)
    for cycle in sac.policy_updates():
        path = tmp_path / sac.path(POLICY_METRICS, cycle)
        content = read_json(path)
        content["history"] = [{**line, "q_model": None} for line in content["history"]]
        write_json(path, content)
    results(experiment="trial", runs=[sac], output=tmp_path / "out", root=tmp_path)
    assert table(tmp_path / "out/holdout_error.csv") == []
    assert table(tmp_path / "out/policy_diagnostics.csv")[0]["q_model"] == ""


def test_models_updated_every_second_cycle_are_drawn_where_they_are(tmp_path: Path) -> None:
    out = experiment(tmp_path, [run(cycles=6, model_every=2)])
    assert {row["cycle"] for row in table(out / "holdout_error.csv")} == {"1", "3", "5"}
    assert [row["cycle"] for row in table(out / "model_shift_and_bias.csv")] == ["3", "5"]


def test_methods_may_have_cycles_of_different_length(tmp_path: Path) -> None:
    short = RunFiles("Pendulum", "mbpo", 0, cycles=6, cycle_steps=125, model_every=2)
    out = experiment(tmp_path, [run(), short])
    assert [row["on_policy_steps"] for row in table(out / "final_returns.csv")] == ["750", "750"]


@pytest.mark.parametrize("pattern", [EVALUATION, PHASE1_METRICS, PHASE2_METRICS, POLICY_METRICS])
def test_a_missing_file_is_named_and_nothing_is_written(tmp_path: Path, pattern: str) -> None:
    write_run(tmp_path, run())
    path = tmp_path / run().path(pattern, 2)
    path.unlink()
    with pytest.raises(UsbpoError, match=f"^{re.escape(str(path))}: there is no such file"):
        results(experiment="trial", runs=[run()], output=tmp_path / "out", root=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_truncated_evaluation_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, run())
    path = tmp_path / run().path(EVALUATION, 1)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UsbpoError, match=f"^{re.escape(str(path))}: .*cut short or damaged"):
        results(experiment="trial", runs=[run()], output=tmp_path / "out", root=tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kind": "transitions"}, "but evaluation is expected"),
        ({"method": "mbpo"}, "it is of Pendulum, mbpo, seed 0, cycle 1"),
        ({"task": "Hopper"}, "it is of Hopper, usbpo, seed 0, cycle 1"),
        ({"cycle": 2}, "it is of Pendulum, usbpo, seed 0, cycle 2"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    write_run(tmp_path, run())
    path = write_evaluation(tmp_path, run(), 1, [1.0, 2.0], changed)
    with pytest.raises(UsbpoError, match=f"^{re.escape(str(path))}: .*{sentence}"):
        read_run(run(), tmp_path)


def test_a_return_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, run())
    write_evaluation(tmp_path, run(), 1, [1.0, float("nan")])
    with pytest.raises(UsbpoError, match="one finite return for each episode"):
        read_run(run(), tmp_path)


def test_another_cycle_length_than_the_runs_own_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, run())
    with pytest.raises(UsbpoError, match="made after 250 on-policy steps, but cycle 1 of 125 steps ends at 125"):
        read_run(RunFiles("Pendulum", "usbpo", 0, cycles=3, cycle_steps=125), tmp_path)


@pytest.mark.parametrize(
    ("pattern", "changed", "sentence"),
    [
        (PHASE1_METRICS, {"holdout_mse": "small"}, "holdout_mse cannot be used"),
        (PHASE1_METRICS, {"elites": [0, 7]}, "errors and elites do not fit one ensemble"),
        (PHASE2_METRICS, {"after": {"shift": 1.0, "bias": 1.0}}, "after.sum cannot be used"),
        (POLICY_METRICS, {"history": []}, "history cannot be used"),
        (POLICY_METRICS, {"seed": 5}, "it is of Pendulum, usbpo, seed 5, cycle 2"),
    ],
)
def test_broken_metrics_are_named(tmp_path: Path, pattern: str, changed: dict[str, Any], sentence: str) -> None:
    write_run(tmp_path, run())
    path = tmp_path / run().path(pattern, 2)
    write_json(path, {**read_json(path), **changed})
    with pytest.raises(UsbpoError, match=f"^{re.escape(str(path))}: {sentence}"):
        read_run(run(), tmp_path)


def test_runs_are_given_once_and_seeds_are_alike(tmp_path: Path) -> None:
    for runs, sentence in (
        ([], "no runs are given"),
        ([run(), run()], "Pendulum/usbpo/seed-0 is given twice"),
        ([run(), run(seed=1, cycles=4)], "must be alike"),
    ):
        with pytest.raises(UsbpoError, match=sentence):
            results(experiment="trial", runs=runs, output=tmp_path, root=tmp_path)


def test_a_run_is_read_as_it_is_written() -> None:
    for files in (run(), run("mbpo", 7, model_every=4, theory=True), run("sac", model_every=0)):
        assert RunFiles.parse(str(files)) == files
    assert RunFiles.parse("Hopper/mbpo/seed-3:cycles=2:cycle_steps=50") == RunFiles("Hopper", "mbpo", 3, 2, 50)


@pytest.mark.parametrize(
    "text",
    [
        "Hopper/mbpo",
        "Hopper/mbpo/seed-x:cycles=2:cycle_steps=50",
        "Hopper/mbpo/seed-0",
        "Hopper/mbpo/seed-0:cycles=2",
        "Hopper/mbpo/seed-0:cycles=0:cycle_steps=50",
        "Hopper/mbpo/seed-0:cycles=2:cycle_steps=50:steps=1",
        "Hopper/mbpo/seed-0:cycles=2:cycles=2:cycle_steps=50",
        "Hopper/mbpo/seed-0:cycles=2:cycle_steps=50:phase2=maybe",
        "Hopper/mbpo/seed-0:cycles=-2:cycle_steps=50",
    ],
)
def test_a_run_in_another_form_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(UsbpoError, match="TASK/METHOD/seed-N:cycles=N:cycle_steps=N"):
        RunFiles.parse(text)


def test_drawing_needs_neither_torch_nor_a_window_system() -> None:
    code = "import usbpo.report.results, sys; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
