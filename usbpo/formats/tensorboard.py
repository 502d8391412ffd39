"""TensorBoard event files: what a run has on disk as scalars, under the names that Stable-Baselines3 gives them.

The step of every scalar is on-policy environment steps. Where Stable-Baselines3 has a name it is kept:

- `eval/mean_reward`, `eval/mean_ep_length`: the deterministic policy, mean over the episodes of an evaluation;
  `eval/std_reward` is their (population) standard deviation.
- `rollout/ep_rew_mean`, `rollout/ep_len_mean`: the collecting policy in the real environment, mean over the 100
  episodes that ended last, the random steps' included.
- `train/ent_coef` (the temperature α), `train/actor_loss`, `train/critic_loss`, `train/n_updates`; and ours beside
  them, `train/entropy`, `train/target_entropy`, `train/q_real`, `train/q_model` (mean Q on real and on model rows).
  The updates of a cycle are spread evenly over its steps, as the released code interleaves them.

What model-free libraries do not have:

- `model/holdout_mse`, `model/holdout_mse_before` (after and before phase 1, mean over the elites), `model/epochs`.
- `phase2/shift_before`, `phase2/bias_before`, `phase2/sum_before`, the same `_after`, `phase2/steps`,
  `phase2/best_step`, and `phase2/holdout_mse` (mean over the elites).
- `model_rollout/length`, `model_rollout/transitions`, `model_rollout/terminated`, `model_rollout/not_finite`,
  `model_rollout/reward_mean`.
- `trigger/fired` (0 or 1), `trigger/estimate` (S), `trigger/threshold`, `trigger/mean_error`, `trigger/volume`,
  `trigger/steps` (since the last training).
- `theory/…`: every number in `theory.json`, by its place there.

A file has neither host nor time: its name is fixed, and the wall time of an event is its step, in seconds; so equal
runs give equal bytes. A file of the same run that has grown is added to, which a running TensorBoard shows.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from usbpo.artifacts import evaluations, layout, transitions
from usbpo.artifacts.files import writing
from usbpo.artifacts.header import check_place
from usbpo.artifacts.metrics import IDENTITY
from usbpo.artifacts.metrics import read as read_metrics
from usbpo.errors import UsbpoError
from usbpo.experiment.named import NamedRun

WINDOW = 100
"""Episodes in the mean of `rollout/…`, as in Stable-Baselines3."""

Scalars = dict[str, float | None]
"""Values by tag; None where a method or cycle does not have one."""

Events = dict[int, dict[str, float]]
"""Values by step and tag."""


def write_runs(runs: Sequence[NamedRun], folder: Path, cycles: int | None = None) -> None:
    """Write the event files of some runs below `folder`, and say what was written.

    Raises:
        UsbpoError: two runs have one name, a file is damaged or of another run, or one cannot be written.
    """
    roots: dict[str, Path] = {}
    for run in runs:
        if roots.setdefault(run.name, run.root) != run.root:
            raise UsbpoError(
                f"{run.name}: the name of two runs, in {roots[run.name]} and {run.root}; write one at a time."
            )
    for run in runs:
        path, events = write_run(run, folder, cycles)
        values = sum(len(scalars) for scalars in events.values())
        print(f"{path}: {values:,} values up to step {max(events, default=0):,}")
    print(f"`tensorboard --logdir {folder}` shows them.")


def write_run(run: NamedRun, folder: Path, cycles: int | None = None) -> tuple[Path, Events]:
    """Write the event file of one run, of whatever its cycles have on disk by now.

    Args:
        run: the run.
        folder: TensorBoard's log folder; the file goes to TASK/METHOD/seed-N below it.
        cycles: the last cycle to read; all without it.

    Returns:
        The file, and what stands in it.

    Raises:
        UsbpoError: a file is damaged or of another run, or the file cannot be written.
    """
    events = read_events(run, cycles)
    path = folder / run.name / layout.EVENT_FILE
    _write(path, _content(events))
    return path, events


def _content(events: Events) -> bytes:
    with TemporaryDirectory() as folder:
        file = Path(folder, layout.EVENT_FILE)
        writer = RecordWriter(str(file))
        for event in _protobufs(events):
            writer.write(event.SerializeToString(deterministic=True))
        writer.close()
        return file.read_bytes()


def _write(path: Path, content: bytes) -> None:
    """Write an event file: at the end of the one that is there, where that is how the new one begins.

    A TensorBoard that is running goes on with what is added to a file, and does not notice another in its place.

    Raises:
        UsbpoError: it cannot be written.
    """
    if not _begins(path, content):
        with writing(path) as temporary:
            temporary.write_bytes(content)
        return
    try:
        with open(path, "ab") as file:
            file.write(content[file.tell() :])
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsbpoError(f"{path}: writing failed ({error.strerror}); free space or choose another output.") from error


def _begins(path: Path, content: bytes) -> bool:
    """Whether a file is there, under this name alone, with the beginning of a content, as a killed writer leaves it."""
    try:
        about = path.lstat()
        return S_ISREG(about.st_mode) and about.st_nlink == 1 and content.startswith(path.read_bytes())
    except OSError:
        return False


def _protobufs(events: Events) -> Iterator[Event]:
    yield Event(wall_time=0.0, file_version="brain.Event:2")
    for step, values in sorted(events.items()):
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in sorted(values.items())])
        yield Event(wall_time=float(step), step=step, summary=summary)


def read_events(run: NamedRun, cycles: int | None = None) -> Events:
    """All scalars of a run.

    Raises:
        UsbpoError: a file is damaged or of another run.
    """
    on_disk = [cycle for cycle in run.cycles() if cycles is None or cycle <= cycles]
    events: Events = {}

    def add(step: int, scalars: Scalars) -> None:
        found = {tag: value for tag, value in scalars.items() if value is not None}
        if found:
            events.setdefault(step, {}).update(found)

    length = _cycle_steps(run, on_disk)
    for cycle, scalars in _episodes(run, on_disk):
        add(cycle * length, scalars)
    for cycle in on_disk:
        if run.has(layout.EVALUATION, cycle):
            add(cycle * length, _evaluation(run.path(layout.EVALUATION, cycle), run, cycle))
        for template, scalars_of in METRICS.items():
            if (metrics := _metrics(run, template, cycle)) is not None:
                add(cycle * length, _tried(scalars_of, metrics, run.path(template, cycle)))
        if (metrics := _metrics(run, layout.TRIGGER, cycle)) is not None:
            for step, scalars in _tried(_trigger, metrics, run.path(layout.TRIGGER, cycle)):
                add(step, scalars)
        if (metrics := _metrics(run, layout.POLICY_METRICS, cycle)) is not None:
            for step, scalars in _tried(_policy, metrics, run.path(layout.POLICY_METRICS, cycle), length):
                add((cycle - 1) * length + step, scalars)
    return events


def _cycle_steps(run: NamedRun, cycles: Iterable[int]) -> int:
    """The on-policy steps of one cycle, from a shard's parameters or from an evaluation; 0 for a run that has none yet.

    Raises:
        UsbpoError: a later cycle is there, but nothing that tells.
    """
    later = [cycle for cycle in cycles if cycle > 0]
    for cycle in later:
        shard, evaluation = run.path(layout.SHARD, cycle), run.path(layout.EVALUATION, cycle)
        if run.has(layout.SHARD, cycle):
            return len(transitions.read(shard)[1])
        if run.has(layout.EVALUATION, cycle):
            return int(evaluations.read(evaluation)[0].parameters[evaluations.STEPS]) // cycle
    if later:
        raise UsbpoError(
            f"{run.path(layout.SHARD, later[0])}: neither this shard nor any later one nor an evaluation is there to "
            "tell the steps of a cycle; put it back or make it anew."
        )
    return 0


# ---- what each file holds ------------------------------------------------------------------------------------------


def _episodes(run: NamedRun, cycles: Iterable[int]) -> Iterator[tuple[int, Scalars]]:
    """Returns and lengths of the episodes of the collecting policy, at the end of each cycle.

    An episode goes on from one cycle to the next, so the shards are read from the first on, up to one that is missing.
    """
    ended: deque[tuple[float, int]] = deque(maxlen=WINDOW)
    going: dict[int, tuple[float, int]] = {}
    for cycle in cycles:
        path = run.path(layout.SHARD, cycle)
        if not run.has(layout.SHARD, cycle):
            return
        header, rows = transitions.read(path)
        check_place(path, header.identity, run.task, run.method, run.seed, cycle)
        numbers, place = np.unique(rows.episodes, return_inverse=True)
        totals, lengths = np.bincount(place, rows.rewards), np.bincount(place)
        last = np.zeros(len(numbers), np.bool_)
        np.logical_or.at(last, place, rows.terminations | rows.truncations)
        for number, total, length, over in zip(numbers, totals, lengths, last, strict=True):
            before, steps = going.pop(int(number), (0.0, 0))
            so_far = before + float(total), steps + int(length)
            if over:
                ended.append(so_far)
            else:
                going[int(number)] = so_far
        if ended:
            mean_return, mean_length = np.mean(ended, axis=0)
            yield cycle, {"rollout/ep_rew_mean": float(mean_return), "rollout/ep_len_mean": float(mean_length)}


def _evaluation(path: Path, run: NamedRun, cycle: int) -> Scalars:
    header, episodes = evaluations.read(path)
    check_place(path, header.identity, run.task, run.method, run.seed, cycle)
    return {
        "eval/mean_reward": float(episodes.returns.mean()),
        "eval/std_reward": float(episodes.returns.std()),
        "eval/mean_ep_length": float(episodes.lengths.mean()),
    }


def _phase1(metrics: Mapping[str, Any]) -> Scalars:
    return {
        "model/holdout_mse": _mean_of_elites(metrics, "holdout_mse"),
        "model/holdout_mse_before": _mean_of_elites(metrics, "holdout_mse_before"),
        "model/epochs": float(metrics["epochs"]),
    }


def _phase2(metrics: Mapping[str, Any]) -> Scalars:
    distances: Scalars = {
        f"phase2/{term}_{when}": float(metrics[when][term])
        for when in ("before", "after")
        for term in ("shift", "bias", "sum")
    }
    return distances | {
        "phase2/holdout_mse": _mean_of_elites(metrics, "holdout_mse"),
        "phase2/steps": float(metrics["steps"]),
        "phase2/best_step": float(metrics["best_step"]),
    }


def _rollout(metrics: Mapping[str, Any]) -> Scalars:
    names = ("length", "transitions", "terminated", "not_finite", "reward_mean")
    return {f"model_rollout/{name}": _number(metrics[name]) for name in names}


def _trigger(metrics: Mapping[str, Any]) -> list[tuple[int, Scalars]]:
    """The checks of a cycle, each with its on-policy steps."""
    names = ("fired", "estimate", "threshold", "mean_error", "volume", "steps")
    return [
        (_step(check["on_policy_steps"]), {f"trigger/{name}": _number(check[name]) for name in names})
        for check in metrics["checks"]
    ]


def _theory(metrics: Mapping[str, Any]) -> Scalars:
    """Every number, by its place; a list's entries by their order from 0."""

    def walk(place: str, content: Any) -> Iterator[tuple[str, float]]:
        if isinstance(content, Mapping | list):
            entries = content.items() if isinstance(content, Mapping) else enumerate(content)
            for name, value in entries:
                yield from walk(f"{place}/{name}", value)
        elif isinstance(content, int | float) and not isinstance(content, bool):
            yield place, float(content)

    return dict(walk("theory", {name: value for name, value in metrics.items() if name not in IDENTITY}))


