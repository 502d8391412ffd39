"""Phase 2 on a recorded run's data: without it the run's own models come out, and a line is measured once."""

import csv
import sys
from math import exp, log
from pathlib import Path

import pytest
import torch
from helpers.workflow import MBPO, REPO, USBPO, finished_workspace

from usbpo.errors import UsbpoError
from usbpo.model import ensemble
from usbpo.stages.phase2 import phase2

sys.path.insert(0, str(REPO / "benchmarks"))
import phase2_fixed_data as benchmark  # type: ignore[import-not-found]
from phase2_fixed_data import COLUMNS, NAMES, VARIANTS, Recorded, chain, moment_matched, screen, tables

SIZES = (40, 10)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_workspace(tmp_path_factory)


@pytest.fixture(scope="module")
def recorded(workspace: Path) -> Recorded:
    return Recorded(workspace / "data/runs" / MBPO, "test-usbpo")


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def untimed(path: Path) -> list[dict[str, str]]:
    return [{name: text for name, text in line.items() if "seconds" not in name} for line in lines(path)]


def test_a_chain_without_phase_2_gives_the_recorded_models(recorded: Recorded, tmp_path: Path) -> None:
    found = chain(recorded, "none", [], tmp_path, SIZES)
    assert [(line["cycle"], line["as_recorded"]) for line in lines(found.path)] == [("2", "yes"), ("3", "yes")]
    (line, *_) = lines(found.path)
    assert tuple(line) == COLUMNS
    assert all(line[f"{name}_before"] == line[f"{name}_after"] != "" for name in benchmark.MEASURES[:14])


def test_a_screen_measures_the_recorded_models(recorded: Recorded, tmp_path: Path) -> None:
    one, other = chain(recorded, "none", [], tmp_path, SIZES), screen(recorded, "none", [], tmp_path, SIZES)
    assert one.path != other.path
    for name in benchmark.MEASURES:
        assert [line[f"{name}_after"] for line in one.lines] == [line[f"{name}_before"] for line in other.lines]


def test_a_fixed_stand_in_lowers_its_objective_as_the_stage_does(
    recorded: Recorded, workspace: Path, tmp_path: Path
) -> None:
    found = chain(recorded, "fixed", [2], tmp_path, SIZES)
    (line,) = lines(found.path)
    assert line["cycle"] == "2"
    assert int(line["best_step"]) > 0
    assert float(line["objective_after"]) < float(line["objective_before"])
    # Up to phase 2 of the second cycle a run with it and one without it are the same.
    _, expected = ensemble.load(workspace / "data/runs" / USBPO / "00002/model.safetensors")
    _, made = ensemble.load(found.path.with_suffix("") / "00002.safetensors")
    assert torch.equal(made.elites, expected.elites)
    for name in ("params", "mle", "finetune"):
        one, other = getattr(made, name), getattr(expected, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), name


def test_recorded_samples_of_m_star_are_those_of_the_stage(recorded: Recorded, tmp_path: Path) -> None:
    run, paths = recorded.run, recorded.paths
    keys = {**recorded.phase2.model_dump(), **run.config.phase1.model_dump(include={"holdout_ratio", "holdout_limit"})}
    (m1,), (mle,) = paths(run.models(1)), paths(run.models(2))
    output = tmp_path / "model.safetensors"
    phase2(
        data=paths(run.real_data(2)), rollouts=paths(run.model_data_before(2)), model_mle=mle, previous_model=m1,
        output=output, metrics=tmp_path / "phase2.json", seed=0, cycle=2, **{**keys, "stand_in": "samples"},
    )  # fmt: skip
    found = chain(recorded, "samples", [2], tmp_path, SIZES)
    (_, made), (_, expected) = (
        ensemble.load(path) for path in (found.path.with_suffix("") / "00002.safetensors", output)
    )
    for name in ("params", "finetune"):
        one, other = getattr(made, name), getattr(expected, name)
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), name


def test_all_variants_start_from_the_same_model_and_leave_different_ones(recorded: Recorded, tmp_path: Path) -> None:
    found = {name: screen(recorded, name, [3], tmp_path, SIZES).lines for name in VARIANTS}
    before = [name for name in COLUMNS if name.endswith("_before") and name != "objective_before"]
    assert all(len(of) == 1 for of in found.values())
    assert len({tuple(of[0][name] for name in before) for of in found.values()}) == 1
    after = {name: tuple(of[0][f"{measure}_after"] for measure in benchmark.MEASURES) for name, of in found.items()}
    del after["fixed-300-steps"]  # the test's five steps are more than it takes
    assert len(set(after.values())) >= len(after) - 1
    for name, of in found.items():
        if name != "none":
            assert float(of[0]["objective_after"]) <= float(of[0]["objective_before"])


