"""Owners, and the lock that tells a crash from a living Snakemake."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbpo.artifacts.layout import PROVENANCE
from usbpo.errors import UsbpoError
from usbpo.monitor.targets import read_targets
from usbpo.workspace import lifetime, provenance

Start = Callable[..., "subprocess.Popen[str]"]

linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system tells no start times")


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python processes, given as code, that are killed with the test; `say()` in the code prints a line."""
    processes = []

    def start(code: str, *arguments: str, **options: object) -> "subprocess.Popen[str]":
        prelude = "import os, sys, time\nfrom pathlib import Path\nfrom usbpo.workspace import lifetime\n"
        prelude += "from usbpo.errors import UsbpoError\n"
        prelude += "def say(text): print(text, flush=True)\n"
        command = [sys.executable, "-c", prelude + textwrap.dedent(code), *arguments]
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_a_process_is_alive_until_it_ends() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = lifetime.identity(process.pid)
    assert lifetime.alive(owner)
    assert lifetime.alive(lifetime.identity())
    process.communicate(b"\n")
    assert not lifetime.alive(owner)


@linux_only
def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = lifetime.identity(process.pid)
    process.kill()
    wait_until(lambda: not lifetime.alive(owner))  # not waited for, hence still in the table of processes
    process.communicate()


@linux_only
def test_a_later_process_with_the_same_number_is_not_taken_for_the_owner() -> None:
    pid, start_time, place = lifetime.identity().split(":")
    assert not lifetime.alive(f"{pid}:{int(start_time) - 1}:{place}")
    assert lifetime.alive(f"{pid}:{start_time}")
    assert lifetime.alive(pid)


def test_an_owner_on_another_machine_is_neither_alive_nor_watched(start: Start) -> None:
    foreign = f"{os.getpid()}:0:elsewhere"
    assert lifetime.is_foreign(foreign)
    assert not lifetime.alive(foreign)
    process = start("lifetime.end_with(sys.argv[1]); say('watching'); input(); say('alive')", foreign)
    line(process)
    assert process.communicate("\n")[0] == "alive\n"


@pytest.mark.parametrize("owner", ["", "me", "0", "-1", "1:x", "1.5:2"])
def test_what_is_no_process_is_refused_with_a_sentence(owner: str) -> None:
    with pytest.raises(UsbpoError, match="not a process"):
        lifetime.end_with(owner)


@pytest.mark.parametrize("prepare", ["", "del os.pidfd_open"], ids=["told by the system", "polled"])
def test_a_process_ends_when_its_owner_is_killed(start: Start, prepare: str) -> None:
    if prepare and not hasattr(os, "pidfd_open"):
        pytest.skip("nothing to delete")
    owner = start("input()")
    process = start(f"{prepare}\nlifetime.end_with(sys.argv[1]); say('up'); input()", lifetime.identity(owner.pid))
    assert line(process) == "up"
    assert process.poll() is None
    owner.kill()
    assert process.wait(30) == -signal.SIGKILL


def test_a_process_whose_owner_is_gone_already_ends(start: Start) -> None:
    owner = start("")
    identity = lifetime.identity(owner.pid)
    owner.wait(30)
    assert start("lifetime.end_with(sys.argv[1]); input()", identity).wait(30) == -signal.SIGKILL


def test_the_first_of_several_owners_to_vanish_counts(start: Start) -> None:
    owner = start("input()")
    process = start(
        "lifetime.end_with(*sys.argv[1:]); say('up'); input()", lifetime.identity(), lifetime.identity(owner.pid)
    )
    line(process)
    owner.kill()
    assert process.wait(30) == -signal.SIGKILL


def test_a_session_leader_takes_what_it_started_along(start: Start) -> None:
    owner = start("input()")
    process = start(
        """
        import subprocess
        say(subprocess.Popen(["sleep", "600"]).pid)
        lifetime.end_with(sys.argv[1])
        input()
        """,
        lifetime.identity(owner.pid),
        start_new_session=True,
    )
    grandchild = lifetime.identity(int(line(process)))
    assert lifetime.alive(grandchild)
    owner.kill()
    assert process.wait(30) == -signal.SIGKILL
    wait_until(lambda: not lifetime.alive(grandchild))


