"""`usbpo verify`: whether artifacts are whole, belong where they lie, and were made from what lies beside them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from usbpo.artifacts import chain, evaluations, hdf5, layout, metrics, sealing, transitions
from usbpo.artifacts.blocks import block_of
from usbpo.artifacts.header import PHYSICS, Header, check_place
from usbpo.artifacts.identity import header_of
from usbpo.artifacts.layout import five_digits
from usbpo.errors import UsbpoError
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.loading import load_run
from usbpo.experiment.named import NamedRun, named_runs
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run as PlannedRun
from usbpo.report import records

VARYING = ("check", "initial_data", "length", "lengths", "on_policy_steps", "rows", "shards", "steps")
"""The parameters that differ from cycle to cycle"""


@dataclass(frozen=True)
class Found:
    """An artifact that is what was written."""

    template: str
    path: Path
    cycle: int
    digest: str
    header: Header | None
    """None for JSON"""
    content: Mapping[str, Any]
    """Of JSON"""


@dataclass
class Report:
    """What was looked at, and what is wrong with it."""

    artifacts: int = 0
    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What is no fault, and good to know"""

    def tried(self, check: Any, *given: Any) -> Any:
        """What a check returns, or None where it ends with a finding."""
        try:
            return check(*given)
        except UsbpoError as error:
            self.findings.append(str(error))
            return None


def verify(what: str, root: Path = Path()) -> Report:
    """Verify an artifact, the runs of a folder or of a name, or an experiment.

    Args:
        what: a file; TASK/METHOD/seed-N or a folder of runs; an experiment's file or name.
        root: folder that holds data/.

    Raises:
        UsbpoError: there is nothing of this name.
    """
    report, path = Report(), Path(what)
    if path.suffix in (".h5", ".safetensors", ".json"):
        _file(path, report)
        return report
    try:
        runs = named_runs([what], root) if path.suffix not in (".yaml", ".yml") else []
    except UsbpoError:
        runs = []
    if runs:
        for run in runs:
            _run(run, _configured(run), None, report)
        return report
    try:
        plan = Plan.named(what)
    except UsbpoError as error:
        raise UsbpoError(
            f"{what}: it is no artifact, no run below {root / 'data/runs'} and no experiment that can be used ({error})"
        ) from error
    for planned, cycles in plan.cycles.items():
        _run(NamedRun(root, planned.task, planned.method, planned.seed), planned, cycles, report)
    for name in plan.artifacts(root):
        if layout.is_large(name) and not (root / name).is_file():
            report.findings.append(f"{root / name}: it is not there, but is kept; run snakemake again to have it made.")
    for name in plan.result_files():
        if not (root / name).is_file():
            report.findings.append(f"{root / name}: it is not there; run snakemake again to have it drawn.")
    return report


def _configured(run: NamedRun) -> PlannedRun | None:
    """The run as the configuration has it; None where that does not know its task or method."""
    try:
        return PlannedRun(run.task, run.method, run.seed, load_run(run.task, run.method, FOLDERS))
    except UsbpoError:
        return None


# ---- one artifact ------------------------------------------------------------------------------------------------


def _file(path: Path, report: Report) -> None:
    """One artifact; and, where it lies in a run, whether it belongs there and was made from what lies there."""
    place = _place(path.absolute())
    if place is None:
        report.artifacts += 1
        report.tried(_read, "", path)
        return
    run, template, cycle = place
    found = _all_of(run, report, only=(template, cycle))
    if found:
        everything = {one.path: one for one in _all_of(run, Report())}
        _chain(run, found[0], everything, report)


def _place(path: Path) -> tuple[NamedRun, str, int] | None:
    """The run, template and cycle by which a file lies where it does; None for one that lies elsewhere."""
    match = re.fullmatch(r"(.*/)data/runs/([^/]+)/([^/]+)/seed-(\d+)/(.+)", path.as_posix())
    if match is None:
        return None
    root, task, method, seed, rest = match.groups()
    for template in (*chain.KINDS, *chain.MADE_WITH):
        pattern = re.escape(template.removeprefix(f"{layout.RUN}/"))
        pattern = re.sub(r"\\{(cycle|block)\\}", r"(\\d{5})", pattern)
        if found := re.fullmatch(pattern, rest):
            return NamedRun(Path(root), task, method, int(seed)), template, int(found[1])
    return None


