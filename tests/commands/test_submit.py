"""`usbpo submit`: what its scripts say, what is submitted again, what it refuses. Slurm's commands are made up."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.workflow import BIN, EXPERIMENT, MBPO, USBPO, Ended, ended, environment, finished_workspace

from usbpo.commands import batch_scripts, cli
from usbpo.commands import slurm as slurms_commands
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.yaml_files import read_yaml
from usbpo.monitor.estimate import Chain, Line

SBATCH = """#!/bin/sh
cp "$2" {folder}/submitted-$(ls {folder} | grep -c submitted-).sh
echo $((40 + $(ls {folder} | grep -c submitted-)))
"""
SINFO = "#!/bin/sh\necho 'short* 1:00:00'\necho 'long 2-00:00:00'\necho 'endless infinite'\n"
SQUEUE = "#!/bin/sh\ncat {folder}/queue 2> /dev/null || true\n"
SCRIPTS = ".snakemake/usbpo/submit"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of commands that stand for Slurm's, and of what was handed to them."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "sinfo": SINFO, "squeue": SQUEUE}.items():
        (folder / name).write_text(text.format(folder=shlex.quote(str(folder))))
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def submitted(slurm: Path) -> list[str]:
    return [path.read_text() for path in sorted(slurm.glob("submitted-*.sh"))]


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Type `usbpo submit` in a workspace, on a machine with these commands of Slurm's, or without any."""

    def typed(workspace: Path, *arguments: str, slurm: Path | None = None) -> Ended:
        monkeypatch.chdir(workspace)
        monkeypatch.setenv("PATH", f"{slurm}:{os.environ['PATH']}" if slurm else str(BIN))
        capfd.readouterr()
        code = cli.main(["submit", *arguments])
        said = capfd.readouterr()
        return Ended(code, said.out + said.err)

    return typed


def experiment(folder: Path, **changes: object) -> str:
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump({**read_yaml(EXPERIMENT), **changes}))
    return str(path)


def directives(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, flags=re.MULTILINE)
    return dict(found)


def snakemake_words(script: str) -> list[str]:
    """The command line of a script's job, as bash splits it for task 0 of its array."""
    lines = script.splitlines()
    lines[-1] = lines[-1].replace("exec ", "printf '%s\\n' ", 1)
    text = "\n".join(["SLURM_ARRAY_TASK_ID=0", *(line for line in lines if not line.startswith("#"))])
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout.splitlines()


def test_each_task_and_method_is_an_array_and_a_last_job_draws_the_results(
    workspace: Path, slurm: Path, run: Run
) -> None:
    done = run(workspace, experiment(workspace, seeds=[0, 1, 2, 3, 4]), "--runs-per-job", "2", slurm=slurm)
    assert done.code == 0, done.said
    usbpo, mbpo, results = submitted(slurm)
    named = [f"test-pendulum/test-usbpo/seed-{seed}" for seed in range(5)]
    assert batch_scripts.runs_of(usbpo) == [named[:2], named[2:4], named[4:]]
    said = directives(usbpo)
    assert said["job-name"] == "usbpo-test-pendulum-test-usbpo"
    assert (said["array"], said["cpus-per-task"], said["nodes"]) == ("0-2", "2", "1")
    assert said["signal"] == "B:INT@120"
    assert int(said["mem"].removesuffix("M")) >= 2 * 800 + 600, "two jobs at a time, Snakemake and its worker"
    assert 10 <= int(said["time"]) <= 60
    assert "gpus" not in said
    assert "partition" not in said
    assert directives(mbpo)["array"] == "0-2"
    assert directives(results)["dependency"] == "afterok:41:42"
    assert batch_scripts.runs_of(results) == []
    assert [line.split(":")[0] for line in done.said.splitlines()] == [
        "usbpo-test-pendulum-test-usbpo",
        "usbpo-test-pendulum-test-mbpo",
        "usbpo-test-results",
    ]