HOLD = "say(lifetime.hold_workspace(Path(sys.argv[1]))); input()"


def stale_lock(folder: Path) -> Path:
    lock = folder / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("data/00000.h5\n")
    return lock


def test_holding_a_new_folder_makes_what_is_missing(tmp_path: Path, start: Start) -> None:
    assert line(start(HOLD, str(tmp_path / "new"))) == "False"
    assert (tmp_path / "new" / ".snakemake").is_dir()


def test_the_locks_of_a_killed_snakemake_are_removed(tmp_path: Path, start: Start) -> None:
    first = start(HOLD, str(tmp_path))
    line(first)
    lock = stale_lock(tmp_path)
    first.kill()
    first.wait(30)
    assert line(start(HOLD, str(tmp_path))) == "True"
    assert not lock.exists()


def test_the_locks_of_a_living_snakemake_are_left_alone(tmp_path: Path, start: Start) -> None:
    first = start(HOLD, str(tmp_path))
    line(first)
    lock = stale_lock(tmp_path)
    second, third = (start(HOLD, str(tmp_path)) for _ in range(2))
    assert (line(second), line(third)) == ("False", "False")
    first.kill()
    first.wait(30)
    assert line(start(HOLD, str(tmp_path))) == "False"
    assert lock.exists()


@pytest.mark.parametrize(
    "child",
    [
        "import subprocess; pid = subprocess.Popen(['sleep', '600'], close_fds=False).pid",
        "pid = os.fork()\nif pid == 0: time.sleep(600)",
    ],
    ids=["started", "forked"],
)
def test_a_child_that_outlives_its_snakemake_does_not_hold_the_folder(tmp_path: Path, start: Start, child: str) -> None:
    first = start(f"lifetime.hold_workspace(Path(sys.argv[1]))\n{child}\nsay(pid); input()", str(tmp_path))
    pid = int(line(first))
    orphan = lifetime.identity(pid)
    stale_lock(tmp_path)
    first.kill()
    first.wait(30)
    try:
        assert lifetime.alive(orphan)
        assert line(start(HOLD, str(tmp_path))) == "True"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_of_many_that_start_at_once_none_removes_the_lock_of_another(tmp_path: Path, start: Start) -> None:
    code = """
        input()  # all together
        lifetime.hold_workspace(Path(sys.argv[1]))
        lock = Path(sys.argv[1], ".snakemake", "locks", str(os.getpid()))
        lock.parent.mkdir(exist_ok=True)
        lock.touch()
        say("locked")
        input()
        say(lock.exists())
        """
    many = [start(code, str(tmp_path)) for _ in range(6)]
    for process in many:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [line(process) for process in many] == ["locked"] * 6
    assert [process.communicate("\n")[0] for process in many] == ["True\n"] * 6


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".snakemake").write_text("a file where the folder should be")
    with pytest.raises(UsbpoError, match=r"\.snakemake: cannot be written"):
        lifetime.hold_workspace(tmp_path)


NAMES = """
try:
    lifetime.hold_names(Path(sys.argv[1]), sys.argv[2:])
    say("held")
except UsbpoError as error:
    say(error)
input()
"""


def test_two_that_hold_different_names_work_in_one_folder(tmp_path: Path, start: Start) -> None:
    assert line(start(NAMES, str(tmp_path), "a/seed-0", "a/seed-1")) == "held"
    assert line(start(NAMES, str(tmp_path), "a/seed-2")) == "held"


def test_a_name_that_another_holds_is_refused_until_its_process_has_gone(tmp_path: Path, start: Start) -> None:
    first = start(NAMES, str(tmp_path), "a/seed-0", "a/seed-1")
    assert line(first) == "held"
    refused = "a/seed-1: another Snakemake is at work on it; wait until that ends."
    assert line(start(NAMES, str(tmp_path), "a/seed-1", "a/seed-2")) == refused
    first.kill()
    first.wait(30)
    assert line(start(NAMES, str(tmp_path), "a/seed-1")) == "held"


