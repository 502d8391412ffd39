"""All that rests on the inside of Snakemake: its records, locks and marks on disk, and what it has been asked to do.

None of it is promised by Snakemake's documentation. Each function has a test of its name's behaviour in
tests/workspace/test_snakemake_inside.py, which fails with a sentence when an upgrade has changed it. What the display
makes of Snakemake's log events stands in usbpo.monitor, because a logger plugin is asked for there.
"""

import hashlib
import inspect
import logging
import os
import sys
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usbpo.errors import UsbpoError

STATE = ".snakemake"
"""The folder of Snakemake's state, in the workspace"""

KEPT = (
    *("rule", "input", "log", "shellcmd", "params", "code", "record_format_version", "conda_env"),
    *("container_img_url", "software_stack_hash", "input_checksums"),
)
"""The entries of a record that say how a file was made; the others are times, and marks of the process that made it."""

RECURSION_LIMIT = 20_000
"""Python's own, 1,000, ends the planning at about 480 cycles."""

# ---- what a Snakefile asks -------------------------------------------------------------------------------------


def configuration_files(workflow: Any) -> list[str]:
    """The files of --configfile, in their order; empty where the Snakefile's own is read."""
    return [str(path) for path in workflow.overwrite_configfiles]


def read_configuration_by(reader: Callable[[Any], dict[str, Any]]) -> None:
    """Have this process read its configuration files, of --configfile and of `configfile:`, by a function of the path.

    To be called before Snakemake reads those of --configfile, which is when it has made its loggers.
    """
    from snakemake.common import configfile
    from snakemake.settings import types

    configfile.load_configfile = types.load_configfile = reader


def has_config_words(workflow: Any) -> bool:
    """Whether the command has --config KEY=VALUE."""
    return bool(workflow.config_settings.config)


def check_places(folders: Iterable[Path]) -> None:
    """Refuse folders, of a workspace or a project, with whose paths Snakemake cannot work.

    Raises:
        UsbpoError: a path has a brace, which Snakemake takes for the begin or the end of a wildcard.
    """
    for folder in map(os.path.abspath, folders):
        if "{" in folder or "}" in folder:
            raise UsbpoError(f"{folder}: Snakemake takes a brace in a path for a wildcard; rename the folder.")


def is_main(workflow: Any) -> bool:
    """Whether this is the Snakemake that the user started, and not one that it started for a job."""
    return bool(workflow.is_main_process)


@dataclass(frozen=True)
class Asked:
    """What a command asks for."""

    targets: frozenset[str]
    """Rules and files; empty or `all` for the default"""
    partly: bool
    """Whether jobs that the targets need are left out: --until, --omit-from, --batch"""
    forced: bool
    """Whether jobs shall run for no reason of their own: --force, --forcerun, --forceall"""


def asked(workflow: Any) -> Asked:
    """What the command asks for; to be called when Snakemake plans, and not before."""
    settings = workflow.dag_settings
    return Asked(
        targets=frozenset(map(str, settings.targets)),
        partly=bool(settings.until or settings.omit_from or settings.batch),
        forced=bool(settings.forceall or settings.forcerun or settings.forcetargets),
    )


def keep_temporary_files(workflow: Any) -> None:
    """Have Snakemake delete no temporary file, as with --notemp; to be called before the first job."""
    workflow.storage_settings.notemp = True


def record_of(workflow: Any, path: str) -> Any:
    """What Snakemake has recorded of the job that made a file, with the attributes KEPT; None without a record."""
    from snakemake.io import IOFile

    return workflow.persistence.metadata(IOFile(path, rule=None))


def forgive_damaged_records(workflow: Any, tell: Callable[[str], None]) -> None:
    """Let a record that cannot be read count as lost, where Snakemake would end in a traceback.

    Snakemake itself does so where a record is no JSON; here also where it is no text, or JSON of something else.

    Args:
        tell: is given a sentence for each.
    """
    _forgive(workflow.persistence, tell)


def leave_log_unwritten() -> None:
    """Let Snakemake's own log file miss lines where the disk is full; Python would print a call stack for each."""
    from snakemake.logging import logger

    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = lambda record: None  # type: ignore[method-assign]


