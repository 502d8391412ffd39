"""The tables of an experiment: final returns, comparisons, and the numbers behind every figure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from numpy.typing import NDArray

from usbpo.report.evaluations import COLUMNS as EVALUATION_COLUMNS
from usbpo.report.published import SHARES, published, related
from usbpo.report.records import Run, grouped
from usbpo.report.scores import ALL_TASKS, BASE, SCORES, Curve, Improvement, Pooled, Scores, TaskScores
from usbpo.report.statistics import Estimate, median_with_never
from usbpo.report.tabular import Cell, Page, Part, Table


@dataclass(frozen=True)
class FinalReturn:
    """The last evaluation of all seeds of one method on one task; a seed counts by the mean of its episodes."""

    task: str
    method: str
    seeds: int
    episodes: int
    on_policy_steps: int
    mean: float
    std: float | None
    """Sample standard deviation over seeds (n − 1); None for one seed."""
    min: float
    max: float


def final_returns(runs: Sequence[Run]) -> list[FinalReturn]:
    """The last evaluation of every task and method."""
    rows = []
    for (task, method), seeds in grouped(runs).items():
        last = [run.evaluations[-1] for run in seeds]
        means = np.array([evaluation.returns.mean() for evaluation in last])
        rows.append(
            FinalReturn(
                task=task,
                method=method,
                seeds=len(seeds),
                episodes=len(last[0].returns),
                on_policy_steps=seeds[0].files.steps(last[0].cycle),
                mean=float(means.mean()),
                std=float(means.std(ddof=1)) if len(means) > 1 else None,
                min=float(means.min()),
                max=float(means.max()),
            )
        )
    return rows


def final_returns_table(rows: Iterable[FinalReturn]) -> Table:
    """`final_returns.csv`."""
    columns = ("task", "method", "seeds", "on_policy_steps", "mean", "std", "min", "max")
    return Table(columns, [tuple(getattr(row, name) for name in columns) for row in rows])


def final_returns_page(experiment: str, rows: Sequence[FinalReturn]) -> Page:
    """`final_returns.md` and `.html`: the same to be read, rounded."""
    episodes = sorted({row.episodes for row in rows})
    return Page(
        f"Final returns of the experiment {experiment}",
        ("task", "method", "seeds", "on-policy steps", "mean", "std", "min", "max"),
        [
            [row.task, row.method, str(row.seeds), f"{row.on_policy_steps:,}"]
            + [_rounded(value) for value in (row.mean, row.std, row.min, row.max)]
            for row in rows
        ],
        [],
        f"Return of the deterministic policy in the last evaluation, {' or '.join(map(str, episodes))} episodes for "
        "each seed. A seed counts by the mean of its episodes; mean, std (sample, n − 1), min and max are over seeds. "
        "A dash: one seed has no spread over seeds.",
    )


def _rounded(value: float | None) -> str:
    """No more decimals than a reader of returns looks at, thousands set off, a dash for what is not there."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def evaluations(runs: Iterable[Run]) -> Table:
    """`evaluations.csv`: one row for every episode of every evaluation."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for evaluation in run.evaluations:
            for episode, (seed, total, length) in enumerate(
                zip(evaluation.seeds, evaluation.returns, evaluation.lengths, strict=True)
            ):
                rows.append((*_place(run, evaluation.cycle), episode, int(seed), float(total), int(length)))
    return Table(EVALUATION_COLUMNS, rows)


def learning_curves(curves: Iterable[Curve]) -> Table:
    """`learning_curves.csv`: one row for every point of every curve, with what the band beside it spans."""
    columns = ("task", "method", "on_policy_steps", "seeds", "iqm", "low", "high", "band")
    rows: list[tuple[Cell, ...]] = []
    for curve in curves:
        single = len(curve.seeds) == 1
        low, high = (curve.worst, curve.best) if single else (curve.estimate.low, curve.estimate.high)
        for steps, value, *ends in zip(curve.steps, curve.estimate.value, low, high, strict=True):
            where = (curve.task, curve.method, int(steps), len(curve.seeds))
            rows.append((*where, float(value), *map(float, ends), "episodes" if single else "seeds"))
    return Table(columns, rows)


def beside_published(curves: Sequence[Curve]) -> Table:
    """`beside_published.csv`: our interquartile means and the published ones; `published_task` if its name differs."""
    columns = ("task", "algorithm", "source", "published_task", "seeds", "env_steps", "return")
    rows: list[tuple[Cell, ...]] = []
    for task in dict.fromkeys(curve.task for curve in curves):
        for curve in curves:
            if curve.task == task:
                where = (task, curve.method, "this experiment", None, len(curve.seeds))
                points = zip(curve.steps, curve.estimate.value, strict=True)
                rows += [(*where, int(steps), float(value)) for steps, value in points]
        for other in published(task) + related(task):
            name = None if other.task == task else other.task
            whence = (task, other.algorithm, other.source, name, other.seeds)
            points = zip(other.steps, other.returns, strict=True)
            rows += [(*whence, int(steps), float(value)) for steps, value in points]
    return Table(columns, rows)


def comparison(tasks: Sequence[TaskScores]) -> Table:
    """`comparison.csv`: final return, area under the curve and steps to returns, for every task and method.

    The returns that the experiment names are numbered from 1, the lowest of each task first.
    """
    names = ("return", "seeds_there", "steps")
    shares = [f"{name}_{share:.0%}".rstrip("%") for share in SHARES for name in names]
    most = max(len(task.returns) for task in tasks)
    named = [f"{name}_named_{number}" for number in range(1, most + 1) for name in names]
    estimates = [f"{score}_{part}" for score in SCORES for part in ("iqm", "low", "high")]
    columns = ("task", "method", "seeds", "on_policy_steps", *estimates, "yardstick", *shares, *named)
    rows: list[tuple[Cell, ...]] = []
    for task in tasks:
        for method, scores in task.methods.items():
            cells: list[Cell] = [task.task, method, len(scores.curve.seeds), scores.steps]
            for score in SCORES:
                cells += _numbers(scores.estimates[score])
            cells.append(task.yardstick.source if task.yardstick else None)
            for _, level in task.levels:
                cells += _reaching(scores, level)
            cells += [None] * (len(columns) - len(named) - len(cells))
            for level in task.returns:
                cells += _reaching(scores, level)
            rows.append((*cells, *[None] * (len(columns) - len(cells))))
    return Table(columns, rows)


def _reaching(scores: Scores, level: float) -> list[Cell]:
    """A return, how many seeds got there, and the median of their steps."""
    steps = scores.steps_to(level)
    return [level, int(np.isfinite(steps).sum()), _whole(median_with_never(steps))]


def comparison_page(experiment: str, tasks: Sequence[TaskScores]) -> Page:
    """`comparison.md` and `.html`: the same to be read, rounded."""
    rows = []
    for task in tasks:
        for method, scores in task.methods.items():
            cells = [task.task, method, str(len(scores.curve.seeds)), f"{scores.steps:,}"]
            cells += [_interval(scores.estimates[score]) for score in SCORES]
            cells += [_reached(scores.steps_to(level)) for _, level in task.levels] or ["–"] * len(SHARES)
            rows.append(cells)
    return Page(
        f"The methods of the experiment {experiment} compared",
        (
            *("task", "method", "seeds", "on-policy steps", "final return", "area under the curve"),
            *(f"steps to {100 * share:g}\N{NO-BREAK SPACE}%" for share in SHARES),
        ),
        rows,
        [f"{task.task}, 100 %: {_yardstick(task)}." for task in tasks],
        "Final return and area under the curve (the mean height of the curve, in units of return): interquartile mean "
        "over seeds, in brackets its 95 % bootstrap interval where there are several; a seed counts by the mean of its "
        "evaluation episodes. All methods of a task are compared up to the last step that all have reached. Steps: "
        "median over seeds of the first evaluation at or above the return, where a seed that never got there is later "
        "than all others; in brackets how many got there, if not all; a dash: fewer than the median needs.",
        _named_returns(tasks),
    )


def _named_returns(tasks: Sequence[TaskScores]) -> tuple[Part, ...]:
    """The steps to the returns that the experiment names, a row a return, a column a method; none if it names none."""
    methods = list(dict.fromkeys(method for task in tasks for method in task.methods))
    rows = [
        [task.task, (f"{level:,.0f}" if level.is_integer() else f"{level:,}").replace("-", "−")]
        + [_reached(task.methods[method].steps_to(level)) if method in task.methods else "" for method in methods]
        for task in tasks
        for level in task.returns
    ]
    return (Part("Steps to returns that the experiment names", ("task", "return", *methods), rows),) if rows else ()


def _reached(steps: NDArray[np.float64]) -> str:
    """The median of the steps (seeds,) to a return, and how many seeds got there if not all."""
    there, median = int(np.isfinite(steps).sum()), _whole(median_with_never(steps))
    return ("–" if median is None else f"{median:,}") + (f" ({there}/{len(steps)})" if there < len(steps) else "")


def _yardstick(task: TaskScores) -> str:
    stick = task.yardstick
    if stick is None:
        return "nothing learned yet"
    low = f"; {_rounded(stick.low)} is 0 %" if stick.low else ""
    return f"{_rounded(stick.high)}{low} ({stick.source})"


def steps_to_return(tasks: Iterable[TaskScores]) -> Table:
    """`steps_to_return.csv`: one row for every seed and return.

    Empty steps mean never, an empty share a return that the experiment names.
    """
    columns = ("task", "method", "seed", "share", "return", "on_policy_steps")
    rows: list[tuple[Cell, ...]] = [
        (task.task, method, seed, share, level, _whole(steps))
        for task in tasks
        for method, scores in task.methods.items()
        for share, level in (*task.levels, *((None, level) for level in task.returns))
        for seed, steps in zip(scores.curve.seeds, scores.steps_to(level), strict=True)
    ]
    return Table(columns, rows)


def aggregate(tasks: Iterable[TaskScores], pooled: Iterable[Pooled]) -> Table:
    """`aggregate.csv`: one row for every interval; over all tasks in shares of the tasks' yardsticks."""
    columns = ("task", "method", "score", "seeds", "iqm", "low", "high", "unit")
    rows: list[tuple[Cell, ...]] = [
        (task.task, method, score, len(scores.curve.seeds), *_numbers(scores.estimates[score]), "return")
        for task in tasks
        for method, scores in task.methods.items()
        for score in SCORES
    ]
    rows += [(ALL_TASKS, each.method, each.score, each.seeds, *_numbers(each.estimate), "share") for each in pooled]
    return Table(columns, rows)


