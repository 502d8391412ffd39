"""How a warm worker begins, ends and is replaced, and what becomes of the stages that it runs."""

import os
import signal
import socket
import stat
import struct
import sys
import time
from pathlib import Path

import pytest
from helpers.worker import Room, wait_until

from usbpo.errors import UsbpoError
from usbpo.worker import protocol
from usbpo.worker.address import LONGEST_PATH, socket_path
from usbpo.worker.server import is_same_user
from usbpo.worker.starting import start
from usbpo.worker.warm import count_threads, serve
from usbpo.workspace import lifetime


def test_a_client_waits_for_a_worker_that_is_still_importing(room: Room) -> None:
    started, go_on = room.folder / "started", room.folder / "go-on"
    room.start_server(before=f"open({str(started)!r}, 'w')\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)")
    wait_until(started.exists)
    process = room.client("phase1", "print('warm')")
    time.sleep(0.5)
    assert process.poll() is None
    go_on.touch()
    assert process.communicate() == ("warm\n", "")


def test_a_client_runs_directly_once_the_worker_has_failed_to_start(room: Room) -> None:
    started = room.folder / "started"
    server = room.start_server(before=f"open({str(started)!r}, 'w'); time.sleep(600)")
    wait_until(started.exists)
    process = room.client("phase1")
    time.sleep(0.5)
    assert process.poll() is None
    server.kill()
    assert process.communicate()[0] == "direct phase1\n"


def test_a_client_without_any_worker_runs_directly(room: Room) -> None:
    status, out, err = room.run("phase1")
    assert (status, out) == (0, "direct phase1\n")
    assert "no worker serves" in err


def test_when_the_worker_dies_so_does_the_stage_and_the_client_runs_it_again(room: Room) -> None:
    server = room.server()
    process, stage = room.waiting_stage()
    server.kill()
    out, err = process.communicate()
    assert not lifetime.alive(stage), "two would have written the same files"
    assert (process.returncode, out.split("\n")[0]) == (0, "direct phase1 ")
    assert "the warm worker ended while it ran this stage, and the stage with it; it runs again, directly." in err
    assert room.run("phase1")[1] == "direct phase1\n"  # its socket is still there, and nobody behind it


def test_a_told_worker_ends_with_its_stages_and_removes_its_socket(room: Room) -> None:
    server = room.server()
    process, stage = room.waiting_stage()
    server.terminate()
    assert server.wait(30) == 0
    assert process.wait(30) == -signal.SIGKILL
    assert not lifetime.alive(stage)
    assert list(Path(room.path).parent.iterdir()) == []


def test_an_idle_worker_ends_and_removes_its_socket(room: Room) -> None:
    server = room.server(idle=0.5)
    assert server.wait(30) == 0
    assert list(Path(room.path).parent.iterdir()) == []


def test_a_worker_with_a_running_stage_is_not_idle(room: Room) -> None:
    room.server(idle=0.3)
    assert room.run("phase1", "import time; time.sleep(1.5); print('done')") == (0, "done\n", "")


def test_the_worker_and_its_stages_end_with_the_owner(room: Room) -> None:
    owner = room.python("input()")
    server = room.server(owner=lifetime.identity(owner.pid))
    process, stage = room.waiting_stage()
    owner.kill()
    assert server.wait(30) == 0
    assert process.wait(30) == -signal.SIGKILL
    wait_until(lambda: not lifetime.alive(stage))
    assert list(Path(room.path).parent.iterdir()) == []


def test_a_stage_ends_with_the_owner_of_its_client(served: Room) -> None:
    owner = served.python("input()")
    process, stage = served.waiting_stage(USBPO_OWNER=lifetime.identity(owner.pid))
    owner.kill()
    assert process.wait(30) == -signal.SIGKILL
    assert not lifetime.alive(stage)


def test_a_stage_that_runs_directly_ends_with_its_owner(room: Room) -> None:
    owner = room.python("input()")
    process = room.client("phase1", "input()", USBPO_WARM="0", USBPO_OWNER=lifetime.identity(owner.pid))
    time.sleep(0.3)
    assert process.poll() is None
    owner.kill()
    assert process.wait(30) == -signal.SIGKILL