def test_the_command_of_a_job_is_one_that_snakemake_understands(workspace: Path, slurm: Path, run: Run) -> None:
    run(workspace, experiment(workspace, seeds=[0, 1]), "--scale", "0.5", "--gpus", "1", slurm=slurm)
    script = submitted(slurm)[0]
    assert directives(script)["gpus"] == "1"
    words = snakemake_words(script)
    assert words[0] == str(BIN / "snakemake")
    assert words[words.index("--resources") + 1 :][:2] == ["mem_mb=800", "gpu=1"]
    done = ended([*words, "--dry-run"], workspace)
    assert done.code == 0, done.said
    assert set(re.findall(r"test-pendulum/\S+/seed-\d+", done.said)) == {USBPO}, "one of the four runs"
    assert "results" not in done.said.split("Job stats")[1]
    assert re.search(r"^runs +1$", done.said, flags=re.MULTILINE)


def test_runs_that_need_a_gpu_get_one(workspace: Path, slurm: Path, run: Run) -> None:
    (workspace / "config/algorithms").mkdir(parents=True)
    (workspace / "config/algorithms/on-gpu.yaml").write_text("base: test-mbpo\ndevice: cuda\n")
    run(workspace, experiment(workspace, methods=["test-mbpo", "on-gpu"]), slurm=slurm)
    assert ["gpus" in directives(script) for script in submitted(slurm)] == [False, True, False]
    assert directives(submitted(slurm)[1])["gpus"] == "1"


def test_what_is_asked_for_takes_the_place_of_what_is_worked_out(workspace: Path, slurm: Path, run: Run) -> None:
    options = ("--cores", "3", "--partition", "long", "--time", "1-00:00", "--no-results")
    run(workspace, str(EXPERIMENT), *options, slurm=slurm)
    scripts = submitted(slurm)
    assert len(scripts) == 2
    said = directives(scripts[0])
    assert (said["cpus-per-task"], said["partition"], said["time"]) == ("3", "long", "1-00:00")
    assert int(said["mem"].removesuffix("M")) >= 3 * 800


def test_the_same_command_gives_the_same_scripts(workspace: Path, slurm: Path, run: Run) -> None:
    for _ in range(2):
        assert run(workspace, str(EXPERIMENT), "--time", "30", slurm=slurm).code == 0
    scripts = submitted(slurm)
    assert [directives(script)["job-name"] for script in scripts[:3]] == [
        directives(script)["job-name"] for script in scripts[3:]
    ]
    assert scripts[:2] == scripts[3:5]
    assert len(list((workspace / SCRIPTS).glob("*.sh"))) == 4, "two arrays, and results after two pairs of them"


def test_only_unfinished_runs_are_submitted_again(finished: Path, tmp_path: Path, slurm: Path, run: Run) -> None:
    workspace = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    done = run(workspace, str(EXPERIMENT), slurm=slurm)
    assert (done.code, submitted(slurm)) == (0, [])
    assert "Nothing is left to submit." in done.said
    (workspace / f"data/runs/{MBPO}/00002/policy.safetensors").unlink()
    run(workspace, str(EXPERIMENT), slurm=slurm)
    pilot, results = submitted(slurm)
    assert batch_scripts.runs_of(pilot) == [[MBPO]]
    assert directives(results)["dependency"] == "afterok:41"


def test_finished_runs_are_submitted_when_all_are_wanted(finished: Path, tmp_path: Path, slurm: Path, run: Run) -> None:
    workspace = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    run(workspace, str(EXPERIMENT), "--all", slurm=slurm)
    assert [batch_scripts.runs_of(script) for script in submitted(slurm)] == [[[USBPO]], [[MBPO]], []]
    assert int(directives(submitted(slurm)[0])["time"]) >= 20, "as if nothing stood"


