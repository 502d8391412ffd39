"""How many cycles each run was asked for: told by the Snakefile, remembered for `usbpo status`."""

import json
from collections.abc import Mapping
from pathlib import Path

from usbpo.artifacts.files import read_json, write_json
from usbpo.errors import UsbpoError
from usbpo.monitor.runs import Run, Target
from usbpo.workspace.lifetime import NOTES, in_turn

TARGETS = "USBPO_TARGETS"
"""The environment variable by which the Snakefile says how many cycles each run is to have (`parse_targets`)."""

TARGETS_FILE = ".snakemake/usbpo-targets.json"
"""How many cycles of which length were asked for last, by run: {"task/method/seed-N": {"cycles", "cycle_steps", …}}."""


def parse_targets(content: object) -> dict[Run, Target]:
    """Read `{"task/method/seed-N": {"cycles": K, "cycle_steps": c}}`, as JSON text or decoded; skip what is no target.

    Progress is a courtesy: a broken entry costs a bar of the display, never a run.
    """
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except ValueError:
            return {}
    targets = {}
    for name, target in content.items() if isinstance(content, dict) else ():
        try:
            task, method, seed = name.split("/")
            targets[Run(task, method, int(seed.removeprefix("seed-")))] = Target(
                int(target["cycles"]),
                int(target["cycle_steps"]),
                None if target.get("evaluated") is None else int(target["evaluated"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
    return targets


def read_targets(root: Path) -> dict[Run, Target]:
    """The targets that were remembered in `root`; none where there are none."""
    try:
        return parse_targets(read_json(root / TARGETS_FILE))
    except UsbpoError:
        return {}


def remember_targets(root: Path, targets: Mapping[Run, Target]) -> None:
    """Lay `targets` over those that were remembered in `root`, for `usbpo status`."""
    with in_turn(root / NOTES):
        merged = {**read_targets(root), **targets}
        write_json(root / TARGETS_FILE, {str(run): target._asdict() for run, target in merged.items()})
