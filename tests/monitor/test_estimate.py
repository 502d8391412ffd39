"""`usbpo plan`: counts that are Snakemake's own, sizes that are those of the files, and what stands already."""

import io
import re
import shutil
from pathlib import Path

import pytest
import yaml
from helpers.workflow import EXPERIMENT, FOLDERS, MBPO, RESULTS, finished_workspace, planned
from rich.console import Console

from usbpo.artifacts.layout import is_large
from usbpo.commands import cli
from usbpo.errors import UsbpoError
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.sizes import Sizes
from usbpo.experiment.yaml_files import read_yaml
from usbpo.monitor.costs import MODEL_MLE, POLICY, ROLLOUTS, bytes_by_size, costs_of
from usbpo.monitor.estimate import Chain, estimate, print_plan, work_of


def plan_of(**changes: object) -> Plan:
    return Plan({**read_yaml(EXPERIMENT), **changes}, source="e.yaml", folders=FOLDERS)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


def test_jobs_are_counted_as_snakemake_counts_them(tmp_path: Path) -> None:
    experiment = tmp_path / "e.yaml"
    methods = ["test-usbpo", "test-mbpo", "test-cmlo", "test-sac"]
    content = {**read_yaml(EXPERIMENT), "methods": methods, "seeds": [0, 1], "steps": 780}  # 26 cycles: three blocks
    experiment.write_text(yaml.safe_dump(content))
    lines = estimate(Plan(content, source="e.yaml", folders=FOLDERS), tmp_path)
    jobs = planned(tmp_path, experiment=experiment) - RESULTS
    for line in lines:
        name = f"{line.task}/{line.method}/seed-"
        assert line.jobs == len([job for job in jobs if job.run.startswith(name)]), line.method
        assert (line.runs, line.standing) == (2, 0)
    assert [line.cycles for line in lines] == [52, 52, 52, 52]
    assert all(line.seconds > 0 and line.bytes > 0 and line.measured[True] == 0 for line in lines)


@pytest.mark.parametrize(
    ("keys", "what"),
    [({"model": {"members": 1000, "hidden_size": 100_000}}, "model"), ({"policy": {"batch_size": 10**9}}, "policy")],
    ids=["model", "policy"],
)
def test_networks_that_no_machine_holds_are_refused_before_they_are_made(
    keys: dict[str, dict[str, int]], what: str, tmp_path: Path
) -> None:
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms/huge.yaml").write_text(yaml.safe_dump({"base": "test-mbpo", **keys}))
    content = {**read_yaml(EXPERIMENT), "methods": ["huge"]}
    with pytest.raises(UsbpoError, match=f"training the {what} takes [0-9,]+ GB, .*; make its networks"):
        estimate(Plan(content, source="e.yaml", folders=(tmp_path, *FOLDERS)), tmp_path)


def test_what_stands_is_not_to_come(finished: Path) -> None:
    for line in estimate(plan_of(), finished):
        assert line.standing == line.jobs
        assert line.bytes == line.seconds == 0
    for line in estimate(plan_of(steps=120), finished):
        assert line.standing < line.jobs
        assert line.measured[False] == 0, "every stage ran here before"
        assert line.bytes > 0
        assert 0 < line.seconds < 600


def test_a_method_that_never_ran_takes_the_times_of_one_that_is_like_it(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / f"data/runs/{MBPO}", tmp_path / f"data/runs/{MBPO}")
    methods = ["test-usbpo", "test-mbpo", "test-cmlo"]
    usbpo, mbpo, cmlo = estimate(plan_of(methods=methods), tmp_path)
    assert mbpo.standing == mbpo.jobs
    assert usbpo.measured == {True: usbpo.jobs - 3, False: 3}, "all but phase 2 in two cycles and the initial policy"
    assert cmlo.measured[True] == 0, "its cycles are stages of another kind"