def jobs_to_run(workflow: Any) -> list[tuple[str, dict[str, str]]]:
    """The rule and the wildcards of each job that will run; to be called in `onstart`."""
    return [(str(job.rule.name), dict(job.wildcards_dict)) for job in workflow.dag.needrun_jobs()]


class CoresByRun:
    """How many cores each run may have for itself, while Snakemake runs; it asks when a job's turn comes.

    Args:
        chain: the rules whose last jobs, one for each run, are its last that can use several threads.
    """

    def __init__(self, workflow: Any, chain: Iterable[str]) -> None:
        self._workflow, self._chain = workflow, frozenset(chain)
        self._last: list[Any] | None = None

    def share(self) -> int:
        """The cores by the number of runs with work left, one at least; one where jobs run elsewhere.

        There a job has what its own Snakemake is told: --set-threads.
        """
        cores = self._workflow.resource_settings.cores
        if not (cores and is_main(self._workflow) and runs_jobs_here(self._workflow)):
            return 1
        return max(1, int(cores) // max(1, self._runs_at_work()))

    def _runs_at_work(self) -> int:
        dag = self._workflow.dag
        if self._last is None:
            last: dict[tuple[str, ...], Any] = {}
            for job in dag.needrun_jobs():
                if job.rule.name in self._chain:
                    *run, cycle = (str(job.wildcards_dict[name]) for name in ("task", "method", "seed", "cycle"))
                    last[tuple(run)] = max(last.get(tuple(run), ("", None)), (cycle, job), key=lambda pair: pair[0])
            self._last = [job for _, job in last.values()]
        return sum(not dag.finished(job) for job in self._last)


def runs_jobs_here(workflow: Any) -> bool:
    """Whether jobs run on this machine, as children of this Snakemake, and not through a batch system."""
    return bool(workflow.local_exec)


def gives_jobs_environments(workflow: Any) -> bool:
    """Whether jobs have an environment of their own, such as conda's."""
    return bool(workflow.deployment_settings.deployment_method)


def without_maker(path: str) -> Any:
    """An input of which Snakemake does not look for the maker: its job need not run because the file is made again."""
    from snakemake.ioflags import before_update

    return before_update(path)


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its signature, which Snakemake works out anew twice in each call where it is not told."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def allow_long_chains() -> None:
    """Snakemake follows a chain of jobs by recursion: let it."""
    sys.setrecursionlimit(RECURSION_LIMIT)


# ---- its records of files --------------------------------------------------------------------------------------


def format_number() -> int:
    """The number that the installed Snakemake gives to the format of its records."""
    from snakemake.persistence import RECORD_FORMAT_VERSION

    return int(RECORD_FORMAT_VERSION)


def check_kept(kept: Mapping[str, Any]) -> None:
    """Raise ValueError unless these are the entries KEPT of a record, each of its type, in the installed format."""
    if kept.keys() != set(KEPT) or kept["record_format_version"] != format_number():
        raise ValueError("the entries of a record are others")
    _check_types(kept)


def _check_types(entries: Mapping[str, Any]) -> None:
    """Raise ValueError unless each entry of a record is of its type."""
    from snakemake.persistence import MetadataRecord

    record = MetadataRecord.model_validate(entries)
    texts = [*(record.params or ()), *(digits for digits in (record.input_checksums or {}).values() if digits)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the parameters or checksums of a record are no text")


class Records:
    """Snakemake's records of the files below a folder, each of the job that made the file; paths are from there."""

    def __init__(self, root: Path) -> None:
        from snakemake.persistence.file import FilePersistence

        self._inside = FilePersistence(path=Path(os.path.abspath(root)) / STATE)
        _forgive(self._inside, lambda sentence: None)

    def finished(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The entries KEPT of each record, by path.

        A file that is being made, or was left half-made by a crash, has none; so has one of an earlier format.
        """
        names = list(names)
        unfinished = self._inside._filter_incomplete_keys(names)
        found = {name: self._inside._read_record(name) for name in names if name not in unfinished}
        return {
            name: {key: getattr(record, key) for key in KEPT}
            for name, record in found.items()
            if record is not None and record.record_format_version == format_number()
        }

    def names(self) -> Iterator[str]:
        """Every file of which there is a record."""
        for name, _ in _named_in_base64(self._inside.path / "metadata"):
            yield name

    def inputs(self, name: str) -> dict[str, str]:
        """What the job of a file has read: the SHA-256 in hexadecimal digits by path, "" where none was recorded."""
        record = self._inside._read_record(name)
        read = contents_read(getattr(record, "input_checksums", None))
        return {path: read.get(path, "") for path in getattr(record, "input", None) or ()}

    def left_at(self, name: str) -> float | None:
        """The modification time that the job had left the file with, seconds since 1970; None without a record."""
        time = getattr(self._inside._read_record(name), "endtime", None)
        return None if time is None else float(time)

    def put_back(self, name: str, kept: Mapping[str, Any], time: float) -> None:
        """Write the record of a file that a job has made elsewhere.

        Args:
            kept: the entries KEPT.
            time: the modification time of the file, seconds since 1970.
        """
        from snakemake.persistence import MetadataRecord

        text = f"{kept['rule']}\n{kept['shellcmd']}"  # no two jobs share them, so they do for the job's number
        job = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())
        record = MetadataRecord(**kept, starttime=time, endtime=time, incomplete=False, job_hash=job)
        self._inside._write_record(name, record)


def _forgive(persistence: Any, tell: Callable[[str], None]) -> None:
    """As `forgive_damaged_records`; does nothing where Snakemake keeps its records elsewhere than in files."""
    read, told = getattr(persistence, "_io_read", None), set[str]()
    if read is None:
        return

    def forgiving(subject: str, name: str) -> Any:
        try:
            found = read(subject, name)
            if found and subject == persistence._metadata_path:
                _check_types(found)
            return found
        except (OSError, ValueError, TypeError, RecursionError) as error:
            if name not in told:
                told.add(name)
                tell(
                    f"{os.path.relpath(persistence._record_path(subject, name))}: it is damaged "
                    f"({type(error).__name__}), so Snakemake's record of {name} counts as lost."
                )
            return {}

    persistence._io_read = forgiving


def same_params(recorded: Iterable[str] | None, values: Iterable[Any]) -> bool:
    """Whether the `params` of a record are those of a rule with these values."""
    return sorted(recorded or ()) == sorted(map(repr, values))


def same_input(recorded: Iterable[str] | None, paths: Iterable[str]) -> bool:
    """Whether the `input` of a record is these paths."""
    return sorted(recorded or ()) == sorted(paths)


def contents_read(checksums: Mapping[str, str] | None) -> dict[str, str]:
    """The SHA-256 of each input that a job has read, in hexadecimal digits, out of `input_checksums` of a record.

    Files above `max-checksum-file-size` are left out.
    """
    return {path: digits.removeprefix("sha256:") for path, digits in (checksums or {}).items() if digits}


# ---- its locks and marks ---------------------------------------------------------------------------------------


def locked_since(root: Path) -> float | None:
    """When the oldest lock of a Snakemake in `root` was made, seconds since 1970; None where there is none.

    A killed Snakemake leaves its locks behind.
    """
    try:
        return min((path.stat().st_mtime for path in (root / STATE / "locks").glob("*.lock")), default=None)
    except OSError:
        return None  # it has just ended


def remove_locks(root: Path) -> bool:
    """Remove every lock in `root`, so that the next Snakemake is not refused; whether there was one.

    Raises:
        OSError: one cannot be removed.
    """
    removed = False
    for left_over in (root / STATE / "locks").glob("*"):
        left_over.unlink(missing_ok=True)
        removed = True
    return removed


def begun(root: Path) -> Iterator[tuple[str, float]]:
    """Each file that a job has begun to make, or was making when it was killed, and when it began, s since 1970.

    Snakemake marks each output that it has begun in .snakemake/incomplete, under a name that is the path in base64.
    """
    for path, mark in _named_in_base64(root / STATE / "incomplete"):
        try:
            yield path, mark.stat().st_mtime
        except OSError:
            continue  # the job has just ended


def _named_in_base64(top: Path) -> Iterator[tuple[str, Path]]:
    """The paths for which files below `top` are named, and these files."""
    for folder, _, names in os.walk(top):
        # A path too long for one name is cut into folders, each marked with "@".
        before = [part.removeprefix("@") for part in Path(folder).relative_to(top).parts]
        for name in names:
            try:
                yield urlsafe_b64decode("".join([*before, name])).decode(), Path(folder, name)
            except ValueError:
                continue  # none of Snakemake's
