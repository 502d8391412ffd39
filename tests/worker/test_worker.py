"""The warm worker and its client, as processes: what is run by way of the worker is as if it had been run directly."""

import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.worker import Room, children, wait_until

from usbpo.numerics import threads
from usbpo.worker import client, protocol
from usbpo.workspace import lifetime


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("status = 0", 0, ""),
        ("status = 7", 7, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit('a reason')", 1, "a reason"),
        ("raise RuntimeError('no good')", 1, "RuntimeError: no good"),
        ("import os; os._exit(9)", 9, ""),
        ("import os; os.close(1); print('into the void')", 1, "standard output cannot be written (Bad file descr"),
    ],
)
def test_the_exit_status_of_the_stage_is_the_clients(served: Room, code: str, expected: int, said: str) -> None:
    status, out, err = served.run("phase1", code)
    assert (status, out) == (expected, "")
    assert said in err if said else err == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGABRT])
def test_a_signal_that_ends_the_stage_ends_the_client(served: Room, number: signal.Signals) -> None:
    status, out, _ = served.run("phase1", f"import os, time; os.kill(os.getpid(), {number:d}); time.sleep(600)")
    assert (status, out) == (-number, "")


def test_the_stage_is_the_process_that_the_client_would_have_been(served: Room, tmp_path: Path) -> None:
    code = """
import json, os, signal, sys

def opened():
    "What this process holds open, without the files of /proc read in passing: by the listing, by the watcher."
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # closed since
            continue
        if not target.startswith("/proc/"):
            yield target.split(":")[0]

mask = os.umask(0)
print("to stderr", file=sys.stderr)
os.write(2, b"in order\\n")
print(json.dumps({
    "argv": argv, "sys.argv": sys.argv, "stdin": sys.stdin.read(), "cwd": os.getcwd(), "env": dict(os.environ),
    "mask": mask, "leader": os.getsid(0) == os.getpid(), "blocked": [int(s) for s in signal.pthread_sigmask(0, [])],
    "default": [signal.getsignal(s) == signal.SIG_DFL for s in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP)],
    "open": list(opened()),
}))
"""
    environment = served.environment | {"A": "1", "ODD": "\udcff=\n", "OMP_NUM_THREADS": "8"}
    process = subprocess.run(
        [sys.executable, str(served.folder / "client.py"), "collect", code, "--x", "", "ü\udcff"],
        env=environment,
        cwd=tmp_path,
        umask=0o027,
        input="given",
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(process.stdout)
    argv = ["collect", code, "--x", "", "ü\udcff"]
    opened = Counter(told.pop("open"))
    assert told == {
        "argv": argv,
        "sys.argv": ["usbpo", *argv],
        "stdin": "given",
        "cwd": str(tmp_path),
        "env": environment | protocol.ONE_THREAD | {threads.TOLD: "8"},
        "mask": 0o027,
        "leader": True,
        "blocked": [],
        "default": [True, True, True],
    }
    # The three streams, what watches the worker, and the connection to the client, by which that knows that the stage
    # has ended: nothing of other clients.
    assert opened <= Counter(pipe=3, anon_inode=1, socket=1)
    assert process.stderr == "to stderr\nin order\n"


def test_output_arrives_in_a_file_in_full(served: Room, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        code = "for i in range(20000): print(i)"
        subprocess.run(
            [sys.executable, str(served.folder / "client.py"), "phase1", code],
            env=served.environment,
            stdout=log,
            stderr=log,
            check=True,
        )
    assert (tmp_path / "log").read_text().split() == [str(i) for i in range(20000)]


def test_a_large_environment_arrives(served: Room) -> None:
    big = {f"BIG_{i}": "x" * 100_000 for i in range(10)}
    assert served.run("phase1", "import os; print(len(os.environ['BIG_9']))", **big) == (0, "100000\n", "")


def test_two_stages_run_side_by_side(served: Room, tmp_path: Path) -> None:
    code = """
import time
from pathlib import Path
Path(argv[2]).touch()
while not Path(argv[3]).exists():
    time.sleep(0.01)
"""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    first, second = served.client("phase1", code, a, b), served.client("phase2", code, b, a)
    assert (first.wait(30), second.wait(30)) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_client_reaches_the_stage(served: Room, number: signal.Signals) -> None:
    process, stage = served.waiting_stage()
    process.send_signal(number)
    assert process.wait(30) == -number
    assert not lifetime.alive(stage)


def test_a_stage_that_handles_a_signal_decides_how_it_ends(served: Room) -> None:
    process, _ = served.waiting_stage("try: time.sleep(600)\nexcept KeyboardInterrupt: status = 5")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 5


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system lists no children")
def test_killing_the_client_kills_and_reaps_the_stage_and_what_it_started(room: Room) -> None:
    server = room.server()
    told = room.folder / "grandchild"
    process, stage = room.waiting_stage(
        f"import subprocess; grandchild = subprocess.Popen(['sleep', '600']).pid\n"
        f"Path({str(told)!r}).write_text(lifetime.identity(grandchild)); time.sleep(600)"
    )
    wait_until(lambda: told.exists() and told.read_text() != "")
    assert children(server.pid) == [stage.split(":")[0]]
    process.kill()
    wait_until(lambda: children(server.pid) == [])
    wait_until(lambda: not lifetime.alive(told.read_text()))
    assert room.run("phase1", "status = 4")[0] == 4


@pytest.mark.parametrize("argv", [["status"], ["--help"], []])
def test_what_is_no_stage_runs_directly(served: Room, argv: list[str]) -> None:
    assert served.run(*argv) == (0, " ".join(["direct", *argv]) + "\n", "")


def test_the_worker_itself_refuses_what_is_no_stage(served: Room) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(served.path)
        client._send_request(connection, ["status", "print('never')"])
        assert connection.makefile("rb").read() == b"refused this is no stage\n"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        (5).to_bytes(8, "big") + b"\xff\0abc",
        (0).to_bytes(8, "big") + b"1",
        (2).to_bytes(8, "big") + b"-3",
        (1 << 60).to_bytes(8, "big") + b"x" * 100_000,
        (20).to_bytes(8, "big") + b"1\0phase1\0/\x000\0not env",
    ],
)
def test_nonsense_does_not_end_the_worker(served: Room, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(served.path)
        connection.sendall(message)
    assert served.run("phase1", "status = 2")[0] == 2


def test_without_the_clients_word_no_stage_is_started(served: Room, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(served.path)
        client._send_request(connection, ["phase1", f"open({str(tmp_path / 'made')!r}, 'w')"])
        assert connection.makefile("rb").readline() == b"accepted\n"
    assert served.run("phase1", "")[0] == 0  # by now the worker has seen that the other one left
    assert not (tmp_path / "made").exists()


def test_the_worker_can_be_turned_off(served: Room) -> None:
    assert served.run("phase1", USBPO_WARM="0") == (0, "direct phase1\n", "")
    assert served.run("phase1", USBPO_WORKER="") == (0, "direct phase1\n", "")


def test_a_client_without_standard_output_runs_directly(served: Room) -> None:
    process = served.spawn("sh", "-c", f"exec {sys.executable} client.py phase1 >&-")
    assert "a standard stream is closed" in process.communicate()[1]
    assert process.returncode == 0


@pytest.mark.parametrize("change", ["changed", "new", "removed"])
def test_changed_code_is_not_served_by_an_old_worker(room: Room, change: str) -> None:
    room.server()
    assert room.run("phase1", "print('warm')") == (0, "warm\n", "")
    if change == "changed":
        with open(room.package / "artifacts" / "layout.py", "a") as file:
            file.write("# another comment\n")
    elif change == "new":
        (room.package / "stages" / "brand_new.py").touch()
    else:
        (room.package / "artifacts" / "layout.py").unlink()
    status, out, err = room.run("phase1")
    assert (status, out) == (0, "direct phase1\n")
    assert "changed after the worker was started" in err
    assert room.run("phase1", USBPO_WARM_VERBOSE="") == (0, "direct phase1\n", "")


@pytest.fixture(scope="module")
def in_bash(served: Room) -> dict[str, str]:
    """The environment by which bash starts the client of the package that is served."""
    told = served.python("import json; from usbpo.worker import client; print(json.dumps(client.shell_function()))")
    return dict(json.loads(told.communicate()[0]))


def test_bash_starts_a_client_that_the_worker_serves(served: Room, in_bash: dict[str, str], tmp_path: Path) -> None:
    code = "import sys; print(*argv[2:], sep='|', flush=True); print('said', file=sys.stderr); status = 7"
    line = f'set -euo pipefail; usbpo phase1 "$0" --x "a b" "" > {tmp_path}/log 2>&1'
    process = served.spawn("bash", "-c", line, code, **in_bash)
    assert (*process.communicate(), process.returncode) == ("", "", 7)
    assert (tmp_path / "log").read_text() == "--x|a b|\nsaid\n"


@pytest.mark.parametrize("switch", ["0", "1"])
def test_what_bash_cannot_have_served_runs_directly(served: Room, in_bash: dict[str, str], switch: str) -> None:
    without = {protocol.WORKER: str(served.folder / "none.sock"), protocol.SWITCH: switch, client.VERBOSE: "0"}
    process = served.spawn("bash", "-c", "usbpo phase1 --cycle", **in_bash, **without)
    out, err = process.communicate()
    assert (out, process.returncode) == ("", 2)
    assert "'--cycle' requires an argument" in err