def test_results_that_are_missing_are_drawn_by_a_job_alone(
    finished: Path, tmp_path: Path, slurm: Path, run: Run
) -> None:
    workspace = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    (workspace / "data/results/test/comparison.csv").unlink()
    run(workspace, str(EXPERIMENT), slurm=slurm)
    (results,) = submitted(slurm)
    assert "dependency" not in directives(results)


def test_runs_in_the_queue_are_left_alone(workspace: Path, slurm: Path, run: Run) -> None:
    path = experiment(workspace, seeds=[0, 1])
    run(workspace, path, slurm=slurm)
    scripts = sorted((workspace / SCRIPTS).glob("*.sh"))
    usbpo = next(script for script in scripts if "test-usbpo" in script.name)
    (slurm / "queue").write_text(
        f"41|1|usbpo-test-pendulum-test-usbpo|Resources|{usbpo}\n7|N/A|else|None|/else/where.sh\n"
    )
    done = run(workspace, path, slurm=slurm)
    assert "In the queue already, with 1 run: 41. A job keeps the options it was given." in done.said
    assert "cannot start" not in done.said
    first, second, results = submitted(slurm)[3:]
    assert batch_scripts.runs_of(first) == [["test-pendulum/test-usbpo/seed-0"]]
    assert batch_scripts.runs_of(second) == [[f"test-pendulum/test-mbpo/seed-{seed}"] for seed in (0, 1)]
    assert directives(results)["dependency"] == "afterok:41:44:45"


def test_results_of_very_many_jobs_are_drawn_without_planning_them(
    workspace: Path, slurm: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_scripts, "MANY_BYTES", 1e6)
    run(workspace, experiment(workspace, returns={"test-pendulum": [20, 25]}), slurm=slurm)
    results = submitted(slurm)[-1]
    words = snakemake_words(results)
    assert words[:2] == [str(BIN / "usbpo"), "results"]
    returns = words.index("--returns")
    assert [word.split(":")[0] for word in words[words.index("--runs") + 1 : returns]] == [USBPO, MBPO]
    assert words[returns + 1 :] == ["test-pendulum=20,25"]
    assert words[words.index("--output") + 1] == "data/results/test"


def test_a_time_limit_of_the_partition_is_kept_and_said(
    run_config: Callable[[str], RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    chains = [Chain(run_config("Hopper"), {"collect": 7200.0})] * 2
    line = Line("Hopper", "mbpo", runs=2, jobs=2000, chains=chains)
    assert batch_scripts.minutes(line, 1, 1, None) == 260, "twice two hours, a beginning, and whole tens of minutes"
    assert batch_scripts.minutes(line, 4, 2, None) > 2 * 240
    assert batch_scripts.minutes(line, 4, 4, 1000) == batch_scripts.minutes(line, 4, 4, None)
    assert capsys.readouterr().out == ""
    assert batch_scripts.minutes(line, 1, 1, 60) == 60
    assert "what is not finished then goes on when this command is typed again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "minutes"), [("30:00", 30), ("1:00:00", 60), ("2-00:00:00", 2880), ("1-12", 2160), ("infinite", None)]
)
def test_time_limits_are_read_as_slurm_writes_them(
    limit: str, minutes: int | None, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm / "sinfo").write_text(f"#!/bin/sh\necho 'short* {limit}'\necho 'other 5:00'\n")
    monkeypatch.setenv("PATH", str(slurm), prepend=":")
    assert slurms_commands.time_limit(None) == minutes
    assert slurms_commands.time_limit("other") == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--time", "soon"), "--time soon is no time limit; give minutes, HH:MM:SS or DAYS-HH:MM."),
        (
            ("--partition", "none-such"),
            "--partition none-such: the cluster has no such partition; it has endless, long, short.",
        ),
        (
            ("--time", "1:01:00"),
            "--time 1:01:00: the partition allows 1 h 00 min; give no more than that, or a --partition that allows it.",
        ),
        *(
            (
                ("--time", time),
                f"--time {time} is too short, since a job is interrupted 2 minutes before its limit; give 5 minutes or "
                "more.",
            )
            for time in ("1", "4:59", "00:04:30")
        ),
    ],
)
def test_bad_requests_end_in_a_sentence(
    options: tuple[str, ...], sentence: str, workspace: Path, slurm: Path, run: Run
) -> None:
    done = run(workspace, str(EXPERIMENT), *options, slurm=slurm)
    assert done.code == 1
    assert done.said == f"usbpo submit: {sentence}\n"
    assert submitted(slurm) == []
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize("options", [("--partition", "long"), ("--partition", "endless"), ()])
def test_a_time_that_the_partition_allows_is_taken(
    options: tuple[str, ...], workspace: Path, slurm: Path, run: Run
) -> None:
    time = "1-00:00" if options else "1:00:00"
    assert run(workspace, str(EXPERIMENT), "--time", time, *options, slurm=slurm).code == 0
    assert directives(submitted(slurm)[0])["time"] == time