def probability_of_improvement(improvements: Iterable[Improvement]) -> Table:
    """`probability_of_improvement.csv`: one row for every interval."""
    columns = ("task", "method", "over", "score", "seeds", "seeds_over", "probability", "low", "high")
    rows: list[tuple[Cell, ...]] = [
        (each.task, BASE, each.other, each.score, each.seeds, each.other_seeds, *_numbers(each.estimate))
        for each in improvements
    ]
    return Table(columns, rows)


def _numbers(estimate: Estimate) -> list[Cell]:
    """Statistic and interval of an estimate of no dimension, as cells."""
    ends = [float(value) for value in (estimate.value, estimate.low, estimate.high)]
    return [None if isnan(value) else value for value in ends]


def _interval(estimate: Estimate) -> str:
    value, low, high = (
        None if isnan(end) else _rounded(float(end)) for end in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}" if low is None else f"{value} [{low}, {high}]"


def _whole(steps: float) -> int | None:
    return None if isnan(steps) else round(steps)


def model_shift_and_bias(runs: Iterable[Run]) -> Table:
    """`model_shift_and_bias.csv`: one row for every phase 2."""
    columns = (
        *("task", "method", "seed", "cycle", "on_policy_steps"),
        *("shift_before", "bias_before", "sum_before", "shift_after", "bias_after", "sum_after"),
        *("steps", "best_step", "stopped"),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            *_place(run, metrics.cycle),
            *(metrics.before.shift, metrics.before.bias, metrics.before.sum),
            *(metrics.after.shift, metrics.after.bias, metrics.after.sum),
            *(metrics.steps, metrics.best_step, metrics.stopped),
        )
        for run in runs
        for metrics in run.phase2
    ]
    return Table(columns, rows)


