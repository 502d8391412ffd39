"""The contract with the inside of Snakemake: each behaviour that usbpo rests on, tried with a workflow of its own.

A test that fails names the behaviour that an upgrade has changed; usbpo/workspace/snakemake_inside.py is the place to
follow it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.contract import contract
from helpers.workflow import BIN, ended, environment, wait_for

from usbpo.artifacts.files import sha256
from usbpo.workspace import snakemake_inside as inside

pytestmark = pytest.mark.xdist_group("inside")

SNAKEFILE = """
import json
from usbpo.workspace import snakemake_inside as inside

FACTS = workflow.basedir + "/facts.jsonl"


def note(**facts):
    with open(FACTS, "a") as file:
        print(json.dumps(facts), file=file)


note(
    at="parsing",
    configuration_files=inside.configuration_files(workflow),
    has_config_words=inside.has_config_words(workflow),
    is_main=inside.is_main(workflow),
    runs_jobs_here=inside.runs_jobs_here(workflow),
    gives_jobs_environments=inside.gives_jobs_environments(workflow),
)


@inside.told
def inputs_of_b(wildcards):
    asked, record = inside.asked(workflow), inside.record_of(workflow, "b/1.txt")
    if config.get("keep"):
        inside.keep_temporary_files(workflow)
    recorded = record and {key: getattr(record, key) for key in inside.KEPT}
    facts = {"targets": sorted(asked.targets), "partly": asked.partly, "forced": asked.forced}
    note(at="planning", record=recorded, **facts)
    path = f"a/{wildcards.n}.txt"
    return inside.without_maker(path) if config.get("hidden") else path


rule all:
    input:
        "b/1.txt",
        "c.txt",


rule a:
    output:
        temp("a/{n}.txt"),
    shell:
        "echo a > {output}"


rule b:
    input:
        inputs_of_b,
    output:
        "b/{n}.txt",
    params:
        number=1.5,
        words=["two", config.get("word", "2")],
        nothing=None,
    shell:
        "cp {input} {output}"


rule c:
    output:
        "c.txt",
    run:
        with open(output[0], "w") as file:
            file.write("c")


rule waits:
    output:
        config.get("waiting", "waiting.txt"),
    shell:
        "echo begun > {output}; read line < fifo"


onstart:
    note(at="starting", jobs=inside.jobs_to_run(workflow))
"""

CHAIN = """
from usbpo.workspace import snakemake_inside as inside

inside.allow_long_chains()


rule link:
    input:
        lambda wildcards: f"{int(wildcards.n) - 1}.txt" if int(wildcards.n) else [],
    output:
        "{n,[0-9]+}.txt",
    shell:
        "touch {output}"
"""


SHARES = """
from usbpo.workspace import snakemake_inside as inside

CORES = inside.CoresByRun(workflow, ["policy"])
WAIT = "while [ ! -e task/short/seed-0/1/policy ]; do sleep 0.1; done; sleep 1;"


wildcard_constraints:
    cycle="[0-9]+"


rule all:
    input:
        "task/short/seed-0/1/policy",
        "task/long/seed-0/3/policy",


rule policy:
    input:
        lambda w: f"{w.task}/{w.method}/seed-{w.seed}/{int(w.cycle) - 1}/policy" if int(w.cycle) > 1 else [],
    output:
        "{task}/{method}/seed-{seed}/{cycle}/policy",
    threads: lambda wildcards: CORES.share()
    params:
        wait=lambda w: WAIT if (w.method, w.cycle) == ("long", "1") else "",
    shell:
        "{params.wait} echo {threads} $OMP_NUM_THREADS > {output}"
"""


def words(*arguments: str) -> list[str]:
    return [str(BIN / "snakemake"), *arguments, "--cores", "1"]


def snakemake(folder: Path, *arguments: str, fails: bool = False) -> str:
    """Run the workflow in `folder`; targets come first."""
    done = ended(words(*arguments), folder)
    assert (done.code != 0) == fails, done.said
    return done.said


def facts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What the Snakefile noted, by the moment, in order."""
    found: dict[str, list[dict[str, Any]]] = {"parsing": [], "planning": [], "starting": []}
    for line in (folder / "facts.jsonl").read_text().splitlines():
        fact = json.loads(line)
        found[fact.pop("at")].append(fact)
    return found