def test_a_job_that_can_never_start_is_told_with_its_cure(workspace: Path, slurm: Path, run: Run) -> None:
    run(workspace, str(EXPERIMENT), slurm=slurm)
    scripts = sorted(path for path in (workspace / SCRIPTS).glob("*.sh") if "results" not in path.name)
    (slurm / "queue").write_text("".join(f"4{n}|0|name|PartitionConfig|{path}\n" for n, path in enumerate(scripts)))
    done = run(workspace, str(EXPERIMENT), "--no-results", "--cores", "2", slurm=slurm)
    assert done.said.splitlines() == [
        "In the queue already, with 2 runs: 40, 41. A job keeps the options it was given.",
        *(
            f"Job {number} cannot start: PartitionConfig, which does not end by itself. To change its options, "
            f"scancel {number} first, then type this again."
            for number in (40, 41)
        ),
    ]
    assert len(submitted(slurm)) == 3, "and nothing more"


def test_of_two_that_submit_at_once_the_second_finds_the_jobs_of_the_first(workspace: Path, slurm: Path) -> None:
    """An `sbatch` that takes its time and puts jobs into the queue; both look into it before the first has ended."""
    said = f'{SBATCH}name=$(basename "$2")\necho "50|0|$name|Resources|$2" >> {{folder}}/queue\nsleep 1\n'
    (slurm / "sbatch").write_text(said.format(folder=shlex.quote(str(slurm))))
    variables = environment() | {"PATH": f"{slurm}:{BIN}:{os.environ['PATH']}"}
    words = [str(BIN / "usbpo"), "submit", str(EXPERIMENT), "--no-results"]
    both = [
        subprocess.Popen(words, cwd=workspace, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert len(submitted(slurm)) == 2, "one job for each of the two runs"
    assert sorted("In the queue already" in out for out, _ in told) == [False, True]


def test_what_slurm_refuses_is_said_in_its_words(workspace: Path, slurm: Path, run: Run) -> None:
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    done = run(workspace, str(EXPERIMENT), slurm=slurm)
    assert (done.code, done.said.count("\n")) == (1, 1)
    assert "sbatch failed: sbatch: error: Invalid account; mend that and type it again." in done.said


def test_a_machine_without_slurm_is_told_and_can_show_the_scripts(workspace: Path, run: Run) -> None:
    done = run(workspace, str(EXPERIMENT))
    assert (done.code, done.said.count("\n")) == (1, 1)
    assert "sinfo: there is no such command" in done.said
    shown = run(workspace, str(EXPERIMENT), "--dry-run", "--time", "30")
    assert shown.code == 0, shown.said
    assert shown.said.count("#!/bin/bash") == 3
    assert "#SBATCH --dependency=afterok:usbpo-test-pendulum-test-usbpo:usbpo-test-pendulum-test-mbpo\n" in shown.said
    assert shown.said.count("# In place of names sbatch wants the numbers of these jobs, which it prints") == 1
    assert not (workspace / SCRIPTS).exists(), "a dry run writes nothing"
