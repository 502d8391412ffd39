"""Tables and figures of the theory: right numbers from the files of runs, and a word where there is nothing to draw."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from usbpo.artifacts.files import read_json, write_json
from usbpo.artifacts.header import Header
from usbpo.artifacts.layout import THEORY_METRICS, THEORY_ROWS
from usbpo.artifacts.transitions import create, put
from usbpo.errors import UsbpoError
from usbpo.experiment.run_files import FILES, RunFiles
from usbpo.report import theory_figures, theory_tables
from usbpo.report.records import Rows, Run, Theory, read_rows

ROWS = 12
FIGURES = ("bracket", "bias", "surrogate", "depth", "bound")


def files_of(method: str = "usbpo", seed: int = 0, cycles: int = 3, **options: Any) -> RunFiles:
    return RunFiles("Pendulum", method, seed, cycles, 250, phase2=method == "usbpo", theory=True, **options)


def terms(scale: float, *, first: bool = False, truth: bool = True, tuned: bool = True) -> dict[str, float | None]:
    """Terms with a bracket of −`scale`; without those of M1 in the first cycle, or of M* without a simulator.

    The surrogate with the fixed stand-in is three times that with the moving one, where there is a phase 2.
    """
    found: dict[str, float | None] = {
        **{"shift": 2 * scale, "previous_bias": 5 * scale, "bracket": -scale},
        **{"true_bias": 4 * scale, "error": 3 * scale, "true_bias_max": 9.0, "rank_correlation": 0.5},
        **{"surrogate_bias": scale, "surrogate_bias_fixed": 3 * scale, "spread": 0.5 * scale},
        "rank_correlation_fixed": 0.7,
        **{"bound": 300.0, "bound_shift_term": 100.0, "bound_policy_term": 200.0},
    }
    of_m1 = {"shift", "previous_bias"}
    of_truth = {"true_bias", "error", "true_bias_max", "rank_correlation", "rank_correlation_fixed"}
    of_phase2 = {"surrogate_bias_fixed", "rank_correlation_fixed"}
    of_both = {"bracket", "bound", "bound_shift_term", "bound_policy_term"}
    absent = (of_m1 | of_both if first else set()) | (set() if truth else of_truth | of_both)
    absent |= set() if tuned else of_phase2
    return {name: None if name in absent else value for name, value in found.items()}


def write_theory(root: Path, files: RunFiles, *, simulator: bool = True) -> None:
    """What the stage leaves in every cycle: the scale of a cycle is 1/cycle after phase 2, and twice that before."""
    for cycle in files.measurements():
        first, tuned = cycle == 1, cycle in files.fine_tunings()

        def measured(truth: bool, first: bool = first, tuned: bool = tuned, cycle: int = cycle) -> dict[str, Any]:
            before = terms(2 / cycle, first=first, truth=truth) if tuned else None
            after = terms(1 / cycle, first=first, truth=truth, tuned=tuned)
            return {"rows": ROWS, "policy_shift": 0.7, "before": before, "after": after}

        line = {"branches": 8, "error_mean": 0.5, "error_q25": 0.2, "error_q50": 0.4, "error_q75": 0.6, "moved": 2.0}
        depth = [{**line, "depth": d, "error_q50": 0.1 * d / cycle, "one_step": 0.3} for d in range(1, 6)]
        floor = {"rows": ROWS, "undetermined": 1, "median": 1e-6, "q95": 1e-5, "max": 1e-4, "mean": 2e-6}
        identity = {"task": files.task, "seed": files.seed, "cycle": cycle}
        content = {
            **identity, "discount": 0.99, "holdout": measured(True),
            "rollout": None if first else measured(simulator), "reconstruction": floor if simulator else None,
            "depth": depth if simulator else None,
        }  # fmt: skip
        write_json(root / files.path(THEORY_METRICS, cycle), content)
        with create(root / files.path(THEORY_ROWS, cycle), Header("theory", **identity)) as file:
            for place in ("holdout",) if first else ("holdout", "rollout"):
                for phase in ("before", "after") if tuned else ("after",):
                    group = file.require_group(f"{place}/{phase}")
                    values = np.linspace(0.1, 1, ROWS, dtype=np.float32)
                    put(group, "surrogate_bias", values)
                    if tuned:
                        put(group, "surrogate_bias_fixed", 2 * values)
                    if simulator or place == "holdout":
                        put(group, "true_bias", 3 * values)


def read(root: Path, files: RunFiles) -> Run:
    """A run of which only the theory is there."""
    theory = [Theory.model_validate(read_json(root / files.path(THEORY_METRICS, c))) for c in files.measurements()]
    rows: Rows = read_rows(files, files.measurements()[-1], root)
    return Run(files, evaluations=[], checks=[], phase1=[], phase2=[], policy=[], theory=theory, rows=rows)


def runs_of(root: Path, *runs: RunFiles, **options: Any) -> list[Run]:
    for files in runs:
        write_theory(root, files, **options)
    return [read(root, files) for files in runs]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def drawn(figure: Figure, panel: int, *, dashed: bool) -> list[list[float]]:
    """The lines over steps of a panel: solid or dashed ones."""
    lines = [line for line in figure.axes[panel].lines if len(np.asarray(line.get_xdata())) > 1]
    steps = [line for line in lines if max(np.asarray(line.get_xdata(), float)) > 100]
    return [list(np.asarray(line.get_ydata(), float)) for line in steps if (line.get_linestyle() == "--") == dashed]


def test_everything_is_written_with_the_same_bytes_again(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, *(files_of(method, seed) for method in ("usbpo", "mbpo") for seed in (0, 1)))
    for folder in ("first", "second"):
        theory_figures.save(runs, tmp_path / folder)
    names = {name for name in FILES if name.startswith("theory_")}
    assert {path.name for path in (tmp_path / "first").iterdir()} == names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_tables_hold_every_model_place_and_phase(tmp_path: Path) -> None:
    theory_figures.save(runs_of(tmp_path, files_of(), files_of("mbpo")), tmp_path / "out")
    bracket = table(tmp_path / "out/theory_bracket.csv")
    of_usbpo = [(row["cycle"], row["place"], row["phase"]) for row in bracket if row["method"] == "usbpo"]
    assert of_usbpo == [
        ("1", "holdout", "after"),
        *[(cycle, place, phase) for cycle in "23" for place in ("holdout", "rollout") for phase in ("before", "after")],
    ]
    assert bracket[1] == {
        **{"task": "Pendulum", "method": "usbpo", "seed": "0", "cycle": "2", "on_policy_steps": "500"},
        **{"place": "holdout", "phase": "before", "rows": "12"},
        **{"previous_bias": "5.0", "shift": "2.0", "true_bias": "4.0", "bracket": "-1.0"},
    }
    assert bracket[0]["shift"] == "", "there is no M1 yet"
    assert {row["phase"] for row in bracket if row["method"] == "mbpo"} == {"after"}
    bias = table(tmp_path / "out/theory_bias.csv")
    assert (bias[1]["surrogate_bias"], bias[1]["error"], bias[1]["floor_max"]) == ("1.0", "3.0", "0.0001")
    assert (bias[1]["surrogate_bias_fixed"], bias[1]["rank_correlation_fixed"]) == ("3.0", "0.7")
    assert {row["surrogate_bias_fixed"] for row in bias if row["method"] == "mbpo"} == {""}
    bound = table(tmp_path / "out/theory_bound.csv")
    assert (bound[1]["policy_shift"], bound[1]["bound_policy_term"], bound[1]["bound"]) == ("0.7", "200.0", "300.0")
    depth = table(tmp_path / "out/theory_depth.csv")
    assert len(depth) == 2 * 3 * 5
    assert depth[9] == {
        **{"task": "Pendulum", "method": "usbpo", "seed": "0", "cycle": "2", "on_policy_steps": "500", "depth": "5"},
        **{"branches": "8", "error_mean": "0.5", "error_q25": "0.2", "error_q50": "0.25", "error_q75": "0.6"},
        **{"moved": "2.0", "one_step": "0.3"},
    }


def test_single_rows_are_those_of_the_first_seeds_last_model(tmp_path: Path) -> None:
    rows = theory_tables.surrogate(runs_of(tmp_path, files_of(seed=4), files_of(seed=5))).rows
    assert len(rows) == 2 * 2 * ROWS
    assert {row[2:4] for row in rows} == {(4, 3)}
    assert rows[0][-3:] == (0.1, 0.2, 0.3), "32-bit numbers in their shortest form"
    without = theory_tables.surrogate(runs_of(tmp_path, files_of("mbpo"))).rows
    assert without[0][-3:] == (0.1, None, 0.3)


def test_the_bracket_is_drawn_on_model_rollouts_before_and_after(tmp_path: Path) -> None:
    figure = theory_figures.bracket(runs_of(tmp_path, files_of(cycles=4), files_of("mbpo", cycles=4)))
    usbpo, mbpo = drawn(figure, 3, dashed=False)
    np.testing.assert_allclose(usbpo, [-1 / 2, -1 / 3, -1 / 4])
    np.testing.assert_allclose(mbpo, usbpo)
    (before,) = drawn(figure, 3, dashed=True)
    np.testing.assert_allclose(before, [-1, -2 / 3, -1 / 2])
    assert figure.axes[3].get_ylim()[1] == 0, "it can never be positive"
    assert "model rollouts" in figure.get_supxlabel()


def told(figure: Figure) -> list[str]:
    """The entries of a figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_both_surrogates_are_drawn_beside_the_truth(tmp_path: Path) -> None:
    """The one with the fixed stand-in dotted over steps, and in single rows with a panel of its own."""
    runs = runs_of(tmp_path, *(files_of(method, seed) for method in ("usbpo", "mbpo") for seed in (0, 1)))
    bias, surrogate = theory_figures.bias(runs), theory_figures.surrogate(runs)
    before, fixed = drawn(bias, 0, dashed=True)
    np.testing.assert_allclose(before, [1, 2 / 3])
    np.testing.assert_allclose(fixed, [3 / 2, 1])
    before, fixed = drawn(surrogate, 3, dashed=True)
    assert (before, fixed) == ([0.5, 0.5], [0.7, 0.7])
    points = [np.asarray(axes.collections[0].get_offsets()) for axes in surrogate.axes[:3]]
    np.testing.assert_allclose(points[0][:, 0] * 2, points[2][:, 0], rtol=1e-6)
    np.testing.assert_allclose(points[1], points[0])
    assert [len(axes.collections) for axes in surrogate.axes[:3]] == [1, 2, 1], "MBPO has no model before phase 2"
    for figure in (bias, surrogate):
        assert "after phase 2, with the fixed stand-in for M*" in told(figure)


