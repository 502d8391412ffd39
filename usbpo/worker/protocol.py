"""What client and warm worker must agree on: names, words, whose socket it is, what counts as the same code.

A stage by the warm worker takes milliseconds, and each counts: nothing is imported here that is not needed.
"""

import os
import sys

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WORKER = "USBPO_WORKER"
"""Environment variable: path of the worker's socket, as `usbpo.worker.starting.start` returned it. Empty: no worker."""

SITE = "USBPO_SITE"
"""Environment variable: what `site` says to a client that starts without Python's site module."""

SWITCH = "USBPO_WARM"
"""Environment variable: 0 turns the warm worker off."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Set before the numerical libraries are imported, here and in the worker: both ways give the same bytes."""


THREADS = "USBPO_THREADS"
"""Environment variable: how many threads a stage shares its work out to; `usbpo.numerics.threads` reads it."""


def thread_settings(environment: "Mapping[str, str]") -> dict[str, str]:
    """What a stage's environment needs besides: one thread for the libraries, and the number of the stage's own.

    That is what the environment says to the libraries before, which is how Snakemake tells a job of its threads.
    """
    given = environment.get(THREADS) or environment.get("OMP_NUM_THREADS", "")
    return {**ONE_THREAD, THREADS: given if given.isdecimal() and int(given) else "1"}


ACCEPTED, GO = b"accepted", b"\0"
"""The worker's first answer to a request, and the client's word that starts the stage. Without it nothing is started,
so a client that hears nothing can safely run the stage itself. The answers, a line each: `accepted`, then `exit N` or
`signal N`; or, in place of either, `refused REASON`: nothing was started. The stage holds its end of the connection
too: the client sees it closed without an answer only when worker and stage have both ended."""


def fingerprint() -> str:
    """Sixteen hexadecimal digits for the package's sources, the interpreter and what is installed beside it.

    Takes about a millisecond. Sources count by size and modification time.
    """
    from _blake2 import blake2b

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = os.environ.get(SITE, "") if sys.flags.no_site else site()
    words = [package, os.path.realpath(sys.executable), sys.version, os.environ.get("PYTHONPATH", ""), found]
    words += sorted(_sources(package))
    return blake2b("\0".join(words).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def site() -> str:
    """Where packages are installed, by the modification times of these folders."""
    words = [sys.prefix]
    for folder in sorted({path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}):
        if os.path.isdir(folder):
            words.append(f"{folder} {os.stat(folder).st_mtime_ns}")
    return "\n".join(words)


def is_private(folder: str) -> bool:
    """True where `folder` is a real folder of this user that nobody else may enter."""
    import stat

    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077 == 0


def identity_file(path: str) -> str:
    """The file beside the socket `path` that tells which process serves it, or will."""
    return path.removesuffix(".sock") + ".pid"


def read_identity(path: str) -> str:
    """Which process serves the socket `path`, or will, as `lifetime.identity` describes it; "" if nobody says."""
    try:
        with open(identity_file(path), encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def is_served(path: str) -> bool:
    """True while the worker of the socket `path` lives, also while it is still importing."""
    return is_alive(read_identity(path))


def is_alive(worker: str) -> bool:
    """True while the worker that `read_identity` told of lives."""
    from usbpo.errors import UsbpoError
    from usbpo.workspace import lifetime

    try:
        return lifetime.alive(worker)
    except UsbpoError:
        return False


def _sources(folder: str) -> "Iterator[str]":
    """All Python files below `folder`, each with what tells whether it has changed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                found = entry.stat()
                yield f"{entry.path} {found.st_size} {found.st_mtime_ns}"
            elif entry.is_dir(follow_symlinks=False) and entry.name != "__pycache__":
                yield from _sources(entry.path)