def holdout_error(runs: Iterable[Run]) -> Table:
    """`holdout_error.csv`: one row for every member of every phase 1."""
    columns = (
        *("task", "method", "seed", "cycle", "on_policy_steps"),
        *("member", "elite", "holdout_mse_before", "holdout_mse"),
    )
    rows: list[tuple[Cell, ...]] = [
        (*_place(run, metrics.cycle), member, member in metrics.elites, before, after)
        for run in runs
        for metrics in run.phase1
        for member, (before, after) in enumerate(zip(metrics.holdout_mse_before, metrics.holdout_mse, strict=True))
    ]
    return Table(columns, rows)


def policy_diagnostics(runs: Iterable[Run]) -> Table:
    """`policy_diagnostics.csv`: one row for every line of a policy's history; updates count from the run's start."""
    quantities = ("temperature", "entropy", "critic_loss", "actor_loss", "q_real", "q_model")
    columns = ("task", "method", "seed", "cycle", "on_policy_steps", "update", *quantities, "target_entropy")
    rows: list[tuple[Cell, ...]] = [
        (
            *_place(run, metrics.cycle),
            line.update,
            *(getattr(line, name) for name in quantities),
            metrics.target_entropy,
        )
        for run in runs
        for metrics in run.policy
        for line in metrics.history
    ]
    return Table(columns, rows)


def _place(run: Run, cycle: int) -> tuple[str, str, int, int, int]:
    return run.files.task, run.files.method, run.files.seed, cycle, run.files.steps(cycle)