def test_without_a_phase_2_there_is_one_surrogate(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, files_of("mbpo"))
    bias, surrogate = theory_figures.bias(runs), theory_figures.surrogate(runs)
    assert drawn(bias, 0, dashed=True) == []
    assert len(surrogate.axes) == 2
    for figure in (bias, surrogate):
        assert not [text for text in told(figure) if "stand-in" in text]


def test_theory_of_before_there_were_two_surrogates_is_still_drawn(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, files_of())
    for cycle in (1, 2, 3):
        path = tmp_path / run.files.path(THEORY_METRICS, cycle)
        content = read_json(path)
        for place in ("holdout", "rollout"):
            for phase in ("before", "after"):
                for name in ("surrogate_bias_fixed", "rank_correlation_fixed"):
                    ((content[place] or {}).get(phase) or {}).pop(name, None)
        write_json(path, content)
    old = read(tmp_path, run.files)
    assert old.theory[-1].rollout is not None
    assert old.theory[-1].rollout.after.surrogate_bias_fixed is None
    assert len(theory_figures.surrogate([old]).axes) == 3


def test_lines_are_means_over_seeds_or_each_for_itself(tmp_path: Path) -> None:
    even = runs_of(tmp_path, files_of("mbpo", 0, 5), files_of("mbpo", 1, 5))
    assert len(drawn(theory_figures.bias(even), 0, dashed=False)) == 1
    # A trigger may have trained the seeds in different cycles.
    odd = [even[0], Run(**{**vars(even[1]), "theory": even[1].theory[:1] + even[1].theory[2:]})]
    lines = drawn(theory_figures.bias(odd), 0, dashed=False)
    assert sorted(map(len, lines)) == [3, 4]