def planned(said: str) -> set[str]:
    return {line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith(("rule ", "localrule "))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the workflow has run with a configuration file and words; not to be changed."""
    folder = tmp_path_factory.mktemp("inside")
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "own.yaml").write_text("keep: true\n")
    snakemake(folder, "--configfile", "own.yaml", "--config", "word=3")
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, without facts."""
    folder = shutil.copytree(finished, tmp_path / "workspace")
    (folder / "facts.jsonl").unlink()
    return folder


ANEW = ("--configfile", "own.yaml", "--config", "word=3")

# ---- what a Snakefile asks -------------------------------------------------------------------------------------


def test_the_command_says_which_configuration_it_names(finished: Path, workspace: Path) -> None:
    with contract("snakemake", "workflow.overwrite_configfiles has the files of --configfile, and nothing else"):
        assert facts(finished)["parsing"][0]["configuration_files"] == [str(finished / "own.yaml")]
        snakemake(workspace, "--dry-run")
        assert facts(workspace)["parsing"][0]["configuration_files"] == []
    with contract("snakemake", "workflow.config_settings.config has what --config says, and nothing else"):
        assert facts(finished)["parsing"][0]["has_config_words"] is True
        assert facts(workspace)["parsing"][0]["has_config_words"] is False


READ_BY_US = """
import sys

from snakemake.cli import main
from usbpo.workspace import snakemake_inside as inside

inside.read_configuration_by(lambda path: {"from": str(path), "beside": "us"})
main(sys.argv[1:])
"""
SHOWN = """
if not workflow.overwrite_configfiles:
    configfile: "default.yaml"

print("CONFIG", config["from"].rpartition("/")[2], config["beside"])

rule nothing:
"""


def test_configuration_files_are_read_by_whom_they_shall_be(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SHOWN)
    for name in ("default.yaml", "given.yaml"):
        (tmp_path / name).write_text("no: mapping: at all")
    for more, read in (((), "default.yaml"), (("--configfile", "given.yaml"), "given.yaml")):
        words = [sys.executable, "-c", READ_BY_US, "--cores", "1", "--dry-run", *more]
        said = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600)
        with contract("snakemake", "configuration files are read by common.configfile.load_configfile of its module"):
            assert f"CONFIG {read} us\n" in said.stdout + said.stderr


def test_a_snakemake_that_was_started_for_a_job_is_not_the_main_one(finished: Path) -> None:
    with contract("snakemake", "workflow.is_main_process is true where the user's command runs, and false in a job's"):
        assert [fact["is_main"] for fact in facts(finished)["parsing"]] == [True, False]


def test_the_executor_says_where_jobs_run(finished: Path) -> None:
    with contract("snakemake", "workflow.local_exec is true for the executor `local`"):
        assert facts(finished)["parsing"][0]["runs_jobs_here"] is True


def test_jobs_have_environments_where_they_are_asked_for(finished: Path, workspace: Path) -> None:
    with contract("snakemake", "workflow.deployment_settings.deployment_method is empty without one, else not"):
        assert facts(finished)["parsing"][0]["gives_jobs_environments"] is False
        snakemake(workspace, "--dry-run", "--software-deployment-method", "env-modules")
        assert facts(workspace)["parsing"][0]["gives_jobs_environments"] is True


def test_what_is_asked_for_is_known_when_it_plans(finished: Path, workspace: Path) -> None:
    with contract("snakemake", "workflow.dag_settings has no targets, nothing left out and nothing forced by default"):
        first = facts(finished)["planning"][0]
        assert (first["targets"], first["partly"], first["forced"]) == ([], False, False)
    snakemake(workspace, "b/1.txt", "--until", "b", "--forcerun", "b", "--dry-run")
    with contract("snakemake", "workflow.dag_settings has the targets, until and forcerun of the command"):
        asked = facts(workspace)["planning"][0]
        assert (asked["targets"], asked["partly"], asked["forced"]) == (["b/1.txt"], True, True)


def test_temporary_files_stay_where_an_input_function_says_so(finished: Path, workspace: Path) -> None:
    with contract("snakemake", "workflow.storage_settings.notemp, set while it plans, keeps temporary files"):
        assert (finished / "a/1.txt").exists()
        snakemake(workspace, "--forceall")
        assert not (workspace / "a/1.txt").exists(), "it was kept for another reason"


def test_the_jobs_that_will_run_are_known_when_it_starts(finished: Path) -> None:
    with contract("snakemake", "workflow.dag.needrun_jobs() in onstart gives jobs with rule.name and wildcards_dict"):
        jobs = sorted(facts(finished)["starting"][0]["jobs"])
        assert jobs == [["a", {"n": "1"}], ["all", {}], ["b", {"n": "1"}], ["c", {}]]


