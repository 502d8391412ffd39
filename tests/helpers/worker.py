"""A warm worker and its clients as processes, in a folder of their own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import usbpo
from usbpo.worker import client, protocol
from usbpo.worker.address import write_identity

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
import os, sys, types
cli = types.ModuleType("usbpo.commands.cli")
def main(argv, also=()):
    print("direct", *argv)
    exec(argv[1] if len(argv) > 1 and argv[1].startswith("input()") else "")
    return 0
cli.main = main
sys.modules["usbpo.commands.cli"] = cli
import usbpo.commands
usbpo.commands.cli = cli
from usbpo.worker import client
client.PATIENCE_SECONDS = float(os.environ.get("PATIENCE", client.PATIENCE_SECONDS))
sys.exit(client.main())
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
