"""What the logs of stages tell: where a run was interrupted, and how a log ends."""

from pathlib import Path

from usbpo.artifacts import layout
from usbpo.monitor.runs import STAGES, Run


def interrupted(root: Path, run: Run, done: int | None) -> tuple[str, int, str] | tuple[None, None, str]:
    """The stage and cycle that failed or was stopped, and the last line of its log: the newest log without an output.

    What the cycles up to `done` have left may be let go, so of these only evaluations count.
    """
    newest: tuple[float, Path] | None = None
    logs = (root / run.path(layout.LOG)).parent.parent
    for path in logs.glob("*/*.log"):
        stage, cycle = path.stem, path.parent.name
        if stage not in STAGES or not cycle.isdecimal():
            continue
        if done is not None and int(cycle) <= done and stage != "evaluate":
            continue
        if any((root / run.path(output, int(cycle))).is_file() for output in STAGES[stage]):
            continue
        try:
            newest = max(newest or (0.0, path), (path.stat().st_mtime, path))
        except OSError:
            continue
    if newest is None:
        return None, None, ""
    last = last_lines(newest[1], 1)
    return newest[1].stem, int(newest[1].parent.name), last[0][:200] if last else ""


def last_lines(path: Path, limit: int | None) -> list[str]:
    """The last `limit` lines of a log that are not empty, or all; nothing if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    kept = [_printable(text.rstrip()) for text in lines if text.strip()]
    return kept if limit is None else kept[-limit:]


def _printable(text: str) -> str:
    """The text without what would steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in text)
