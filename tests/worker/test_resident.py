"""A process of the warm worker that has opened a GPU, and stays."""

import os
import signal
from pathlib import Path

import pytest
from helpers.worker import Room, wait_until

OPENED = """
import os, sys, types
sys.modules["torch"] = types.SimpleNamespace(
    cuda=types.SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: None)
)
known = vars(sys.modules.setdefault("known", types.ModuleType("known"))).setdefault("stages", [])
known.append(os.getcwd())
print(os.getpid(), len(known), os.getcwd(), os.environ.get("MARK", ""))
"""
"""A stage that has a GPU open, as far as the worker can see; it tells which process it is and how many it has run."""
GPU = ("--device", "auto")


def told_by(served: Room, code: str = OPENED, *, device: str = "auto", **environment: str) -> list[str]:
    status, out, err = served.run("policy", code, "--device", device, **environment)
    assert (status, err) == (0, "")
    return out.split()


def test_a_process_with_an_open_gpu_runs_the_next_stage(served: Room) -> None:
    first, second, third = told_by(served, MARK="a"), told_by(served, MARK="b"), told_by(served)
    assert first[0] == second[0] == third[0]
    assert [first[1], second[1], third[1]] == ["1", "2", "3"]
    assert (first[3], second[3], len(third)) == ("a", "b", 3), "each has the environment of its own client"
    other = told_by(served, device="cpu")
    assert other[0] != first[0]
    assert other[1] == "1"


def test_without_an_open_gpu_every_stage_has_a_process_of_its_own(room: Room) -> None:
    room.server()
    code = "import os; print(os.getpid())"
    assert told_by(room, code)[0] != told_by(room, code)[0]


def test_stages_side_by_side_have_a_process_each_although_one_waits(served: Room) -> None:
    told_by(served)
    code = OPENED + "\nimport time; time.sleep(0.5)"
    clients = [served.client("policy", code, *GPU) for _ in range(2)]
    pids = {client.communicate()[0].split()[0] for client in clients}
    assert len(pids) == 2


@pytest.mark.parametrize(
    "end",
    [
        "status = 3",
        "raise ValueError",
        "import usbpo.environments.usercode as u; u.imported.add('mine')",
        "sys.stdout.flush(); os._exit(0)",
    ],
)
def test_a_process_that_something_may_have_stayed_behind_in_ends(served: Room, end: str) -> None:
    first = served.run("policy", f"{OPENED}\n{end}", *GPU)[1].split()
    assert told_by(served)[0] != first[0]


def test_a_resident_that_was_killed_is_replaced_and_reaped(served: Room) -> None:
    pid = int(told_by(served)[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert int(told_by(served)[0]) != pid


def test_a_signal_ends_the_stage_in_a_resident_and_only_that(served: Room) -> None:
    first = told_by(served)[0]
    told = served.folder / "told"
    waiting = served.client(
        "policy", f"import pathlib, time; pathlib.Path({str(told)!r}).touch(); time.sleep(600)", *GPU
    )
    wait_until(told.exists)
    waiting.terminate()
    assert waiting.wait() == -signal.SIGTERM
    assert told_by(served)[0] != first


def test_the_worker_takes_its_residents_with_it(room: Room) -> None:
    server = room.server()
    pid = int(told_by(room)[0])
    server.terminate()
    server.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
