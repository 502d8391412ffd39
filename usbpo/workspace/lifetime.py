"""Living and dying together: stages end with the Snakemake that owns them, and a crash leaves no lock behind."""

import errno
import fcntl
import hashlib
import os
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from usbpo.errors import UsbpoError
from usbpo.workspace import snakemake_inside

OWNER = "USBPO_OWNER"
"""The environment variable that names the owner of a stage, as `identity` describes it."""

POLL_SECONDS = 0.5
"""How often an owner is looked at where the system cannot tell us that it has ended."""

WORKSPACE = Path(".snakemake/usbpo.lock")
"""The file whose lock every Snakemake in a folder shares"""
NAMES = Path(".snakemake/usbpo-names.lock")
"""The file of which each held name is a locked byte"""
NOTES = Path(".snakemake/usbpo-notes.lock")
"""The file whose lock is for who reads and writes what all Snakemakes in a folder note there (`in_turn`)"""

_FLOCK = "hhqqi0q" if sys.platform == "linux" else "qqihh"
"""C's `struct flock`: type, whence, start, length, process; on macOS start, length, process, type, whence."""

_workspaces: list[int] = []  # descriptors of held locks: open, hence locked, for as long as this process lives
_watched: set[str] = set()  # owners whose end is this process's; the threads that watch them do not survive a fork
os.register_at_fork(after_in_child=_watched.clear)


def identity(pid: int | None = None) -> str:
    """Describe a process (default: this one) as `PID:STARTTIME:PLACE`, which no later process can be mistaken for.

    STARTTIME is in clock ticks after boot, 0 where /proc is missing (macOS). PLACE is a mark of this boot of this
    machine and of its process namespace: an identity that travels to another machine, in the environment of a
    batch job, means nothing there.
    """
    pid = os.getpid() if pid is None else pid
    return f"{pid}:{_start_time(pid) or 0}:{_place()}"


def is_foreign(owner: str) -> bool:
    """True where `owner` was described on another machine or in another container, so that nobody can tell here."""
    place = _parse(owner)[2]
    return place != "" and place != _place()


def alive(owner: str) -> bool:
    """True while the process that `owner` (`PID`, `PID:STARTTIME` or `PID:STARTTIME:PLACE`) describes lives.

    A zombie counts as dead, a foreign process too.

    Raises:
        UsbpoError: `owner` is not such a description.
    """
    pid, start, _ = _parse(owner)
    if is_foreign(owner):
        return False
    if os.path.exists("/proc/self/stat"):
        found = _start_time(pid)
        return found is not None and start in (0, found)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def watch(owner: str) -> int | None:
    """A descriptor that becomes readable when `owner` ends; None where the system has none, or it has ended."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        descriptor = os.pidfd_open(_parse(owner)[0])
    except OSError:
        return None
    if alive(owner):  # asked after opening: the number was not given to another process in between
        return descriptor
    os.close(descriptor)
    return None


def end_with(*owners: str) -> None:
    """Start a daemon thread that kills this process, or the group that it leads, once one of `owners` has vanished.

    So a killed Snakemake leaves no stage that writes its outputs later. Foreign owners are not watched: they cannot be.
    Owners that are watched already need no second thread.

    Raises:
        UsbpoError: an owner is not the description of a process.
    """
    watched = [owner for owner in owners if not is_foreign(owner) and owner not in _watched]
    if watched:
        _watched.update(watched)
        threading.Thread(target=_kill_after_first, args=(watched,), name="usbpo-lifetime", daemon=True).start()


def hold_workspace(folder: Path) -> bool:
    """Hold `folder`/.snakemake/usbpo.lock until this process ends; if nobody else held it, remove stale locks.

    Call it once, before Snakemake takes its own locks. A process that gets the exclusive lock knows that no process
    which came past this function still lives, so every file in .snakemake/locks is left over from a crash. While
    another one lives, nothing is removed, and Snakemake's own lock refuses the second as ever. A Snakemake that never
    called this function (another workflow in the same folder) cannot be seen: its locks would be taken for stale.

    Returns: whether stale locks were removed. Where the file system knows no locks, nothing is done.

    Raises:
        UsbpoError: the folder cannot be written.
    """
    descriptor = _lock_file(folder / WORKSPACE)
    removed = False
    try:
        if _is_alone(descriptor):
            removed = snakemake_inside.remove_locks(folder)
        # The change from exclusive to shared is not atomic: another starter may get the exclusive lock in between.
        # It then finds nothing of ours to remove, for Snakemake's locks are made only after we return from here,
        # and from then on we hold the shared lock without a gap.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError:
        os.close(descriptor)
        return removed
    if not _workspaces:
        os.register_at_fork(after_in_child=_let_go)
    _workspaces.append(descriptor)
    return removed


def snakemake_started(root: Path) -> float | None:
    """When the Snakemake at work in `root` took its locks, seconds since 1970; None where none has taken any."""
    since = snakemake_inside.locked_since(root)
    if since is None:
        return None
    try:
        descriptor = os.open(root / WORKSPACE, os.O_RDONLY)
    except OSError:
        return since  # not this project's Snakefile: nothing tells stale locks from others
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None  # nobody holds the workspace: the locks are left over from a crash
    except OSError:
        return since
    finally:
        os.close(descriptor)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every Snakemake out of `folder` while the block runs; one that begins then waits for its end.

    Raises:
        UsbpoError: a Snakemake is at work there, the folder cannot be written, or its file system knows no locks.
    """
    descriptor = _lock_file(folder / WORKSPACE)
    try:
        try:
            alone = _is_alone(descriptor)
        except OSError as error:
            raise UsbpoError(
                f"{folder}: whether a Snakemake is at work there cannot be told ({error.strerror}); "
                "run this where the file system knows locks."
            ) from error
        if not alone:
            raise UsbpoError(f"{folder}: a Snakemake is at work there; wait for its end or stop it.")
        yield
    finally:
        os.close(descriptor)