def test_a_damaged_benchmark_file_costs_only_its_measurement(finished: Path, tmp_path: Path) -> None:
    for line in estimate(plan_of(), tmp_path):
        assert line.measured[True] == 0
    (tmp_path / "data/runs/test-pendulum/test-mbpo/seed-0/benchmarks/00002").mkdir(parents=True)
    (tmp_path / "data/runs/test-pendulum/test-mbpo/seed-0/benchmarks/00002/policy.tsv").write_text("s\nmany\n")
    assert all(line.measured[True] == 0 for line in estimate(plan_of(), tmp_path))


@pytest.mark.parametrize("stage", ["phase1", "phase2", "rollout", "policy", "collect"])
def test_sizes_are_those_of_the_files(stage: str, finished: Path) -> None:
    """Of what is large: the numbers. A tiny file is mostly what its format adds, so its own overhead is allowed."""
    run = next(run for run in plan_of().cycles if run.method == "test-usbpo")
    found = sum((finished / path).stat().st_size for path in run.jobs(3)[stage])
    of = bytes_by_size(Sizes(run.config, run.schedule, 4, 1))
    told = of[stage](3) + sum(of[Path(path).name](3) for path in run.jobs(3)[stage] if is_large(path))
    assert abs(told - found) < 0.1 * found + 14_000


def test_the_table_says_counts_times_and_how_they_are_known(finished: Path) -> None:
    text = io.StringIO()
    print_plan(plan_of(steps=120), 2, finished, Console(file=text, width=120))
    said = " ".join(text.getvalue().split())
    assert "test-pendulum test-usbpo 1 4 30 23" in said
    assert "on 2 cores" in said
    assert "those of 13 of the 13 jobs to come are then scaled" in said
    assert "test-pendulum test-usbpo 1 4 30 23" in said
    assert "800 MB" in said, "the stages with a simulator take most memory"
    text = io.StringIO()
    print_plan(plan_of(), 2, finished, Console(file=text, width=120))
    assert "All files stand already" in text.getvalue()


def test_a_plan_that_snakemake_can_hardly_hold_is_said(tmp_path: Path) -> None:
    """Six jobs a cycle of 30 steps."""
    text = io.StringIO()
    print_plan(plan_of(methods=["test-mbpo"], steps=480_000), 2, tmp_path, Console(file=text, width=120))
    said = " ".join(text.getvalue().split())
    assert re.search(r"Snakemake will hold 9\d,\d{3} jobs, about 4\.\d GB of memory. Run it in parts", said), said


def test_the_verb_names_an_unknown_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "nowhere"]) == 1
    assert "unknown experiment 'nowhere'" in capsys.readouterr().err


def test_the_verb_knows_the_projects_files_in_a_users_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {**read_yaml(EXPERIMENT), "experiment": "own"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    for name in ("test", "own.yaml"):
        assert cli.main(["plan", name]) == 0
        assert "test-pendulum" in capsys.readouterr().out


def write_benchmark(root: Path, run: Run, stage: str, cycle: int, seconds: float) -> None:
    path = root / f"data/runs/{run.name}/benchmarks/{cycle:05d}/{stage}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\n{seconds}\n")