METRICS: dict[str, Callable[[Mapping[str, Any]], Scalars]] = {
    layout.PHASE1_METRICS: _phase1,
    layout.PHASE2_METRICS: _phase2,
    layout.ROLLOUT_METRICS: _rollout,
    layout.THEORY_METRICS: _theory,
}
"""What is read at the end of a cycle, where it is there."""


def _policy(metrics: Mapping[str, Any], cycle_steps: int) -> list[tuple[int, Scalars]]:
    """The lines of a policy's history, each with the step within the cycle that its update would follow."""
    history, updates = metrics["history"], int(metrics["updates"])
    names = {"ent_coef": "temperature"} | {
        name: name for name in ("entropy", "critic_loss", "actor_loss", "q_real", "q_model")
    }
    lines = []
    for line in history:
        done = line["update"] - history[0]["update"] + 1
        scalars = {f"train/{tag}": _number(line[name]) for tag, name in names.items()}
        scalars["train/n_updates"] = float(line["update"] + 1)
        scalars["train/target_entropy"] = _number(metrics.get("target_entropy"))
        lines.append((_step(-(-done * cycle_steps // updates)), scalars))
    return lines


def _mean_of_elites(metrics: Mapping[str, Any], name: str) -> float:
    elites = [float(metrics[name][elite]) for elite in metrics["elites"]]
    if not elites:
        raise ValueError("it has no elites")
    return float(np.mean(elites))


def _step(value: Any) -> int:
    """A number of steps, as an event can hold it."""
    if not 0 <= int(value) < 1 << 53:
        raise ValueError(f"a number of steps cannot be {value:.3g}")
    return int(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _metrics(run: NamedRun, template: str, cycle: int) -> Mapping[str, Any] | None:
    """A stage's metrics; None where the file is not there, or says that there was nothing to fine-tune yet."""
    path = run.path(template, cycle)
    if not run.has(template, cycle):
        return None
    content, _ = read_metrics(path)
    check_place(path, content, run.task, run.method, run.seed, cycle)
    return None if content.get("fine_tuned") is False else content


def _tried(scalars_of: Callable[..., Any], metrics: Mapping[str, Any], path: Path, *more: Any) -> Any:
    try:
        return scalars_of(metrics, *more)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UsbpoError(f"{path}: it cannot be used ({what}); delete the file and run again.") from error
