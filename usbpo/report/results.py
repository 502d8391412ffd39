"""What is left of runs: the stage `results`, and the part of it that evaluations alone are enough for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from usbpo.artifacts.files import write_json, write_text
from usbpo.errors import UsbpoError
from usbpo.experiment.run_files import RunFiles
from usbpo.report import comparison, curves, diagnostics, drawing, scores, tables, theory_figures, trigger_history
from usbpo.report.evaluations import read as read_evaluations
from usbpo.report.records import Run, read_run


def results(
    *,
    experiment: str,
    runs: Sequence[RunFiles],
    output: Path,
    returns: Mapping[str, Sequence[float]] | None = None,
    root: Path = Path(),
) -> None:
    """Write every one of `runs.FILES` into the folder `output`.

    Methods take their colours, and all tables their order, from the order of `runs`. Equal input files give equal
    bytes. Everything is read before anything is written.

    Args:
        experiment: its name, for headings.
        runs: one entry for each task, method and seed.
        output: the folder of the results, for instance data/results/EXPERIMENT.
        returns: for a task the returns whose first reaching is timed beside the shares of its yardstick.
        root: the folder below which data/runs lies.

    Raises:
        UsbpoError: no runs, a run named twice, seeds of one method of unequal lengths or evaluations, returns of a task
            without runs, an input file that is missing, damaged or of another run, or an output folder that cannot be
            written.
    """
    _check(runs)
    _check_returns(runs, returns)
    read = [read_run(run, root) for run in runs]
    _write_evaluated(experiment, read, output, returns)
    for name, table in {
        "evaluations": tables.evaluations(read),
        "model_shift_and_bias": tables.model_shift_and_bias(read),
        "holdout_error": tables.holdout_error(read),
        "policy_diagnostics": tables.policy_diagnostics(read),
        "trigger_history": trigger_history.table(read),
    }.items():
        write_text(output / f"{name}.csv", table.csv())
    drawing.save(lambda: diagnostics.model_shift_and_bias(read), output / "model_shift_and_bias")
    drawing.save(lambda: diagnostics.holdout_error(read), output / "holdout_error")
    drawing.save(lambda: diagnostics.policy_diagnostics(read), output / "policy_diagnostics")
    drawing.save(lambda: trigger_history.figure(read), output / "trigger_history")
    theory_figures.save(read, output)


def compare(
    *,
    evaluations: Sequence[Path],
    output: Path,
    experiment: str = "of files",
    returns: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write the tables and figures that returns are enough for, with the bytes that `results` gives them.

    Args:
        evaluations: files `evaluations.csv` of one experiment or of several, no run in two of them.
        output: a folder.
        experiment, returns: as in `results`.

    Raises:
        UsbpoError: a file cannot be used, seeds of one method are of unequal lengths or evaluations, or as in
            `results`.
    """
    runs = read_evaluations(evaluations)
    _check([run.files for run in runs])
    _check_returns([run.files for run in runs], returns)
    _write_evaluated(experiment, runs, output, returns)


def _write_evaluated(
    experiment: str, read: Sequence[Run], output: Path, returns: Mapping[str, Sequence[float]] | None
) -> None:
    final = tables.final_returns(read)
    evaluated = scores.curves(read)
    compared = scores.by_task(evaluated, returns)
    pooled = scores.pooled(compared)
    improvements = list(scores.improvements(compared))
    for name, table in {
        "final_returns": tables.final_returns_table(final),
        "learning_curves": tables.learning_curves(evaluated),
        "beside_published": tables.beside_published(evaluated),
        "comparison": tables.comparison(compared),
        "steps_to_return": tables.steps_to_return(compared),
        "aggregate": tables.aggregate(compared, pooled),
        "probability_of_improvement": tables.probability_of_improvement(improvements),
    }.items():
        write_text(output / f"{name}.csv", table.csv())
    for name, page in {
        "final_returns": tables.final_returns_page(experiment, final),
        "comparison": tables.comparison_page(experiment, compared),
    }.items():
        write_text(output / f"{name}.md", page.markdown())
        write_text(output / f"{name}.html", page.html())
    write_json(output / "metrics.json", scores.metrics(compared))
    drawing.save(lambda: curves.learning_curves(evaluated), output / "learning_curves")
    drawing.save(lambda: curves.beside_published(evaluated), output / "beside_published")
    drawing.save(lambda: comparison.aggregate(compared, pooled), output / "aggregate")
    drawing.save(
        lambda: comparison.probability_of_improvement(compared, improvements), output / "probability_of_improvement"
    )


def _check_returns(runs: Sequence[RunFiles], returns: Mapping[str, Sequence[float]] | None) -> None:
    for task in returns or {}:
        if all(run.task != task for run in runs):
            raise UsbpoError(f"returns are given for the task {task}, but none of the runs is of it; leave them out.")


def _check(runs: Sequence[RunFiles]) -> None:
    if not runs:
        raise UsbpoError("no runs are given; name at least one.")
    seen: dict[str, RunFiles] = {}
    first: dict[tuple[str, str], RunFiles] = {}
    for run in runs:
        if run.name in seen:
            raise UsbpoError(f"the run {run.name} is given twice; name it once.")
        seen[run.name] = run
        other = first.setdefault((run.task, run.method), run)
        if run != replace(other, seed=run.seed):
            raise UsbpoError(
                f"{run} and {other} are of unequal lengths or schedules; seeds of one method must be alike in both."
            )