def test_what_has_been_measured_is_not_measured_again(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = chain(recorded, "moving", [], tmp_path / "at once", SIZES).path
    chain(recorded, "moving", [2], tmp_path / "in two", SIZES)
    in_two = chain(recorded, "moving", [], tmp_path / "in two", SIZES).path
    assert untimed(at_once) == untimed(in_two)
    kept = sorted(path.name for path in in_two.with_suffix("").iterdir())
    assert kept == ["00003.safetensors", "mle.json", "mle.safetensors"]
    monkeypatch.setattr(benchmark, "Given", None)
    before = in_two.read_bytes()
    assert len(chain(recorded, "moving", [], tmp_path / "in two", SIZES).lines) == 2
    assert in_two.read_bytes() == before


def test_a_run_with_a_phase_2_of_its_own_is_refused(workspace: Path) -> None:
    with pytest.raises(UsbpoError, match="name a run of MBPO"):
        Recorded(workspace / "data/runs" / USBPO, "test-usbpo")
    with pytest.raises(UsbpoError, match="no folder of a run"):
        Recorded(workspace / "data/runs", "test-usbpo")


def test_tables_are_means_over_cycles_from_the_third_on(tmp_path: Path) -> None:
    write(tmp_path / "A/seed-0/chain-none.csv", "none", 0, {2: (9, 9), 3: (1, 0.5), 4: (1, 0.6)})
    write(tmp_path / "A/seed-1/chain-none.csv", "none", 1, {3: (1, 0.7)})
    write(tmp_path / "A/seed-0/chain-fixed.csv", "fixed", 0, {2: (9, 99), 3: (0.5, 0.4), 4: (2, 0.4)})
    write(tmp_path / "A/seed-1/chain-fixed.csv", "fixed", 1, {3: (0.25, 0.4)})
    text = tables(tmp_path)
    ratio = exp((log(0.5) + log(2) + log(0.25)) / 3)
    assert (
        f"| chain | {NAMES['fixed']} | 3 (2) | {ratio:.3f} | {ratio:.3f} | {ratio:.3f} | 0.4 (0.67) | 0.4 (0.67) |"
        in text
    )
    assert f"| chain | {NAMES['none']} | 3 (2) | – | – | – | 0.6 | 0.6 | – | – |" in text
    write(tmp_path / "B/seed-0/screen-fixed.csv", "fixed", 0, {3: (1.5, 0.4)}, task="B", mode="screen")
    assert f"| screen | {NAMES['fixed']} | 1 | 1.500 | 1.500 | 1.500 | 0.400 | 0.400 | B |" in tables(tmp_path)


def write(
    path: Path,
    variant: str,
    seed: int,
    by_cycle: dict[int, tuple[float, float]],
    task: str = "A",
    mode: str = "chain",
) -> None:
    """A CSV with, for each cycle, after / before of all measures, and errors over depth after phase 2."""
    found = benchmark.Lines(path)
    for cycle, (ratio, depth) in by_cycle.items():
        line: dict[str, object] = dict.fromkeys(COLUMNS, 1.0)
        line |= {f"{name}_after": ratio for name in benchmark.MEASURES}
        measured = ("after", "before") if variant == "none" else ("after",)
        line |= {f"depth_{step}_{when}": depth for step in range(1, 11) for when in measured}
        found.append(line | {"task": task, "seed": seed, "mode": mode, "variant": variant, "cycle": cycle})


def test_the_mixtures_gaussian_has_the_moments_of_the_other_members() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(3, 2, 2, generator=generator), torch.rand(3, 2, 2, generator=generator)
    found_mean, found_std = moment_matched(mean, std, torch.tensor([2, 0]))
    for row, others in enumerate(([0, 1], [1, 2])):
        noise = torch.randn(200_000, 2, generator=generator)
        samples = torch.cat([mean[m, row] + std[m, row] * noise for m in others])
        assert torch.allclose(found_mean[row], samples.mean(dim=0), atol=0.02)
        assert torch.allclose(found_std[row], samples.std(dim=0), atol=0.02)


def test_samples_of_m_star_are_recorded_outcomes(recorded: Recorded) -> None:
    given = benchmark.Given(recorded, 3)
    m1, m2 = (recorded.model(recorded.path(benchmark.layout.MODEL_MLE, cycle)) for cycle in (2, 3))
    tuning = VARIANTS["samples"].tuning(given, m1, m2)
    data, members = given.data.rows(given.training_rows[:7]), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    rows = benchmark.Rows(data.inputs[:, :4], data.inputs[:, 4:], members, members)
    found = tuning.objective(tuning.compared(benchmark.with_real(rows, data.inputs, data.targets)))
    as_shift = benchmark.FineTuning(m1, m2, "as_written", "moving")
    assert float(found.shift) == pytest.approx(float(as_shift.objective(as_shift.compared(rows)).shift), rel=1e-6)
    mean, std = ensemble.predict(m2, m2.params, rows.observations, rows.actions)
    each = []
    for row, member in enumerate(members.tolist()):
        reward, reached = data.targets[row, :1], rows.observations[row] + data.targets[row, 1:]
        off = mean[member, row] - torch.cat([reward, reached])
        each.append(float((off.square().sum() + std[member, row].square().sum()).sqrt()))
    assert float(found.bias) == pytest.approx(sum(each) / len(each), rel=1e-4)