def test_an_owner_that_is_no_process_is_refused_both_ways(served: Room) -> None:
    for switch in ("0", "1"):
        status, out, err = served.run("phase1", "", USBPO_OWNER="nobody", USBPO_WARM=switch)
        assert (status, out) == (1, "")
        assert "USBPO_OWNER='nobody': not a process" in err


@pytest.mark.skipif(count_threads() is None, reason="this system does not tell the number of threads")
def test_a_process_with_two_threads_refuses_to_serve(room: Room) -> None:
    server = room.start_server(before="threading.Thread(target=time.sleep, args=(600,), daemon=True).start()")
    assert "has 2 threads after its imports, not 1" in server.communicate()[1]
    assert server.returncode == 1
    assert room.run("phase1")[1] == "direct phase1\n"


def test_a_second_worker_does_not_take_the_place_of_the_first(room: Room) -> None:
    first = room.server()
    second = room.spawn(sys.executable, "serve.py", room.path, "", "600")
    assert "another worker serves it" in second.communicate()[1]
    assert first.poll() is None
    assert room.run("phase1", "print('warm')")[1] == "warm\n"


def test_a_worker_takes_the_place_of_one_that_was_killed(room: Room) -> None:
    first = room.server()
    first.kill()
    first.wait(30)
    room.start_server()
    wait_until(lambda: room.run("phase1", "print('warm')")[1] == "warm\n")


def test_only_the_user_may_enter_the_sockets_folder(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(room.runtime))
    folder = Path(socket_path()).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    room.server()
    folder.chmod(0o755)
    with pytest.raises(UsbpoError, match="not a folder that only this user may enter"):
        socket_path()
    with pytest.raises(UsbpoError, match="not a folder that only this user may enter"):
        serve(room.path, len)
    assert start() == ""
    status, out, err = room.run("phase1")
    assert (status, out) == (0, "direct phase1\n")
    assert "not private" in err


def test_a_link_in_place_of_the_sockets_folder_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(room.runtime))
    folder = Path(socket_path()).parent
    folder.rename(room.runtime / "elsewhere")
    folder.symlink_to(room.runtime / "elsewhere")
    with pytest.raises(UsbpoError, match="not a folder that only this user may enter"):
        socket_path()


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="this system has other peer credentials")
@pytest.mark.parametrize(("user", "same"), [(os.geteuid(), True), (os.geteuid() + 1, False)])
def test_a_client_of_another_user_is_turned_away(user: int, same: bool) -> None:
    class Connection:
        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("3i", 1, user, 0)

    assert is_same_user(Connection()) is same  # type: ignore[arg-type]


def test_a_long_name_of_the_runtime_folder_does_not_matter(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = room.folder / ("x" * 90)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert len(socket_path("4194304:1")) <= LONGEST_PATH


def test_an_idle_time_that_is_no_time_is_refused(room: Room) -> None:
    process = room.spawn(sys.executable, "-m", "usbpo.worker.warm", USBPO_WARM_IDLE="soon")
    assert "USBPO_WARM_IDLE=soon: not a number of seconds" in process.communicate()[1]
    assert process.returncode == 1


def test_a_started_worker_serves_the_real_command_line_from_one_thread(room: Room) -> None:
    """Start it as the Snakefile does: with all imports and an optimizer built."""
    code = """
import os
from usbpo.workspace import lifetime
from usbpo.worker.starting import start
os.environ["USBPO_OWNER"] = lifetime.identity()
path = start()
assert path == start()
print(path, flush=True)
input()
"""
    (room.folder / ".snakemake").mkdir()
    owner = room.python(code, USBPO_WORKER="")
    assert owner.stdout is not None
    path = owner.stdout.readline().strip()
    command = "import sys; from usbpo.worker.client import main; sys.exit(main())"
    told = []
    for switch in ("1", "0"):
        process = room.spawn(sys.executable, "-c", command, "phase1", "--help", USBPO_WORKER=path, USBPO_WARM=switch)
        told.append((*process.communicate(), process.returncode))
    assert told[0] == told[1]
    assert "Usage: usbpo phase1" in told[0][0]
    identity = Path(protocol.identity_file(path)).read_text().strip()
    assert lifetime.alive(identity)
    tasks = Path(f"/proc/{identity.split(':')[0]}/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1
    owner.kill()
    wait_until(lambda: not lifetime.alive(identity))
    assert not Path(path).exists()
    assert path in (room.folder / ".snakemake" / "usbpo-worker.log").read_text()