def test_who_is_asked_what_it_holds_goes_on_holding_it(tmp_path: Path, start: Start) -> None:
    assert lifetime.held_names(tmp_path, ["a"]) == set()
    assert not list(tmp_path.iterdir()), "asking leaves nothing behind"
    first = start(NAMES, str(tmp_path), "a", "b")
    assert line(first) == "held"
    for _ in range(2):
        assert lifetime.held_names(tmp_path, ["a", "b", "c"]) == {"a", "b"}
    assert line(start(NAMES, str(tmp_path), "b")).startswith("b: another Snakemake is at work on it")
    first.kill()
    first.wait(30)
    assert lifetime.held_names(tmp_path, ["a", "b", "c"]) == set()


def test_one_that_begins_while_it_is_asked_is_not_refused(tmp_path: Path, start: Start) -> None:
    asking = "say('asking')\nwhile True: lifetime.held_names(Path(sys.argv[1]), ['a', 'b'])"
    assert line(start(NAMES, str(tmp_path), "a")) == "held"
    assert line(start(asking, str(tmp_path))) == "asking"
    code = "for number in range(300): lifetime.hold_names(Path(sys.argv[1]), ['b'])\nsay('held')"
    assert line(start(code, str(tmp_path))) == "held"


def test_one_waits_for_its_turn(tmp_path: Path, start: Start) -> None:
    code = "with lifetime.in_turn(Path(sys.argv[1])): say('in'); input()"
    first = start(code, str(tmp_path / "folder/turn.lock"))
    assert line(first) == "in"
    second = start(f"say('up')\n{code}", str(tmp_path / "folder/turn.lock"))
    assert line(second) == "up"
    assert second.stdout is not None
    assert select.select([second.stdout], [], [], 0.5)[0] == []
    first.kill()
    assert line(second) == "in"


NOTES = {
    "its place": "(root / copied.PLACE).unlink(missing_ok=True); copied.settle(root)",
    "what was put back": "(root / pulled.STATE_FILE).unlink(missing_ok=True); provenance.restore(root)",
    "what was asked for": "remember_targets(root, {Run(str(os.getpid()), 'M', turn): Target(1, 1)})",
}


@pytest.mark.parametrize("what", NOTES)
def test_of_many_that_start_at_once_none_breaks_off_what_another_notes(tmp_path: Path, start: Start, what: str) -> None:
    code = f"""
        from usbpo.artifacts import pulled
        from usbpo.monitor.targets import Run, Target, remember_targets
        from usbpo.workspace import copied, provenance
        os.fsync = lambda descriptor: time.sleep(0.002)  # a slow disk: they come between one another
        root = Path(sys.argv[1])
        lifetime.hold_workspace(root)
        say("ready")
        input()
        for turn in range(25):
            {NOTES[what]}
        say("noted")
        """
    provenance.write(tmp_path / "data/runs/T/M/seed-0" / PROVENANCE, {})
    many = [start(code, str(tmp_path)) for _ in range(4)]
    assert [line(process) for process in many] == ["ready"] * 4
    for process in many:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [line(process) for process in many] == ["noted"] * 4
    if what == "what was asked for":
        everything = {(str(process.pid), turn) for process in many for turn in range(25)}
        assert {(run.task, run.seed) for run in read_targets(tmp_path)} == everything


def test_children_of_one_that_was_killed_do_not_hold_its_names(tmp_path: Path, start: Start) -> None:
    code = "lifetime.hold_names(Path(sys.argv[1]), ['a'])\npid = os.fork()\nif pid == 0: time.sleep(600)"
    first = start(f"{code}\nsay(pid); input()", str(tmp_path))
    orphan = int(line(first))
    first.kill()
    first.wait(30)
    try:
        assert line(start(NAMES, str(tmp_path), "a")) == "held"
    finally:
        os.kill(orphan, signal.SIGKILL)