def hold_names(folder: Path, names: Iterable[str]) -> None:
    """Hold each of `names`, a run's folder or one of results, until this process ends; call it once.

    Snakemake's own locks do for one at a time only: whoever ends first deletes the locks of all others, and those of a
    killed one stay as long as any other lives. So the batch jobs of a workspace, each on runs of its own, do without
    them, and this is what keeps two from the same run. A name is a locked byte, at its hash's place, of one file; such
    locks work across machines, where the file system has them at all, and end with their process.

    Raises:
        UsbpoError: another process holds one of them, or the folder cannot be written.
    """
    descriptor = _lock_file(folder / NAMES)  # stays open: closing it would let all go
    for name in sorted(names):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place_of(name))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UsbpoError(f"{name}: another Snakemake is at work on it; wait until that ends.") from error
            return  # no locks here


def held_names(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of `names` that other processes, on whatever machine, hold in `folder`; none where there are no locks.

    Asks and locks nothing, so that a Snakemake that begins meanwhile is not refused. Not for a process that holds names
    itself: it would let them go, as whoever closes a file gives up all its locks on it.
    """
    try:
        descriptor = os.open(folder / NAMES, os.O_RDONLY)
    except OSError:
        return set()  # nobody has ever held one
    try:
        return {name for name in names if _is_held(descriptor, _place_of(name))}
    except OSError:
        return set()
    finally:
        os.close(descriptor)


def _is_held(descriptor: int, place: int) -> bool:
    """Whether another process has locked the byte at `place`.

    Raises:
        OSError: the file system knows no locks.
    """
    linux = sys.platform == "linux"
    asked = (fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0) if linux else (place, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
    answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK, *asked)))
    return bool(answer[0 if linux else 3] != fcntl.F_UNLCK)


def _place_of(name: str) -> int:
    """The byte that stands for a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait, before the block, for whoever else is in one with the same file, on whatever machine; not without locks.

    Raises:
        UsbpoError: the file cannot be written.
    """
    descriptor = _lock_file(path)
    try:
        with suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock_file(path: Path) -> int:
    """A descriptor of a file that is there to be locked; made where it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # closed on exec, as all of Python's
    except OSError as error:
        raise UsbpoError(f"{path.parent}: cannot be written ({error.strerror}); mend its permissions.") from error


def _is_alone(descriptor: int) -> bool:
    """Try to get the exclusive lock, a few times: `usbpo status` takes it for an instant to ask the same."""
    for _ in range(10):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
    return False


def _let_go() -> None:
    """Close the locks in a forked child: it must not keep the workspace when its parent has died."""
    while _workspaces:
        os.close(_workspaces.pop())


def _kill_after_first(owners: list[str]) -> None:
    """Wait until one of `owners` has vanished, then kill this process, or the group that it leads."""
    poll = select.poll()
    silent = False
    for owner in owners:
        descriptor = watch(owner)
        if descriptor is None:
            silent = True
        else:
            poll.register(descriptor, select.POLLIN)
    while all(alive(owner) for owner in owners):
        if silent:
            time.sleep(POLL_SECONDS)
        else:
            poll.poll()
    if os.getpgrp() == os.getpid() == os.getsid(0):
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _parse(owner: str) -> tuple[int, int, str]:
    """Take a description apart into (pid, start time or 0, place or "")."""
    pid, _, rest = owner.partition(":")
    start, _, place = rest.partition(":")
    if not pid.isdecimal() or not (start or "0").isdecimal() or int(pid) < 1:
        raise UsbpoError(f"{OWNER}={owner!r}: not a process (PID:STARTTIME:PLACE); unset it to run a stage by hand.")
    return int(pid), int(start or 0), place


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of process `pid`; None where it is gone, a zombie, or /proc is missing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold blanks and parentheses
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _place() -> str:
    """Eight hexadecimal digits for this boot of this machine and this process namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            mark = f"{file.read()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        mark = os.uname().nodename
    return hashlib.blake2b(mark.encode(), digest_size=4).hexdigest()