def test_a_job_that_is_not_shown_the_maker_of_its_input_does_not_run(workspace: Path) -> None:
    (workspace / "a/1.txt").unlink()
    (workspace / "c.txt").unlink()
    with contract("snakemake", "a job that stands, with an input flagged before_update, drops out if that is missing"):
        said = snakemake(workspace, "all", "a/1.txt", "--dry-run", *ANEW, "hidden=1")
        assert planned(said) == {"all", "a", "c"}
    with contract("snakemake", "without the flag before_update the readers of what is made again run"):
        assert "b" in planned(snakemake(workspace, "all", "a/1.txt", "--dry-run", *ANEW))


def test_a_function_that_has_told_its_parameters_is_asked_with_them() -> None:
    from snakemake.common import get_function_params

    with contract("snakemake", "get_function_params takes the parameters of a function from its __signature__"):
        function = inside.told(lambda wildcards, attempt: None)
        assert list(get_function_params(function)) == ["wildcards", "attempt"]
        function.__signature__ = function.__signature__.replace(parameters=[])  # type: ignore[attr-defined]
        assert list(get_function_params(function)) == []


def test_a_chain_may_be_longer_than_pythons_recursion(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(CHAIN)
    with contract("snakemake", "a chain of jobs is followed by recursion, for which sys.setrecursionlimit makes room"):
        assert "\ntotal     1200\n" in snakemake(tmp_path, "1199.txt", "--dry-run", "--quiet", "rules")


# ---- its records of files --------------------------------------------------------------------------------------


def test_a_record_says_how_a_file_was_made(finished: Path) -> None:
    record = inside.Records(finished).finished(["b/1.txt"])["b/1.txt"]
    with contract("snakemake", "records have the entries KEPT, and RECORD_FORMAT_VERSION is their format's number"):
        assert record["record_format_version"] == inside.format_number()
        assert (record["rule"], record["shellcmd"], record["log"]) == ("b", "cp a/1.txt b/1.txt", [])
    with contract("snakemake", "params of a record are the repr of each value"):
        assert inside.same_params(record["params"], [1.5, ["two", 3], None])
        assert not inside.same_params(record["params"], [1.5, ["two", 4], None])
    with contract("snakemake", "input of a record is the paths"):
        assert inside.same_input(record["input"], ["a/1.txt"])
        assert not inside.same_input(record["input"], ["a/2.txt"])
    with contract("snakemake", "input_checksums of a record has the SHA-256 of each input, after `sha256:` or alone"):
        assert inside.contents_read(record["input_checksums"]) == {"a/1.txt": sha256(finished / "a/1.txt")}


def test_a_snakefile_reads_the_record_of_a_file(finished: Path, workspace: Path) -> None:
    snakemake(workspace, "--dry-run", *ANEW)
    with contract("snakemake", "workflow.persistence.metadata(IOFile(path, rule=None)) gives the record, or None"):
        assert facts(finished)["planning"][0]["record"] is None
        written = facts(workspace)["planning"][0]["record"]
        assert written == inside.Records(workspace).finished(["b/1.txt"])["b/1.txt"]


def test_a_record_has_the_time_at_which_the_job_left_its_file(workspace: Path) -> None:
    with contract("snakemake", "endtime of a record is the modification time of the file when its job ended"):
        assert inside.Records(workspace).left_at("b/1.txt") == pytest.approx((workspace / "b/1.txt").stat().st_mtime)
        assert inside.Records(workspace).left_at("none.txt") is None


def test_records_are_named_and_say_what_was_read(workspace: Path) -> None:
    records = inside.Records(workspace)
    with contract("snakemake", "the name of a record is the path of its file in base64"):
        assert set(records.names()) == {"a/1.txt", "b/1.txt", "c.txt"}
    with contract("snakemake", "input and input_checksums of a record say what a job has read"):
        assert records.inputs("b/1.txt").keys() == {"a/1.txt"}
        assert records.inputs("c.txt") == records.inputs("none.txt") == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"3", b'{"params": [3]}', b"[" * 100_000])
