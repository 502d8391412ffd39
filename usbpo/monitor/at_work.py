"""What the Snakemakes at work are doing, by the marks and locks that they keep in `.snakemake`."""

import fcntl
import os
import re
from base64 import urlsafe_b64decode
from pathlib import Path

from usbpo.monitor.runs import STAGES, Run


def stages_at_work(root: Path, started: float) -> dict[Run, tuple[str, int]]:
    """The stage and cycle at which each run is, by what was begun after `started`, seconds since 1970.

    Snakemake marks each output that it has begun in .snakemake/incomplete, under a name that is the path in base64.
    A mark that is older than the locks of the Snakemake at work was left by one that was killed. One with `--nolock`
    tells no such time; of its run the newest mark counts, and what was left over is what it makes first.
    """
    found: dict[Run, tuple[bool, float, str, int]] = {}
    incomplete = root / ".snakemake" / "incomplete"
    for folder, _, names in os.walk(incomplete):
        # A path too long for one name is cut into folders, each marked with "@".
        before = [part.removeprefix("@") for part in Path(folder).relative_to(incomplete).parts]
        for name in names:
            try:
                path = urlsafe_b64decode("".join([*before, name])).decode()
                begun = os.stat(os.path.join(folder, name)).st_mtime
            except (OSError, ValueError):
                continue  # the stage has just ended, or this is no mark
            mark = _stage_of(path)
            if mark and begun >= started:
                run, stage, cycle = mark
                newer = stage != "evaluate", begun, stage, cycle  # evaluations run beside the cycles and matter less
                found[run] = max(found.get(run, newer), newer)
    return {run: (stage, cycle) for run, (_, _, stage, cycle) in found.items()}


def snakemake_started(root: Path) -> float | None:
    """When the Snakemake at work in `root` took its locks, seconds since 1970; None where none has taken any."""
    try:
        times = [path.stat().st_mtime for path in (root / ".snakemake" / "locks").glob("*.lock")]
    except OSError:
        return None  # it has just ended
    if not times:
        return None
    try:
        descriptor = os.open(root / ".snakemake" / "usbpo.lock", os.O_RDONLY)
    except OSError:
        return min(times)  # not this project's Snakefile: nothing tells stale locks from others
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None  # nobody holds the workspace (usbpo.workspace.lifetime): the locks are left over from a crash
    except OSError:
        return min(times)
    finally:
        os.close(descriptor)


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression for the paths of a template of `usbpo.artifacts.layout`."""
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", text))


_PATTERNS = [(stage, _pattern(templates[0])) for stage, templates in STAGES.items() if stage != "initialise"]


def _stage_of(path: str) -> tuple[Run, str, int] | None:
    """The run, stage and cycle that make the file `path`, or None."""
    for stage, pattern in _PATTERNS:
        match = pattern.fullmatch(path)
        if match and match["cycle"].isdigit() and match["seed"].isdigit():
            cycle = int(match["cycle"])
            made_by = "initialise" if cycle == 0 and stage in ("policy", "phase2") else stage
            return Run(match["task"], match["method"], int(match["seed"])), made_by, cycle
    return None