def _read(template: str, path: Path) -> tuple[Header | None, Mapping[str, Any], str]:
    """An artifact with all that it holds: header, JSON and digest.

    Raises:
        UsbpoError: it is not what was written, or not what it should be.
    """
    if path.suffix == ".json":
        content, digest = metrics.read(path)
        if template in records.MODELS:
            records.checked(records.MODELS[template], path, content)
        return None, content, digest
    header = header_of(path)
    if template in chain.KINDS:
        header.expect(path, chain.KINDS[template])
    if header.kind in (transitions.KIND, transitions.ROLLOUTS, transitions.IMPORTED):
        _, rows = transitions.read(path, header.kind)
        if header.parameters.get("rows", len(rows)) != len(rows) and header.kind == transitions.KIND:
            raise UsbpoError(f"{path}: it has {len(rows)} rows, but says {header.parameters['rows']}; {sealing.CURE}.")
    elif header.kind == evaluations.KIND:
        evaluations.read(path)
    elif path.suffix == ".h5":
        with hdf5.opened(path) as arrays:
            for name in arrays.shapes:
                if not np.isfinite(arrays[name]).all():
                    raise UsbpoError(f"{path}: {name} holds NaN or infinity; {sealing.CURE}.")
    else:
        _read_checkpoint(path, header.kind)
    return header, {}, header.digest


def _read_checkpoint(path: Path, kind: str) -> None:
    from usbpo.agent import sac  # torch takes seconds, and what has no checkpoint needs none
    from usbpo.artifacts import checkpoints
    from usbpo.model import ensemble

    if kind == sac.KIND:
        sac.load(path)
    elif kind == ensemble.KIND:
        ensemble.load(path)
    else:
        checkpoints.read(path, kind)


# ---- a run -------------------------------------------------------------------------------------------------------


def _run(run: NamedRun, planned: PlannedRun | None, cycles: int | None, report: Report) -> None:
    """All of a run: each artifact, the chain between them, one configuration and one simulator, and completeness.

    Args:
        planned: as the configuration has it.
        cycles: how many it shall have; None for as many as it has.
    """
    found = _all_of(run, report)
    everything = {one.path: one for one in found}
    for one in found:
        _chain(run, one, everything, report)
    _parameters(found, report)
    _versions(run, found, report)
    _completeness(run, planned, cycles, report)
    if planned is None:
        report.remarks.append(f"{run.name}: no configuration knows it, so only its real data were counted.")


def _all_of(run: NamedRun, report: Report, only: tuple[str, int] | None = None) -> list[Found]:
    """The artifacts of a run that are what was written and lie where they belong, in order of cycle."""
    found: list[Found] = []
    for template in (*chain.KINDS, *chain.MADE_WITH):
        for cycle in _cycles(run, template):
            if only is not None and only != (template, cycle):
                continue
            path = _path(run, template, cycle)
            report.artifacts += 1
            if read := report.tried(_read, template, path):
                header, content, digest = read
                if report.tried(_belongs, run, template, cycle, path, header, content):
                    found.append(Found(template, path, cycle, digest, header, content))
    return sorted(found, key=lambda one: one.cycle)


def _belongs(
    run: NamedRun, template: str, cycle: int, path: Path, header: Header | None, content: Mapping[str, Any]
) -> bool:
    """Check that an artifact is of the run and cycle in whose folder it lies; a block, that it is this block.

    Raises:
        UsbpoError: it is not.
    """
    identity = header.identity if header else content
    if template == layout.BLOCK and header:
        block = block_of(cycle)
        whole = block and (block.end - 1, block.end - block.first) == (header.cycle, header.parameters.get("shards"))
        if not whole:
            raise UsbpoError(f"{path}: it is not the block {cycle} of a run; delete it and run again.")
        identity = {**identity, "cycle": cycle}
    elif template == layout.SHARD and header and header.parameters.get("shards", 1) != 1:
        raise UsbpoError(f"{path}: it is a block in the place of a shard; delete it and run again.")
    check_place(path, identity, run.task, run.method, run.seed, cycle)
    return True


def _cycles(run: NamedRun, template: str) -> list[int]:
    """The cycles, or blocks, of which a run has a file, in order."""
    pattern = template.format(task=run.task, method=run.method, seed=run.seed, cycle="*", block="*")
    place = pattern.split("/").index(next(part for part in pattern.split("/") if "*" in part))
    names = (path.relative_to(run.root).parts[place].partition(".")[0] for path in run.root.glob(pattern))
    return sorted(int(name) for name in names if re.fullmatch(r"\d{5}", name))


def _path(run: NamedRun, template: str, cycle: int) -> Path:
    digits = five_digits(cycle)
    return run.root / template.format(task=run.task, method=run.method, seed=run.seed, cycle=digits, block=digits)


