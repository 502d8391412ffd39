"""What phase 2 does to the reward and what to the next state, and how much of the Wasserstein distance is the reward's.

    python benchmarks/reward_and_state.py measure TASK/METHOD/seed-N ... --folder DIR --output measured.csv
    python benchmarks/reward_and_state.py table measured.csv

Shift and bias are distances in raw units of (reward, s'). Where the reward spreads more than all of the state, they are
distances of rewards, whatever becomes of the state. `measure` asks the models of recorded runs before phase 2
(`model-mle.safetensors`) and after it (`model.safetensors`) about the hold-out rows of their cycle, in all cycles of
which both are there (`snakemake runs`, or `artifacts: {keep: all}`). `table` prints geometric means of after ÷ before.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean

import torch
from torch import Tensor

from usbpo.artifacts import layout, transitions
from usbpo.artifacts.files import write_text
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.loading import load_run
from usbpo.experiment.named import NamedRun, named_runs
from usbpo.experiment.run import Run
from usbpo.model.ensemble import Ensemble, gaussian, load, standardise
from usbpo.model.passes import Forward
from usbpo.report.tabular import Table, markdown
from usbpo.stages.model_data import ModelData, model_data, split_holdout

PARTS = {"reward": slice(0, 1), "state": slice(1, None)}
QUANTITIES = ("error", "spread", "disagreement")
PLACE = ("task", "method", "seed", "cycle")
COLUMNS = (
    *PLACE,
    *(f"{part}_{quantity}_{when}" for part in PARTS for quantity in QUANTITIES for when in ("before", "after")),
    *("reward_share_before", "reward_share_after"),
)


@torch.no_grad()
def measured(ensemble: Ensemble, rows: ModelData) -> dict[str, float]:
    """What a model says of reward and state.

    Of each part, in raw units, the median over rows and members of `error`, the distance of the mean from the outcome,
    of `spread`, the norm of the standard deviation, and of `disagreement`, the norm of the standard deviation of the
    means over members. `reward_share` as that function.
    """
    mean, std = gaussian(ensemble.params, Forward(ensemble.params).all_members(standardise(ensemble, rows.inputs)))
    found = {}
    for part, columns in PARTS.items():
        error = (mean - rows.targets)[..., columns]
        disagreement = mean[..., columns].std(0)
        for quantity, values in zip(QUANTITIES, (error, std[..., columns], disagreement), strict=True):
            found[f"{part}_{quantity}"] = float(values.norm(dim=-1).median())
    return found | {"reward_share": reward_share(mean, std)}


def reward_share(mean: Tensor, std: Tensor) -> float:
    """The reward's share of W2² between two members, the mean over rows and pairs of different members.

    Args:
        mean, std: (members, rows, obs_dim + 1), the reward first.
    """
    squares = (mean[:, None] - mean).square() + (std[:, None] - std).square()
    pairs = ~torch.eye(len(mean), dtype=torch.bool)
    return float((squares[..., 0] / squares.sum(-1))[pairs].nanmean())


def fine_tunings(run: NamedRun) -> Iterator[dict[str, str | int | float]]:
    """A line for each cycle of a run whose models before and after phase 2 are there."""
    planned = Run(run.task, run.method, run.seed, load_run(run.task, run.method, (run.root / "config", *FOLDERS[1:])))
    keys = planned.config.phase1
    for cycle in run.cycles():
        if not (run.has(layout.MODEL_MLE, cycle) and run.has(layout.MODEL, cycle)):
            continue
        _, real = transitions.read_all([run.root / path for path in planned.real_data(cycle)])
        _, holdout = split_holdout(len(real), run.seed, cycle, keys.holdout_ratio, keys.holdout_limit)
        rows = model_data(real).rows(holdout)
        line: dict[str, str | int | float] = {"task": run.task, "method": run.method, "seed": run.seed, "cycle": cycle}
        for when, template in (("before", layout.MODEL_MLE), ("after", layout.MODEL)):
            ensemble = load(run.path(template, cycle))[1]
            line |= {f"{name}_{when}": value for name, value in measured(ensemble, rows).items()}
        yield line


def table(lines: Iterable[dict[str, str]]) -> str:
    """By task and method the reward's share, and after ÷ before: geometric means, lowest and highest in brackets."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line in lines:
        groups.setdefault((line["task"], line["method"]), []).append(line)
    body = []
    for (task, method), found in groups.items():
        ratios = [_ratio(found, f"{part}_{quantity}") for quantity in QUANTITIES for part in PARTS]
        share = fmean(float(line["reward_share_before"]) for line in found)
        body.append([task, f"`{method}`", str(len(found)), f"{share:.0%}", *ratios])
    head = ["task", "method", "fine-tunings", "reward's share of W2²"]
    head += [f"{quantity} of {part}" for quantity in QUANTITIES for part in PARTS]
    return "\n".join(markdown(head, body, 2)) + "\n"


def _ratio(lines: Sequence[dict[str, str]], name: str) -> str:
    ratios = [float(line[f"{name}_after"]) / float(line[f"{name}_before"]) for line in lines]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


def main() -> None:
    """Measure runs, or print the table of what has been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("measure")
    command.add_argument("runs", nargs="+", help="TASK/METHOD/seed-N, TASK/METHOD or TASK")
    command.add_argument("--folder", type=Path, default=Path(), help="folder that holds data/ and config/")
    command.add_argument("--output", type=Path, required=True, help="CSV file")
    command = commands.add_parser("table")
    command.add_argument("file", type=Path, help="CSV file")
    command.add_argument("--first", type=int, default=0, help="first cycle that counts")
    command.add_argument("--last", type=int, default=10**9, help="last cycle that counts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "table":
        with open(given.file, encoding="utf-8", newline="") as file:
            lines = [line for line in csv.DictReader(file) if given.first <= int(line["cycle"]) <= given.last]
        sys.stdout.write(table(lines))
        return
    found = [line for run in named_runs(given.runs, given.folder) for line in fine_tunings(run)]
    write_text(given.output, Table(COLUMNS, [tuple(line[name] for name in COLUMNS) for line in found]).csv())


if __name__ == "__main__":
    main()