def test_depth_shows_the_first_the_middle_and_the_last_model(tmp_path: Path) -> None:
    figure = theory_figures.depth(runs_of(tmp_path, files_of(cycles=5)))
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"250", "750", "1,250"}
    solid = [np.asarray(line.get_ydata(), float) for line in axes.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose(sorted(line[-1] for line in solid), [0.1, 0.5 / 3, 0.5])


def test_depth_is_drawn_as_far_as_a_tenth_of_the_branches_go(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, files_of(cycles=1))
    lines = run.theory[0].depth
    assert lines is not None
    # Of 100 branches 10 are left at depth 4, which is a tenth, and 9 at depth 5.
    left = zip(lines, (100, 60, 20, 10, 9), strict=True)
    ending = [line.model_copy(update={"branches": branches}) for line, branches in left]
    theory = [run.theory[0].model_copy(update={"depth": ending})]
    (axes,) = theory_figures.depth([Run(**{**vars(run), "theory": theory})]).axes
    assert {tuple(np.asarray(line.get_xdata(), int)) for line in axes.lines} == {(1, 2, 3, 4)}
    rows = theory_tables.depth([Run(**{**vars(run), "theory": theory})]).rows
    assert len(rows) == 5, "the numbers are there at every depth"


@pytest.mark.parametrize("depth", [15, 25])
def test_depths_are_whole_numbers_on_the_axis(tmp_path: Path, depth: int) -> None:
    (run,) = runs_of(tmp_path, files_of(cycles=1))
    line = (run.theory[0].depth or [])[0]
    lines = [line.model_copy(update={"depth": at}) for at in range(1, depth + 1)]
    theory = [run.theory[0].model_copy(update={"depth": lines})]
    figure = theory_figures.depth([Run(**{**vars(run), "theory": theory})])
    ticks = [tick for tick in figure.axes[0].get_xticks() if 1 <= tick <= depth]
    assert len(ticks) > 2
    assert all(float(tick).is_integer() for tick in ticks)


def test_without_a_simulator_the_holdout_is_drawn(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, files_of(cycles=3), simulator=False)
    assert "held-out real transitions" in theory_figures.bracket(runs).get_supxlabel()
    assert theory_figures.depth(runs).texts[0].get_text() == theory_figures.NO_TRUTH
    theory_figures.save(runs, tmp_path / "out")
    assert table(tmp_path / "out/theory_depth.csv") == []
    of_rollouts = [row for row in table(tmp_path / "out/theory_bias.csv") if row["place"] == "rollout"]
    assert {row["true_bias"] for row in of_rollouts} == {""}


def test_methods_without_a_model_break_nothing(tmp_path: Path) -> None:
    sac = Run(RunFiles("Pendulum", "sac", 0, 3, 250, model_every=0), [], [], [], [], [], [], None)
    runs = runs_of(tmp_path, files_of())
    for name in FIGURES:
        assert getattr(theory_figures, name)([sac]).texts[0].get_text() == theory_figures.NOTHING
        assert len(getattr(theory_figures, name)([sac, *runs]).axes) > 0


def test_one_model_update_has_biases_but_no_bracket_yet(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, files_of(cycles=1))
    for name in ("bracket", "bound"):
        assert getattr(theory_figures, name)(runs).texts[0].get_text() == theory_figures.NOT_YET
    theory_figures.save(runs, tmp_path / "out")


def test_tasks_have_a_row_each(tmp_path: Path) -> None:
    others = [RunFiles(task, "usbpo", 0, 3, 250, phase2=True, theory=True) for task in ("A", "B")]
    runs = runs_of(tmp_path, *others)
    assert [len(getattr(theory_figures, name)(runs).axes) for name in FIGURES] == [8, 8, 8, 2, 6]


def test_rows_of_something_else_are_refused(tmp_path: Path) -> None:
    files = files_of()
    write_theory(tmp_path, files)
    source, target = (tmp_path / files.path(THEORY_ROWS, cycle) for cycle in (2, 3))
    target.write_bytes(source.read_bytes())
    with pytest.raises(UsbpoError, match="it is of Pendulum, seed 0, cycle 2, which does not fit its folder"):
        read_rows(files, 3, tmp_path)
