"""What the Snakemakes at work are doing, by the marks and locks that they keep in `.snakemake`."""

import re
from pathlib import Path

from usbpo.monitor.runs import STAGES, Run
from usbpo.workspace import snakemake_inside


def stages_at_work(root: Path, started: float) -> dict[Run, tuple[str, int]]:
    """The stage and cycle at which each run is, by what was begun after `started`, seconds since 1970.

    What was begun before the locks of the Snakemake at work was left by one that was killed. One with `--nolock` tells
    no such time; of its run the newest counts, and what was left over is what it makes first.
    """
    found: dict[Run, tuple[bool, float, str, int]] = {}
    for path, begun in snakemake_inside.begun(root):
        mark = _stage_of(path)
        if mark and begun >= started:
            run, stage, cycle = mark
            newer = stage != "evaluate", begun, stage, cycle  # evaluations run beside the cycles and matter less
            found[run] = max(found.get(run, newer), newer)
    return {run: (stage, cycle) for run, (_, _, stage, cycle) in found.items()}


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression for the paths of a template of `usbpo.artifacts.layout`."""
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", text))


_PATTERNS = [(stage, _pattern(templates[0])) for stage, templates in STAGES.items() if stage != "initialise"]


def _stage_of(path: str) -> tuple[Run, str, int] | None:
    """The run, stage and cycle that make the file `path`, or None."""
    for stage, pattern in _PATTERNS:
        match = pattern.fullmatch(path)
        if match and match["cycle"].isdecimal() and match["seed"].isdecimal():
            cycle = int(match["cycle"])
            made_by = "initialise" if cycle == 0 and stage in ("policy", "phase2") else stage
            return Run(match["task"], match["method"], int(match["seed"])), made_by, cycle
    return None