def leave_file(root: Path, name: str, size: float) -> None:
    """A file of so many bytes that takes no disk."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with open(root / name, "wb") as file:
        file.truncate(int(size))


@pytest.mark.parametrize("stage", ["policy", "rollout", "phase1", "theory"])
def test_a_stage_that_took_twice_the_calculated_time_will_do_so_in_later_cycles(stage: str, tmp_path: Path) -> None:
    plan = plan_of(methods=["test-mbpo"], steps=1200)
    (run,) = plan.cycles
    seconds = costs_of(run).seconds_of[stage]
    for cycle in (1, 2, 5):
        write_benchmark(tmp_path, run, stage, cycle, 2 * seconds(cycle))
    (line,), (bare,) = estimate(plan, tmp_path), estimate(plan, tmp_path / "empty")
    assert line.seconds - bare.seconds == pytest.approx(sum(seconds(cycle) for cycle in range(1, 41)))
    assert line.measured[True] == 40


def test_what_a_stage_took_on_several_threads_counts_as_one_threads(tmp_path: Path) -> None:
    """So that the next run, with its own number of threads, is told rightly."""
    plan = plan_of(methods=["test-mbpo"], steps=1200)
    (run,) = plan.cycles
    for cycle in (1, 2):
        write_benchmark(tmp_path, run, "phase1", cycle, 6.0)
        log = tmp_path / f"data/runs/{run.name}/logs/{cycle:05d}/phase1.log"
        log.parent.mkdir(parents=True)
        log.write_text("4 epochs\nphase1: took 6.00 s on 2 threads, 10.00 s of CPU, at most 300 MiB of memory\n")
    work = work_of(run, [], tmp_path)
    assert work.seconds("phase1", 1) + work.seconds("phase1", 2) == pytest.approx(20.0)


def test_a_run_that_has_several_cores_for_itself_takes_less_time() -> None:
    config = plan_of(methods=["usbpo"], tasks=["Hopper"], steps=1000).cycles.popitem()[0].config
    chain = Chain(config, {"phase1": 100.0, "policy": 50.0, "collect": 10.0})
    taken = [chain.take(cores) for cores in (1, 2, 4, 7, 16)]
    assert taken[0] == pytest.approx(160.0)
    assert 0.5 * taken[0] < taken[1] < 0.75 * taken[0]
    assert taken[1] > taken[2] > taken[3] == taken[4], "seven members, and no more"
    on_gpu = Chain(config.model_copy(update={"device": "cuda"}), {"phase1": 100.0})
    assert on_gpu.take(4) == pytest.approx(100.0)


def test_the_plan_says_what_cores_a_run_has_for_itself(tmp_path: Path) -> None:
    def said(cores: int) -> str:
        text = io.StringIO()
        print_plan(plan_of(steps=1200), cores, tmp_path, Console(file=text, width=200))
        return " ".join(text.getvalue().split())

    assert "where it has" not in said(3), "two runs"
    assert "where it has 4 of them" in said(8)


@pytest.fixture(scope="module")
def ant() -> Plan:
    content = {**read_yaml(EXPERIMENT), "tasks": ["AntTruncated"], "methods": ["mbpo"], "steps": 300_000}
    return Plan(content, source="e.yaml", folders=FOLDERS)


def test_rollouts_that_will_grow_are_not_taken_for_as_small_as_those_that_stand(ant: Plan, tmp_path: Path) -> None:
    """Ant's grow from 1 to 25 steps, from 26 to 655 MB, and the eight first files say nothing of that."""
    (run,) = ant.cycles
    size = 100_000 * 262
    for cycle in range(1, 9):
        for path in run.jobs(cycle)["rollout"]:
            leave_file(tmp_path, path, 0.9 * size if path.endswith(".h5") else 500)
    (line,), (bare,) = estimate(ant, tmp_path), estimate(ant, tmp_path / "empty")
    lengths = [run.schedule.rollout_steps(cycle) for cycle in range(1, 1201)]
    assert max(lengths) == 25
    assert bare.bytes == pytest.approx(size * sum(lengths), rel=0.05)
    assert bare.bytes - line.bytes == pytest.approx(0.1 * size * sum(lengths), rel=0.05), "a tenth ended early"
    assert line.bytes > 500e9


def test_rollouts_that_grow_take_longer_to_make_and_to_read(ant: Plan) -> None:
    (run,) = ant.cycles
    seconds = costs_of(run).seconds_of
    for stage in ("rollout", "policy", "theory", "phase1"):
        assert seconds[stage](1200) > seconds[stage](8), stage


def test_methods_of_equal_work_get_equal_times(tmp_path: Path) -> None:
    (tmp_path / "algorithms").mkdir()
    for name, threshold in (("low", 0.1), ("high", 9.0)):
        content = {"base": "test-cmlo", "trigger": {"threshold": threshold}}
        (tmp_path / f"algorithms/{name}.yaml").write_text(yaml.safe_dump(content))
    content = {**read_yaml(EXPERIMENT), "methods": ["low", "high"]}
    low, high = estimate(Plan(content, source="e.yaml", folders=(tmp_path, *FOLDERS)), tmp_path)
    assert low.seconds == high.seconds > 0
    assert low.bytes == high.bytes


