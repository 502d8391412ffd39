"""Makes every table and figure of docs/results again from the CSV files there: `python docs/results/remake.py`.

An entry is a folder with `evaluations.csv`. `usbpo compare` draws its returns and comparisons; the tables of its
README.md stand between two marks, `<!-- NAME WORDS -->` and `<!-- end -->`, and are one of `TABLES` each; what else
it has drawn, a script of its own draws. Then come the figure of all entries, and the tables of this folder's README.md.
"""

import csv
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import over_training

from usbpo.experiment.yaml_files import read_yaml
from usbpo.report import drawing
from usbpo.report.evaluations import read as read_evaluations
from usbpo.report.results import compare
from usbpo.report.scores import ALL_TASKS, curves
from usbpo.report.tabular import markdown

HERE = Path(__file__).resolve().parent
OF_RETURNS = (
    *("learning_curves.csv", "learning_curves.svg", "learning_curves.png", "comparison.csv", "comparison.md"),
    *("aggregate.csv", "steps_to_return.csv", "probability_of_improvement.csv", "final_returns.csv"),
)
"""What is kept of what `usbpo compare` writes"""
ALL = ("learning_curves.svg", "learning_curves.png", "aggregate.svg", "probability_of_improvement.csv")
"""Of all entries together"""
MARK = re.compile(r"(<!-- (\w+)( [^\n]*)? -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Mapping[str, str]
Lines = Iterator[str]


def entries(folder: Path) -> list[Path]:
    """The folders of the entries, sorted."""
    return sorted(path.parent for path in folder.glob("*/evaluations.csv"))


def remake(folder: Path) -> None:
    """Make all again in `folder`, a copy of this one or this one.

    Raises:
        UsbpoError: evaluations that cannot be used.
        ValueError: a page asks for a table that there is none of.
    """
    for entry in entries(folder):
        experiment = read_yaml(entry / "experiment.yaml")
        _compare([entry / "evaluations.csv"], entry, OF_RETURNS, entry.name, experiment.get("returns"))
        if (entry / "theory_bias.csv").exists():
            methods = dict.fromkeys(row["method"] for row in rows(entry / "evaluations.csv"))
            drawing.save(partial(over_training.draw, measured(entry), methods), entry / "theory")
        for script in sorted(entry.glob("*.py")):
            runpy.run_path(str(script), run_name="__main__")
        _fill(entry)
    _compare([entry / "evaluations.csv" for entry in entries(folder)], folder, ALL, "of all entries", None)
    _fill(folder)


def _compare(
    evaluations: Sequence[Path],
    output: Path,
    kept: Sequence[str],
    name: str,
    returns: Mapping[str, Sequence[float]] | None,
) -> None:
    with TemporaryDirectory() as drawn:
        compare(evaluations=evaluations, output=Path(drawn), experiment=name, returns=returns)
        for file in kept:
            shutil.copyfile(Path(drawn, file), output / file)


def _fill(folder: Path) -> None:
    """Put its tables into the page of a folder."""
    page = folder / "README.md"

    def filled(match: re.Match[str]) -> str:
        begin, name, words, end = match.groups()
        if name not in TABLES:
            raise ValueError(f"{page}: there is no table {name!r}, only {', '.join(TABLES)}.")
        return begin + "\n".join(TABLES[name](folder, *(words or "").split())) + "\n" + end

    page.write_text(MARK.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")


def rows(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def grouped(table: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of some columns, in order of appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in table:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def table(head: Sequence[str], body: Iterable[Sequence[object]], names: int = 2) -> Lines:
    """A table in Markdown, whose first `names` columns are names and the others numbers."""
    yield from markdown(head, [[str(cell) for cell in row] for row in body], names)


def number(value: float) -> str:
    """Three digits, and a comma between thousands."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def comparison(folder: Path) -> Lines:
    """Final return, area under the curve and steps to shares of the yardstick: the first table of comparison.md."""
    lines = (folder / "comparison.md").read_text(encoding="utf-8").splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("|"))
    for line in lines[first:]:
        if not line.startswith("|"):
            return
        yield line


Means = dict[tuple[str, ...], list[tuple[int, float]]]
"""By task, method and seed: the on-policy steps and the mean return of each evaluation"""


def means(folder: Path) -> Means:
    """The mean returns of an entry."""
    return {
        (curve.task, curve.method, str(seed)): list(zip(map(int, curve.steps), map(float, of_seed), strict=True))
        for curve in curves(read_evaluations([folder / "evaluations.csv"]))
        for seed, of_seed in zip(curve.seeds, curve.returns, strict=True)
    }


def named_returns(folder: Path) -> dict[tuple[str, ...], list[Row]]:
    """The rows of steps_to_return.csv whose return the experiment names, by task, return and method."""
    named = (row for row in rows(folder / "steps_to_return.csv") if not row["share"])
    return grouped(named, "task", "return", "method")


def reached(folder: Path) -> Lines:
    """On-policy steps at each seed's first evaluation at or above the returns that the experiment names."""
    evaluated, named = means(folder), named_returns(folder)
    seeds = sorted({row["seed"] for found in named.values() for row in found}, key=int)

    def cell(task: str, method: str, seed: str, steps: str | None) -> str:
        if steps is None:
            return "not run"
        best = max(value for _, value in evaluated[task, method, seed])
        return f"{int(steps):,}" if steps else f"never ({number(best)})"

    body = []
    for (task, wanted, method), found in named.items():
        steps = {row["seed"]: row["on_policy_steps"] for row in found}
        cells = [cell(task, method, seed, steps.get(seed)) for seed in seeds]
        body.append([task, number(float(wanted)), f"`{method}`", *cells])
    yield from table(["task", "return", "method", *(f"seed {seed}" for seed in seeds)], body, names=3)


def kept(folder: Path) -> Lines:
    """Of the evaluations after a seed has first reached the named return, how many are below it again."""
    evaluated, body = means(folder), []
    for (task, wanted, method), found in named_returns(folder).items():
        first = {row["seed"]: int(row["on_policy_steps"]) for row in found if row["on_policy_steps"]}
        after = [value for seed in first for steps, value in evaluated[task, method, seed] if steps > first[seed]]
        below = [value for value in after if value < float(wanted)]
        worst = number(min(below)) if below else "–"
        if first:
            body.append([task, number(float(wanted)), f"`{method}`", len(first), len(after), len(below), worst])
    head = ["task", "return", "method", "seeds that reached it", "evaluations from then on", "below it again", "worst"]
    yield from table(head, body, names=3)


def improvement(folder: Path) -> Lines:
    """How probably a run of USB-PO scores higher than one of another method, with 95 % intervals over seeds."""
    body = []
    found = rows(folder / "probability_of_improvement.csv")
    for (task, over), scores in grouped(found, "task", "over").items():
        by_score = {row["score"]: row for row in scores}
        cells = [_probability(by_score[score]) if score in by_score else "" for score in ("area", "final")]
        seeds = f"{scores[0]['seeds']} and {scores[0]['seeds_over']}"
        body.append(["all tasks, mean" if task == ALL_TASKS else task, f"`{over}`", seeds, *cells])
    head = ["task", "`usbpo` over", "seeds", "area under the curve", "final return"]
    yield from table(head, body, names=3)


def _probability(row: Row) -> str:
    value = f"{float(row['probability']):.2f}"
    return value + (f" [{float(row['low']):.2f}, {float(row['high']):.2f}]" if row["low"] else "")


def phase2(folder: Path) -> Lines:
    """What phase 2 did to the sum of shift and surrogate bias on hold-out rows, and how it ended."""
    body = []
    for (task, method), found in grouped(rows(folder / "model_shift_and_bias.csv"), "task", "method").items():
        ratios = [float(row["sum_after"]) / float(row["sum_before"]) for row in found if float(row["sum_before"]) > 0]
        ended = sum(row["stopped"] != "max_steps reached" for row in found)
        best = number(median(float(row["best_step"]) for row in found))
        middle, seeds = median_and_range(ratios), len({row["seed"] for row in found})
        body.append([task, f"`{method}`", seeds, len(found), middle, best, ended])
    head = ["task", "method", "seeds", "fine-tunings", "sum after ÷ before: median (range)", "best step, median"]
    yield from table([*head, "ended by themselves"], body)


def median_and_range(ratios: Sequence[float]) -> str:
    """The median, and the least and the largest in brackets."""
    return f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


FAILED = 1.5
"""A training that leaves more than so many times the error on hold-out rows counts as failed"""


def trainings(folder: Path) -> Lines:
    """What phase 1 did to the mean squared error on hold-out rows, means over members; the first model is left out."""
    body = []
    for (task, method), found in grouped(rows(folder / "holdout_error.csv"), "task", "method").items():
        ratios = {}
        for (seed,), of_seed in grouped(found, "seed").items():
            _, *later = grouped(of_seed, "cycle").values()
            ratios[seed] = [_mean(members, "holdout_mse") / _mean(members, "holdout_mse_before") for members in later]
        of_all = [ratio for of_seed in ratios.values() for ratio in of_seed]
        failed = [sum(ratio > FAILED for ratio in of_seed) for of_seed in ratios.values()]
        by_seed = ", ".join(map(str, failed))
        body.append([task, f"`{method}`", len(ratios), len(of_all), median_and_range(of_all), sum(failed), by_seed])
    head = ["task", "method", "seeds", "trainings", "hold-out error after ÷ before: median (range)"]
    yield from table([*head, f"more than {FAILED:g}", "of each seed"], body)


def _mean(table: Iterable[Row], column: str) -> float:
    return fmean(float(row[column]) for row in table)


TERMS = ("shift", "surrogate_bias", "surrogate_bias_fixed", "true_bias", "error", "spread", "bracket")


def measured(folder: Path) -> list[Row]:
    """The theory's quantities on rows of model rollouts: what theory_bias.csv and theory_bracket.csv say of a model."""
    place = ("task", "method", "seed", "cycle", "place", "phase")
    brackets = grouped(rows(folder / "theory_bracket.csv"), *place)
    return [
        {**brackets[tuple(row[name] for name in place)][0], **row}
        for row in rows(folder / "theory_bias.csv")
        if row["place"] == "rollout"
    ]


def theory(folder: Path, since: str = "0") -> Lines:
    """The theory's quantities: means over the evaluations from `since` steps on and over seeds."""
    wanted = [row for row in measured(folder) if int(row["on_policy_steps"]) >= int(since)]
    body = []
    for (task, method), found in grouped(wanted, "task", "method").items():
        phases = grouped(found, "phase")
        for phase in ("before", "after"):
            of_phase = phases.get((phase,), [])
            if not of_phase:
                continue
            named = f"`{method}`" + (f", {phase} phase 2" if len(phases) == 2 else "")
            cells = []
            for term in TERMS:
                values = [float(row[term]) for row in of_phase if row[term]]
                cells.append(number(fmean(values)) if values else "–")
            body.append([task, named, len({row["seed"] for row in of_phase}), *cells])
    head = ["task", "method", "seeds", "shift", "surrogate bias", "the same, to M* standing still", "true bias"]
    yield from table([*head, "of it, error of the mean", "of it, spread", "bracket of eq 1"], body)


def usage(folder: Path) -> Lines:
    """What runs took."""
    body = []
    for (task, method), found in grouped(rows(folder / "usage.csv"), "task", "method").items():
        runs = grouped(found, "seed")
        cpu = {seed: sum(float(row["cpu_seconds"]) for row in stages) for seed, stages in runs.items()}
        clock = [sum(float(row["clock_seconds"]) for row in stages) for stages in runs.values()]
        stages = {
            stage: sum(float(row["cpu_seconds"]) for row in of_stage) / sum(cpu.values())
            for (stage,), of_stage in grouped(found, "stage").items()
        }
        dearest = sorted(stages.items(), key=lambda item: -item[1])[:3]
        memory = max(int(row["memory_mib"]) for row in found)
        minutes = [f"{median(values) / 60:.1f}" for values in (cpu.values(), clock)]
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in dearest)
        body.append([task, f"`{method}`", len(runs), *minutes, f"{sum(cpu.values()) / 3600:.2f}", memory, shares])
    head = ["task", "method", "runs", "minutes of CPU a run", "minutes by the clock a run", "core-hours in all", "MiB"]
    yield from table([*head, "dearest stages, of the CPU"], body)


def trigger(folder: Path) -> Lines:
    """How often the model was trained."""
    body = []
    for (task, method), checks in grouped(rows(folder / "trigger_history.csv"), "task", "method").items():
        runs = grouped(checks, "seed")
        fired = [check for check in checks if check["fired"] == "true"]
        by_seed = grouped(fired, "seed")
        trainings = ", ".join(str(len(by_seed.get(seed, []))) for seed in runs)
        steps = median(max(int(check["on_policy_steps"]) for check in of_run) for of_run in runs.values())
        why = ", ".join(f"{reason}: {len(of)}" for (reason,), of in sorted(grouped(fired, "reason").items()))
        estimates = [float(check["estimate"]) for check in fired]
        exceeding = [estimate for estimate in estimates if estimate > float(checks[0]["threshold"])]
        least = number(min(exceeding)) if exceeding else "–"
        threshold = number(float(checks[0]["threshold"]))
        body.append([task, f"`{method}`", len(runs), f"{steps:,.0f}", threshold, trainings, why, least])
    head = ["task", "method", "runs", "steps", "threshold α", "trainings, by seed", "why"]
    yield from table([*head, "least estimate above α that fired"], body)


def loop(folder: Path, *names: str) -> Lines:
    """Lines of `benchmarks/lag.py`: the ranges of temperature, entropy and Q, and returns."""
    body = []
    for name in names:
        found = rows(folder / f"{name}.csv")
        largest = []
        for key in ("temperature", "q_real", "return"):
            value, step = max((float(row[key]), int(row["step"])) for row in found)
            largest.append(f"{number(value)} ({step:,})")
        entropies = [float(row["entropy"]) for row in found]
        means = []
        for first, last in ((250, 2_000), (2_250, 4_000), (4_250, 1_000_000)):
            returns = [float(row["return"]) for row in found if first <= int(row["step"]) <= last]
            means.append(number(fmean(returns)) if returns else "–")
        spread = f"{min(entropies):.2f} … {max(entropies):.2f}"
        until = f"{int(found[-1]['step']):,}"
        body.append([f"`{name}`", until, largest[0], spread, *largest[1:], *means])
    head = ["file", "until", "temperature, largest (at)", "entropy", "mean Q on real rows, largest (at)"]
    head += ["return, largest (at)", "mean return, 250 to 2,000", "2,250 to 4,000", "from then on"]
    yield from table(head, body, names=1)


def costs(folder: Path) -> Lines:
    """Of each entry: how many runs, and what they cost."""
    body = []
    for entry in entries(folder):
        runs = grouped(rows(entry / "evaluations.csv"), "task", "method", "seed")
        used = rows(entry / "usage.csv")
        hours = sum(float(row["cpu_seconds"]) for row in used) / 3600
        tasks = ", ".join(dict.fromkeys(task for task, _, _ in runs))
        steps = max(int(row["on_policy_steps"]) for row in rows(entry / "learning_curves.csv"))
        body.append([f"[{entry.name}]({entry.name}/README.md)", tasks, len(runs), f"{steps:,}", f"{hours:.1f}"])
    yield from table(["entry", "tasks", "runs", "longest, steps", "core-hours"], body)


TABLES: dict[str, Callable[..., Lines]] = {
    each.__name__: each
    for each in (comparison, reached, kept, improvement, trainings, phase2, theory, usage, trigger, loop, costs)
}
"""What a page can ask for, by the name in its mark"""


if __name__ == "__main__":
    remake(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
