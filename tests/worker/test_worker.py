"""The warm worker and its client, as processes: what is run by way of the worker is as if it had been run directly."""

import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import usbpo
from usbpo.errors import UsbpoError
from usbpo.worker import client, protocol
from usbpo.worker.address import LONGEST_PATH, socket_path, write_identity
from usbpo.worker.server import is_same_user
from usbpo.worker.starting import start
from usbpo.worker.warm import count_threads, serve
from usbpo.workspace import lifetime

SERVE = """
import os, sys, threading, time
from usbpo.worker import warm
from usbpo.errors import UsbpoError

def stage(argv):
    "Run argv[1] as Python; its variable `status` is the exit status."
    names = {"argv": argv}
    exec(argv[1], names)
    return names.get("status", 0)

exec(os.environ.get("BEFORE", ""))
path, owner, idle = sys.argv[1:]
try:
    warm.serve(path, stage, owner, float(idle))
except UsbpoError as error:
    sys.exit(str(error))
"""

CLIENT = """
import sys, types
cli = types.ModuleType("usbpo.commands.cli")
def main(argv, also=()):
    print("direct", *argv)
    exec(argv[1] if len(argv) > 1 and argv[1].startswith("input()") else "")
    return 0
cli.main = main
sys.modules["usbpo.commands.cli"] = cli
import usbpo.commands
usbpo.commands.cli = cli
from usbpo.worker.client import main
sys.exit(main())
"""
"""The real client, with a command line that only tells that it was called directly."""

Process = subprocess.Popen[str]


class Room:
    """A folder for one socket, a copy of the package to serve from it, and the processes of one test."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="usbpo-test-"))  # short: a socket's path is limited
        self.runtime = self.folder / "run"
        self.runtime.mkdir(mode=0o700)
        self.package = self.folder / "code" / "usbpo"
        shutil.copytree(Path(usbpo.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / "serve.py").write_text(SERVE)
        (self.folder / "client.py").write_text(CLIENT)
        self.processes: list[Process] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",  # with none, Python adds a variable of its own
            "PYTHONPATH": str(self.package.parent),
            "XDG_RUNTIME_DIR": str(self.runtime),
            client.VERBOSE: "1",
        }
        self.path = (
            self.python("from usbpo.worker.address import socket_path; print(socket_path(''))").communicate()[0].strip()
        )
        self.environment[protocol.WORKER] = self.path

    def spawn(self, *command: str, **environment: str) -> Process:
        process = subprocess.Popen(
            command,
            env=self.environment | environment,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def python(self, code: str, **environment: str) -> Process:
        return self.spawn(sys.executable, "-c", code, **environment)

    def start_server(self, owner: str = "", idle: float = 600, before: str = "") -> Process:
        process = self.spawn(sys.executable, "serve.py", self.path, owner, str(idle), BEFORE=before)
        write_identity(self.path, process.pid)
        return process

    def server(self, owner: str = "", idle: float = 600) -> Process:
        process = self.start_server(owner, idle)
        wait_until(lambda: Path(self.path).exists())
        return process

    def client(self, *argv: str, **environment: str) -> Process:
        return self.spawn(sys.executable, "client.py", *argv, **environment)

    def run(self, *argv: str, **environment: str) -> tuple[int, str, str]:
        process = self.client(*argv, **environment)
        out, err = process.communicate()
        return process.returncode, out, err

    def waiting_stage(self, code: str = "time.sleep(600)", **environment: str) -> tuple[Process, str]:
        """A client whose stage waits: the client, and the stage's identity."""
        told = self.folder / f"stage-{len(self.processes)}"
        stage = f"""
import os, signal, sys, time
from pathlib import Path
from usbpo.workspace import lifetime
Path({str(told)!r} + "~").write_text(lifetime.identity())
Path({str(told)!r} + "~").rename({str(told)!r})
{code}
"""
        process = self.client("phase1", stage, **environment)
        wait_until(told.exists)
        return process, told.read_text()

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.communicate()
        shutil.rmtree(self.folder)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def children(pid: int) -> list[str]:
    """The children of a process, zombies too."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.fixture
def room() -> Iterator[Room]:
    """For a test of the worker's life."""
    room = Room()
    yield room
    room.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Room]:
    """A worker that all other tests share."""
    room = Room()
    room.server()
    yield room
    room.close()


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
        ("import os; os.close(1); print('into the void')", 120, ""),
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
mask = os.umask(0)
print("to stderr", file=sys.stderr)
os.write(2, b"in order\\n")
print(json.dumps({
    "argv": argv, "sys.argv": sys.argv, "stdin": sys.stdin.read(), "cwd": os.getcwd(), "env": dict(os.environ),
    "mask": mask, "leader": os.getsid(0) == os.getpid(), "blocked": [int(s) for s in signal.pthread_sigmask(0, [])],
    "default": [signal.getsignal(s) == signal.SIG_DFL for s in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP)],
    "open": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None,
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
    opened = told.pop("open")
    assert told == {
        "argv": argv,
        "sys.argv": ["usbpo", *argv],
        "stdin": "given",
        "cwd": str(tmp_path),
        "env": environment | protocol.ONE_THREAD,
        "mask": 0o027,
        "leader": True,
        "blocked": [],
        "default": [True, True, True],
    }
    # The three streams, the folder that is being listed, and what watches the worker: nothing of other clients.
    assert opened is None or opened <= 5
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


def test_when_the_worker_dies_so_does_the_stage_and_the_client_fails_with_a_sentence(room: Room) -> None:
    server = room.server()
    process, stage = room.waiting_stage()
    server.kill()
    assert "the warm worker ended while it ran this stage" in process.communicate()[1]
    assert process.returncode == 1
    wait_until(lambda: not lifetime.alive(stage))
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


# ---- a process that has opened a GPU ----

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
