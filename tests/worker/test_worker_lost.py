"""A worker that was killed, stopped or left by its owner: the stages go on, and those to come have a worker again."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.worker import Process, Room, wait_until

from usbpo.worker import protocol
from usbpo.workspace import lifetime

CLI = """
import os, sys
def warm_up(): pass
def main(argv, also=()):
    print("worker" if os.environ["TESTER"] != str(os.getppid()) else "direct", flush=True)
    exec(argv[1])
    return 0
"""
"""In place of the command line: it tells whether the stage is a child of the test, and runs it as Python."""
LIBRARIES = ("numpy", "h5py", "gymnasium", "mujoco", "safetensors", "torch")
IMPORTED = """
import os, time
set_num_threads = int
if "STUCK" in os.environ:
    open(os.environ["STUCK"], "w").close()
    time.sleep(600)
if os.environ.get("BROKEN"):
    raise ImportError("no such library")
"""
"""In place of each library that the worker imports"""


class Owned:
    """A folder in which a process owns the real worker, which has light libraries and a small command line."""

    def __init__(self) -> None:
        self.room = Room()
        for name in LIBRARIES:
            folder = self.room.package.parent / name
            folder.mkdir()
            (folder / "__init__.py").write_text(IMPORTED)
        (self.room.package.parent / "safetensors" / "torch.py").touch()
        (self.room.package / "commands" / "cli.py").write_text(CLI)
        (self.room.folder / ".snakemake").mkdir()
        self.room.environment["TESTER"] = str(os.getpid())
        self.room.environment["PATIENCE"] = "1"
        self.owner, self.path = self.start()
        self.room.environment |= {protocol.WORKER: self.path, lifetime.OWNER: lifetime.identity(self.owner.pid)}

    def start(self, **environment: str) -> tuple[Process, str]:
        """An owner that has started its worker, and the worker's socket."""
        code = "from usbpo.worker.starting import start; print(start(), flush=True); input()"
        owner = self.room.python(code, **environment)
        assert owner.stdout
        return owner, owner.stdout.readline().strip()

    @property
    def worker(self) -> str:
        """The worker of the moment."""
        return protocol.read_identity(self.path)

    def serving(self, other_than: str = "") -> str:
        """The worker, once it is another one and serves."""
        wait_until(lambda: self.worker not in ("", other_than) and Path(self.path).exists())
        return self.worker

    def client(self, code: str = "", **environment: str) -> Process:
        """A client whose stage is `code`."""
        command = (
            "import os, sys; from usbpo.worker import client; client.PATIENCE_SECONDS = float(os.environ['PATIENCE'])"
        )
        return self.room.python(
            f"{command}; sys.argv[1:] = ['phase1', {code!r}]; sys.exit(client.main())", **environment
        )

    def run(self, code: str = "", **environment: str) -> str:
        """How a stage ran, which must have ended well: by the worker or directly."""
        process = self.client(code, **environment)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out.split("\n")[0]


def send(worker: str, number: signal.Signals) -> None:
    os.kill(int(worker.split(":")[0]), number)


@pytest.fixture
def owned() -> Iterator[Owned]:
    owned = Owned()
    yield owned
    owned.room.close()


def test_a_worker_that_was_killed_is_started_again_by_the_next_stage(owned: Owned) -> None:
    for _ in range(2):
        killed = owned.serving()
        assert owned.run() == "worker"
        send(killed, signal.SIGKILL)
        assert owned.run() == "direct"
        owned.serving(other_than=killed)
        assert owned.run() == "worker"


def test_a_worker_that_is_killed_in_the_middle_of_stages_costs_none_of_them(owned: Owned) -> None:
    killed = owned.serving()
    mark = owned.room.folder / "mark"
    code = f"import time; open({str(mark)!r} + str(os.getpid()), 'w'); time.sleep(2)"
    clients = [owned.client(code) for _ in range(2)]
    wait_until(lambda: len(list(owned.room.folder.glob("mark*"))) == 2)
    send(killed, signal.SIGKILL)
    for client in clients:
        out, err = client.communicate(timeout=60)
        assert (client.returncode, out) == (0, "worker\ndirect\n")
        assert err.count("the warm worker ended while it ran this stage") == 1
    owned.serving(other_than=killed)
    assert owned.run() == "worker"


def test_stages_that_find_no_worker_at_once_start_one_alone(owned: Owned) -> None:
    killed = owned.serving()
    send(killed, signal.SIGKILL)
    clients = [owned.client() for _ in range(4)]
    assert {client.communicate(timeout=60)[0] for client in clients} <= {"direct\n", "worker\n"}
    log = owned.room.folder / ".snakemake" / "usbpo-worker.log"
    owned.serving(other_than=killed)
    wait_until(lambda: log.read_text().count("export ") >= 2)
    time.sleep(0.5)
    assert log.read_text().count("export ") == 2, "the first one and one more"


def test_a_stopped_worker_is_given_up_and_another_one_started(owned: Owned) -> None:
    stopped = owned.serving()
    send(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert owned.run() == "direct"
    assert time.monotonic() - began < 30
    owned.serving(other_than=stopped)
    assert owned.run() == "worker"
    wait_until(lambda: not lifetime.alive(stopped))  # it was let go on, and has seen that it was replaced
    assert owned.run() == "worker"


def test_a_worker_that_is_stopped_while_a_stage_runs_does_not_hold_it(owned: Owned) -> None:
    stopped = owned.serving()
    begun, go_on = owned.room.folder / "begun", owned.room.folder / "go-on"
    code = f"import time; open({str(begun)!r}, 'w')\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)"
    client = owned.client(code)
    wait_until(begun.exists)
    send(stopped, signal.SIGSTOP)
    go_on.touch()
    assert (client.communicate(timeout=30)[0], client.returncode) == ("worker\n", 0)


def test_a_worker_that_nobody_owns_is_not_started_again(owned: Owned) -> None:
    killed = owned.serving()
    send(killed, signal.SIGKILL)
    assert owned.run(**{lifetime.OWNER: ""}) == "direct"
    assert owned.worker == killed


def test_a_worker_that_cannot_start_is_not_started_again_and_again(owned: Owned) -> None:
    killed = owned.serving()
    send(killed, signal.SIGKILL)
    assert owned.run(BROKEN="1") == "direct"
    failed = owned.worker
    assert failed != killed
    wait_until(lambda: not lifetime.alive(failed))
    for _ in range(2):
        assert owned.run() == "direct"
        assert owned.worker == failed
    identity = protocol.identity_file(owned.path)
    os.utime(identity, (time.time() - 120, time.time() - 120))
    assert owned.run() == "direct"
    owned.serving(other_than=failed)
    assert owned.run() == "worker"


def test_a_slow_import_is_waited_for_and_not_repeated(owned: Owned) -> None:
    stuck = owned.room.folder / "stuck"
    owner, path = owned.start(STUCK=str(stuck))
    wait_until(stuck.exists)
    importing = protocol.read_identity(path)
    told = {protocol.WORKER: path, lifetime.OWNER: lifetime.identity(owner.pid)}
    assert owned.run(**told) == "direct"
    assert protocol.read_identity(path) == importing
    assert lifetime.alive(importing)


def test_a_worker_whose_owner_is_killed_while_it_imports_ends(owned: Owned) -> None:
    stuck = owned.room.folder / "stuck"
    owner, path = owned.start(STUCK=str(stuck))
    wait_until(stuck.exists)
    importing = protocol.read_identity(path)
    owner.kill()
    owner.wait()
    wait_until(lambda: not lifetime.alive(importing))
    assert not Path(protocol.identity_file(path)).exists()
