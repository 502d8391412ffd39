"""What a stage is handed: D_env and D_model complete and in order, and everything of the cycle that it must be of."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from usbpo.artifacts import transitions
from usbpo.artifacts.blocks import model_cycles
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.errors import UsbpoError


def shards_in(path: Path, header: Header) -> range:
    """The cycles whose real transitions a shard or block holds.

    Raises:
        UsbpoError: its header does not say so.
    """
    count = header.parameters.get("shards", 1)
    if type(count) is not int or not 1 <= count <= header.cycle + 1:
        raise UsbpoError(f"{path}: its header does not say which cycles it holds; delete it and run again.")
    return range(header.cycle + 1 - count, header.cycle + 1)


def begin(
    kind: str,
    data: Sequence[Path],
    *,
    seed: int,
    cycle: int,
    parameters: Mapping[str, Any],
    until: int | None = None,
    task: str | None = None,
    method: str | None = None,
) -> tuple[Header, Transitions]:
    """Read D_env, and begin the header of what is made from it.

    Args:
        data: blocks and shards, oldest first.
        until: last cycle of D_env; default: `cycle`.
        task, method: of the run; default: those of D_env.

    Raises:
        UsbpoError: a file is missing, damaged or of another run, or they are not all cycles in order and each once.
    """
    headers, rows = transitions.read_all(data)
    header = Header(kind, task or headers[-1].task, seed, cycle, parameters, method or headers[-1].method)
    following, last = 0, cycle if until is None else until
    for path, found in zip(data, headers, strict=True):
        shards = shards_in(path, found)
        if shards.start != following or found.cycle > last:
            wanted = f"cycle {following} is to follow" if following <= last else f"D_env ends with cycle {last}"
            raise UsbpoError(
                f"{path}: it holds {_named(shards)} of D_env, but {wanted}; give all files once and in order."
            )
        header.takes("data", path, found)
        following = found.cycle + 1
    if following <= last:
        raise UsbpoError(
            f"{data[-1]}: D_env ends with cycle {following - 1}, but must hold cycles 0 to {last}; give all files."
        )
    return header, rows


def read_d_model(
    header: Header, paths: Sequence[Path], end: int, every: int, updates: int | None, *, within: bool = False
) -> Transitions:
    """Read D_model for what `header` begins.

    Args:
        paths: the model rollouts, oldest first.
        end: the cycle at whose end this is D_model.
        every: cycles from one model update to the next.
        updates: of how many model updates it is; None for as many as there are files.
        within: whether rollouts made earlier in the cycle of `header` may follow.

    Raises:
        UsbpoError: a file is missing, damaged, of another run, or not of the cycle that it must be of.
    """
    headers, rows = transitions.read_rollouts(paths, updates)
    found = [each.cycle for each in headers]
    earlier = [cycle for cycle in found if cycle < header.cycle] if within else found
    expected = model_cycles(end, every, len(earlier) if updates is None else updates)
    if earlier + [header.cycle] * (len(found) - len(earlier)) != found or earlier != expected:
        wrong = next((p for p, one, other in zip(paths, found, expected, strict=False) if one != other), paths[-1])
        raise UsbpoError(
            f"{wrong}: D_model of cycle {header.cycle} is the rollouts of {_named(expected)}, but those of "
            f"{_named(found)} are given; give these files, each once and in order."
        )
    for path, each in zip(paths, headers, strict=True):
        header.takes("rollouts", path, each)
    return rows


def require_d_model(header: Header, paths: Sequence[Path], end: int, every: int, updates: int | None) -> None:
    """Check that rollouts are given if, and only if, there are any.

    Raises:
        UsbpoError: they are missing, or are too many.
    """
    expected = model_cycles(end, every, end if updates is None else updates)
    if expected and not paths:
        raise UsbpoError(
            f"cycle {header.cycle} of {header.task} needs D_model, the rollouts of {_named(expected)}, but none are "
            "given; add --rollouts FILES, or --model-every 0 where there is no model."
        )
    if paths and not expected:
        raise UsbpoError(f"{paths[0]}: there is no D_model yet where cycle {header.cycle} is made; leave it out.")


def previous_cycles(cycle: int, every: int, check: int | None = None) -> list[int]:
    """The cycles of which M1 may be where `cycle` trains the model; none where that is the first model.

    Args:
        check: number of the check in whose training this is, where a trigger decides within the cycle.
    """
    return [*([cycle - every] if cycle > every else []), *([cycle] if check is not None else [])]


def require_previous(option: str, path: Path | None, cycle: int, first: int) -> None:
    """Check that what a cycle goes on from is given from the cycle `first` on.

    Raises:
        UsbpoError: it is missing.
    """
    if path is None and cycle >= first:
        raise UsbpoError(f"cycle {cycle} goes on from what stands before it, but none is given; add {option} FILE.")


def _named(cycles: Collection[int]) -> str:
    """Cycles in words."""
    if not cycles:
        return "no cycle"
    return f"cycle{'s' if len(cycles) > 1 else ''} {', '.join(map(str, cycles))}"
