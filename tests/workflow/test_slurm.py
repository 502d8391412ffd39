"""A real Slurm: the test experiment as pilot jobs and as a job for each stage, and jobs that Slurm kills."""

import subprocess
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.slurm import Cluster, cluster, missing
from helpers.workflow import BIN, EXPERIMENT, MBPO, REPO, USBPO, command, finished_workspace, snakemake, tree, wait_for

from usbpo.commands.batch_scripts import SCRIPTS
from usbpo.experiment.yaml_files import read_yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(missing() != "", reason=f"Slurm is not installed here: {missing()} is missing"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node with two cores, and one partition with a limit of an hour."""
    with cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test experiment, run here by one Snakemake; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def submit(slurm: Cluster, folder: Path, *arguments: str, **changes: str) -> str:
    return slurm.said(str(BIN / "usbpo"), "submit", *arguments, folder=folder, **changes)


def jobs(said: str) -> list[str]:
    """The numbers of the jobs that were submitted."""
    return [line.split(": job ")[1].split(",")[0] for line in said.splitlines() if ": job " in line]


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((folder / SCRIPTS).glob("*.log")))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the executor plugins, and the tested one's packages."""
    folder = tmp_path_factory.mktemp("plugin") / "env"
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([interpreter, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    Path(packages, "tested.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPO}\n")
    done = subprocess.run(
        [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements()],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"the executor plugins cannot be installed here: {done.stderr.strip()[-300:]}")
    return interpreter


def requirements() -> list[str]:
    """The extras `slurm` and `cluster` of pyproject.toml."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return extras["slurm"] + extras["cluster"]


def test_a_job_for_each_stage_leaves_the_bytes_of_a_local_run(
    slurm: Cluster, workspace: Path, finished: Path, python: Path
) -> None:
    """One cycle of one run, whose bytes do not depend on how many cycles there are: each job costs many seconds."""
    target = f"data/runs/{MBPO}/00001/evaluation.h5"
    words = command(workspace, target, "--workflow-profile", str(REPO / "profiles/slurm"))
    without_gpus = [f"{stage}:gpu=0" for stage in ("phase1", "rollout", "policy")]
    words += [
        "--slurm-status-command",
        "squeue",
        "--slurm-no-account",
        "--slurm-init-seconds-before-status-checks",
        "3",
    ]
    said = slurm.said(str(python), "-m", "snakemake", *words[1:], "--set-resources", *without_gpus, folder=workspace)
    made, wanted = tree(workspace), tree(finished)
    assert target in made, said
    assert made == {name: wanted[name] for name in made}
    ended = slurm.said("squeue", "--states=all", "--noheader", "--format=%k|%m|%l|%C|%T").splitlines()
    policy = next(line for line in ended if line.startswith("rule_policy"))
    assert policy.split("|")[1:] == ["500M", "10:00", "1", "COMPLETED"]
    assert {line.split("_wildcards_")[0] for line in ended if line.startswith("rule_")} == {
        f"rule_{stage}" for stage in ("collect", "initialise", "phase1", "rollout", "policy", "evaluate")
    }


def test_any_command_that_submits_a_script_will_do(
    slurm: Cluster, workspace: Path, finished: Path, python: Path
) -> None:
    """`profiles/cluster`, with `sbatch` as one of many such commands."""
    target = f"data/runs/{MBPO}/00000/evaluation.h5"
    words = command(workspace, target, "--workflow-profile", str(REPO / "profiles/cluster"))
    words += ["--cluster-generic-submit-cmd"]
    words += ["sbatch --parsable --cpus-per-task={threads} --mem={resources.mem_mb}M --time={resources.runtime}"]
    said = slurm.said(str(python), "-m", "snakemake", *words[1:], folder=workspace)
    made, wanted = tree(workspace), tree(finished)
    assert target in made, said
    assert made == {name: wanted[name] for name in made}


def test_pilot_jobs_leave_the_bytes_of_a_local_run(slurm: Cluster, workspace: Path, finished: Path) -> None:
    arrays = jobs(submit(slurm, workspace, str(EXPERIMENT)))
    assert len(arrays) == 3
    again = submit(slurm, workspace, str(EXPERIMENT))
    assert "In the queue already" in again
    assert not jobs(again), "what is in the queue is not submitted twice"
    slurm.wait_until_idle()
    assert tree(workspace) == tree(finished), logs(workspace)
    assert "Nothing is left to submit." in submit(slurm, workspace, str(EXPERIMENT))
    assert "Nothing to be done" in snakemake(workspace, "--dry-run").said


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 15 cycles that nothing has stopped, and in its folder the experiment, `e.yaml`."""
    folder = tmp_path_factory.mktemp("longer")
    experiment = folder / "e.yaml"
    experiment.write_text(yaml.safe_dump({**read_yaml(EXPERIMENT), "methods": ["test-mbpo"], "steps": 450}))
    done = snakemake(folder, experiment=experiment, cores=1)
    assert done.code == 0, done.said
    return folder


@pytest.mark.parametrize("kill", ["scancel", "time limit"])
def test_a_job_that_slurm_stops_is_taken_up_by_the_same_command(
    kill: str, slurm: Cluster, workspace: Path, longer: Path
) -> None:
    experiment = str(longer / "e.yaml")
    changes = {"USBPO_WARM": "0"} if kill == "time limit" else {}
    array, results = jobs(submit(slurm, workspace, experiment, **changes))
    if kill == "time limit":
        # With a minute left, Slurm interrupts the job at its first look; slow stages make sure that it comes in time.
        slurm.said("scontrol", "update", f"jobid={array}", "timelimit=1")
    if kill == "scancel":
        wait_for((workspace / f"data/runs/{MBPO}/00001/policy.safetensors").exists, 300, "a policy")
        slurm.said("scancel", array)
    slurm.wait_until_idle()
    assert slurm.state(f"{array}_0") in {"CANCELLED", "FAILED", "TIMEOUT"}, logs(workspace)
    assert slurm.state(results) == "CANCELLED"
    assert not (workspace / f"data/runs/{MBPO}/00015/policy.safetensors").exists(), "it was stopped on its way"
    assert len(jobs(submit(slurm, workspace, experiment))) == 2
    slurm.wait_until_idle()
    assert tree(workspace) == tree(longer), logs(workspace)


def test_the_second_of_two_jobs_on_one_run_is_refused(slurm: Cluster, workspace: Path, finished: Path) -> None:
    """Whoever submits a script a second time past `usbpo submit`, which would have looked into the queue."""
    experiment = workspace / "e.yaml"
    experiment.write_text(yaml.safe_dump({**read_yaml(EXPERIMENT), "methods": ["test-usbpo"]}))
    (first,) = jobs(submit(slurm, workspace, str(experiment), "--no-results"))
    (script,) = (workspace / SCRIPTS).glob("*.sh")
    second = slurm.said("sbatch", "--parsable", str(script), folder=workspace).strip()
    slurm.wait_until_idle()
    assert {slurm.state(f"{number}_0") for number in (first, second)} == {"COMPLETED", "FAILED"}, logs(workspace)
    assert logs(workspace).count("another Snakemake is at work on it; wait until that ends.") == 1
    of_run = {name: sha for name, sha in tree(finished).items() if f"data/runs/{USBPO}" in name}
    assert tree(workspace) == of_run