def _chain(run: NamedRun, one: Found, everything: Mapping[Path, Found], report: Report) -> None:
    """Hold the digests of what an artifact was made from against what lies there; what was let go is not asked for."""
    if one.header is None:
        beside = everything.get(_path(run, chain.MADE_WITH[one.template], one.cycle))
        if beside and one.content.get(metrics.BESIDE) != beside.digest and one.content.get("fine_tuned", True):
            report.findings.append(
                f"{one.path}: it was written with another {beside.path.name} than the one beside it; delete both and "
                "run again."
            )
        return
    made_from = chain.inputs_of(one.header, lambda template, cycle: _path(run, template, cycle))
    for name, paths in made_from.items():
        digests, option = one.header.inputs[name], f"--{name.replace('_', '-')}"
        if len(digests) != len(paths):
            report.findings.append(
                f"{one.path}: it was made from {len(digests)} files as {option}, but {len(paths)} belong to cycle "
                f"{one.cycle}; delete it and run again."
            )
            continue
        for path, digest in zip(paths, digests, strict=True):
            if path in everything and everything[path].digest != digest:
                report.findings.append(
                    f"{one.path}: it was made from another {path} than the one that lies there, as {option}; delete "
                    "the one that is wrong, and what was made from it, and run again."
                )


def _parameters(found: list[Found], report: Report) -> None:
    """Whether all artifacts of a kind were made with the same parameters."""
    first: dict[tuple[str, bool], Found] = {}
    for one in found:
        if one.header is None:
            continue
        # The first shard and the first policy are made by other stages than the later ones.
        before = first.setdefault((one.template, one.cycle == 0), one)
        mine, others = one.header.parameters, before.header.parameters if before.header else {}
        for name in sorted((mine.keys() | others.keys()) - set(VARYING)):
            if mine.get(name) != others.get(name):
                report.findings.append(
                    f"{one.path}: its {name} is {mine.get(name)}, but that of {before.path} is {others.get(name)}; a "
                    "run has one configuration, so delete what was made with the other and run again."
                )


def _versions(run: NamedRun, found: list[Found], report: Report) -> None:
    """Whether the real data come from one simulator; and what else was written by several versions."""
    first = next((one for one in found if one.template == layout.SHARD), None)
    for one in found:
        if one.template != layout.SHARD or not one.header or not first or not first.header:
            continue
        for package in PHYSICS:
            mine, theirs = (each.versions.get(package) for each in (one.header, first.header))
            if mine != theirs:
                report.findings.append(
                    f"{one.path}: it was collected with {package} {mine}, but {first.path} with {theirs}; a run has "
                    "one simulator, so collect its data anew from there."
                )
    packages = sorted({package for one in found if one.header for package in one.header.versions})
    for package in packages:
        numbers = {one.header.versions.get(package, "none") for one in found if one.header}
        if len(numbers) > 1:
            report.remarks.append(f"{run.name}: it was written by {package} {', '.join(sorted(numbers))}.")


def _completeness(run: NamedRun, planned: PlannedRun | None, cycles: int | None, report: Report) -> None:
    """Whether real data are there from the first cycle on, and all that no experiment lets go."""
    shards = _cycles(run, layout.SHARD)
    if not shards:
        report.findings.append(f"{run.root / layout.RUN.format(**vars(run))}: it has no real data; run snakemake.")
        return
    done = max((cycle for cycle in run.cycles() if run.path(layout.POLICY_METRICS, cycle).is_file()), default=0)
    last = done if cycles is None else cycles
    asked: list[Path] = [_path(run, layout.SHARD, cycle) for cycle in range(max(last, shards[-1]) + 1)]
    if planned is not None:
        paths = [path for cycle in range(last + 1) for path in planned.artifacts(cycle)]
        asked += [run.root / path for path in paths if not layout.is_large(path)]
    for path in dict.fromkeys(asked):
        if not path.is_file():
            report.findings.append(f"{path}: it is not there; run snakemake again to have it made.")


def lines(report: Report, what: str) -> Iterator[str]:
    """The report as `usbpo verify` prints it: one line for each finding, then how many there are."""
    yield from report.findings
    yield from (f"remark: {remark}" for remark in report.remarks)
    many = "1 artifact" if report.artifacts == 1 else f"{report.artifacts} artifacts"
    count = len(report.findings)
    yield f"{what}: {many}, {'no finding' if not count else '1 finding' if count == 1 else f'{count} findings'}."