def test_a_damaged_record_counts_as_lost(workspace: Path, content: bytes) -> None:
    path = workspace / ".snakemake/metadata" / urlsafe_b64encode(b"b/1.txt").decode()
    path.write_bytes(content)
    records = inside.Records(workspace)
    with contract("snakemake", "its persistence reads each record by _io_read"):
        assert records.finished(["b/1.txt", "c.txt"]).keys() == {"c.txt"}
        assert records.inputs("b/1.txt") == {}
        assert records.left_at("b/1.txt") is None


def test_records_that_were_put_back_do_as_well_as_its_own(workspace: Path) -> None:
    names = ["a/1.txt", "b/1.txt", "c.txt"]
    kept = inside.Records(workspace).finished(names)
    assert sorted(kept) == names
    shutil.rmtree(workspace / ".snakemake")
    records = inside.Records(workspace)
    for name in names:
        os.utime(workspace / name, (1_000_000, 1_000_000))
        records.put_back(name, json.loads(json.dumps(kept[name])), 1_000_000)
    with contract("snakemake", "a MetadataRecord that FilePersistence has written counts as one of Snakemake's own"):
        assert "Nothing to be done" in snakemake(workspace, *ANEW)
        assert inside.Records(workspace).finished(names) == kept
    with contract("snakemake", "params of such a record are held against those of the rule"):
        said = snakemake(workspace, "--dry-run", "--configfile", "own.yaml", "--config", "word=4")
        assert "b" in planned(said)
        assert "c" not in planned(said)


# ---- its locks and marks ---------------------------------------------------------------------------------------

LONG = "waiting/" + "a-name-that-takes-more-than-one-folder-of-base64-" * 4 + ".txt"


@pytest.fixture
def waiting(workspace: Path) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """The folder and the process of a Snakemake whose one job waits."""
    os.mkfifo(workspace / "fifo")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    arguments = (LONG, "--config", f"waiting={LONG}")
    process = subprocess.Popen(  # type: ignore[call-overload]
        words(*arguments), cwd=workspace, env=environment(), start_new_session=True, **quiet
    )
    try:
        wait_for((workspace / LONG).exists, 300, "the job's beginning")
        yield workspace, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_locks_and_marks_tell_of_a_snakemake_at_work_and_of_a_killed_one(
    waiting: tuple[Path, "subprocess.Popen[bytes]"],
) -> None:
    folder, process = waiting
    again = ("--rerun-incomplete", "--config", f"waiting={LONG}")
    now = time.time()
    with contract("snakemake", "a file that is being made has a mark in .snakemake/incomplete, named in base64"):
        found = dict(inside.begun(folder))
        assert list(found) == [LONG]
        assert now - 300 < found[LONG] <= now
        assert inside.Records(folder).finished([LONG]) == {}
    with contract("snakemake", "a Snakemake at work has files *.lock in .snakemake/locks, and another one is refused"):
        since = inside.locked_since(folder)
        assert since is not None
        assert now - 300 < since <= now
        assert "LockException" in snakemake(folder, LONG, *again, fails=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contract("snakemake", "one that was killed leaves its locks and marks behind"):
        assert inside.locked_since(folder) == since
        assert dict(inside.begun(folder)) == found
    with contract("snakemake", "without the files in .snakemake/locks nothing is locked"):
        assert inside.remove_locks(folder)
        assert inside.locked_since(folder) is None
        (folder / "fifo").unlink()
        (folder / "fifo").write_text("go\n")
        snakemake(folder, LONG, *again)
    with contract("snakemake", "one that has ended leaves neither locks nor marks"):
        assert dict(inside.begun(folder)) == {}
        assert inside.locked_since(folder) is None
        assert not inside.remove_locks(folder)


def test_the_modules_of_snakemake_are_imported_only_where_they_are_needed() -> None:
    """The light front of the command line imports this module's neighbours."""
    code = "import sys; import usbpo.workspace.lifetime; sys.exit('snakemake' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_has_its_share_of_the_cores_and_more_when_others_have_ended(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SHARES)
    done = ended([str(BIN / "snakemake"), "--cores", "5"], tmp_path)
    assert done.code == 0, done.said
    told = {path.relative_to(tmp_path / "task").parts: path.read_text() for path in tmp_path.glob("task/*/*/*/policy")}
    with contract("snakemake", "a job's threads are asked for when its turn comes, and told it in OMP_NUM_THREADS"):
        assert told == {
            ("short", "seed-0", "1", "policy"): "2 2\n",
            ("long", "seed-0", "1", "policy"): "2 2\n",
            ("long", "seed-0", "2", "policy"): "5 5\n",
            ("long", "seed-0", "3", "policy"): "5 5\n",
        }