def test_a_triggered_cycle_counts_as_the_stages_that_it_stands_for(tmp_path: Path) -> None:
    """Two trainings a cycle where MBPO would train twice; measured times scale the whole."""
    plan = plan_of(methods=["test-cmlo"])
    (run,) = plan.cycles
    sizes, costs = Sizes(run.config, run.schedule, 4, 1), costs_of(run)
    of = bytes_by_size(sizes)
    parts = sum(of[stage](2) for stage in ("collect", "phase1", "rollout", "policy"))
    assert of["triggered"](2) == pytest.approx(parts, abs=10_000), "and the trigger's own file"
    rows = run.config.rollout.batch_size * run.schedule.rollout_steps(2)
    assert of[ROLLOUTS](2) == pytest.approx(sizes.row * rows, abs=10_000), "one training in these 30 steps"
    for cycle in (1, 2):
        write_benchmark(tmp_path, run, "triggered", cycle, 3.0 * costs.seconds_of["triggered"](cycle))
    (line,), (bare,) = estimate(plan, tmp_path), estimate(plan, tmp_path / "empty")
    calculated = sum(costs.seconds_of["triggered"](cycle) for cycle in (1, 2, 3))
    assert line.seconds - bare.seconds == pytest.approx(2.0 * calculated)


def test_what_a_triggered_run_left_is_measured_by_its_files(tmp_path: Path) -> None:
    plan = plan_of(methods=["test-cmlo"])
    (run,) = plan.cycles
    calculated = costs_of(run).bytes_of["triggered"]
    for cycle in (1, 2):
        paths = [path for path in run.jobs(cycle)["triggered"] if not is_large(path)]
        for path in paths:
            leave_file(tmp_path, path, 2.0 * calculated(cycle) / len(paths))
    work = work_of(run, [], tmp_path)
    assert work.bytes(ROLLOUTS, 3) == costs_of(run).bytes_of[ROLLOUTS](3), "these were deleted"
    assert work.bytes("triggered", 3) == pytest.approx(2.0 * calculated(3), rel=1e-3)


def test_what_is_let_go_takes_no_disk(tmp_path: Path) -> None:
    """With every-5 of ten cycles, and D_model the rollouts of two, these models and policies stay."""
    plans = {keep: plan_of(methods=["test-mbpo"], steps=300, artifacts={"keep": keep}) for keep in ("all", "every-5")}
    (everything,), (some,) = (estimate(plan, tmp_path) for plan in plans.values())
    (run,) = plans["all"].cycles
    of = costs_of(run).bytes_of
    gone = {POLICY: (1, 2, 6, 7), MODEL_MLE: (1, 2, 3, 6, 7, 8), ROLLOUTS: range(1, 11)}
    expected = sum(of[name](cycle) for name, cycles in gone.items() for cycle in cycles)
    assert everything.bytes - some.bytes == pytest.approx(expected)
    assert everything.jobs == some.jobs
    assert everything.standing == some.standing == 0
    for path in plans["every-5"].artifacts(tmp_path):
        leave_file(tmp_path, path, 10)
    (done,) = estimate(plans["every-5"], tmp_path)
    assert (done.standing, done.bytes) == (done.jobs, 0)


def test_what_is_made_again_is_counted(tmp_path: Path) -> None:
    """From the end of ten cycles the eleventh needs the rollouts of the ninth and tenth."""
    for path in plan_of(methods=["test-mbpo"], steps=300, artifacts={"keep": "last"}).artifacts(tmp_path):
        leave_file(tmp_path, path, 10)
    (more,) = estimate(plan_of(methods=["test-mbpo"], steps=330, artifacts={"keep": "last"}), tmp_path)
    (alone,) = estimate(plan_of(methods=["test-mbpo"], steps=330), tmp_path / "nowhere")
    of_cycle = len(plan_of(methods=["test-mbpo"]).run("test-pendulum", "test-mbpo", 0).jobs(11))
    assert more.jobs == alone.jobs
    assert more.jobs - more.standing == of_cycle + 2
