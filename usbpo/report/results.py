"""The stage `results`: reads the runs of an experiment and leaves its tables and figures."""

from collections.abc import Sequence
from pathlib import Path

from usbpo.errors import UsbpoError
from usbpo.files import write_text
from usbpo.report import drawing, figures, tables, theory_figures
from usbpo.report.records import read_run
from usbpo.report.runs import RunFiles


def results(*, experiment: str, runs: Sequence[RunFiles], output: Path, root: Path = Path()) -> None:
    """Write every one of `runs.FILES` into the folder `output`.

    Methods take their colours, and all tables their order, from the order of `runs`. Equal input files give equal
    bytes. Everything is read before anything is written.

    Args:
        experiment: its name, for headings.
        runs: one entry for each task, method and seed.
        output: the folder of the results, for instance data/results/EXPERIMENT.
        root: the folder below which data/runs lies.

    Raises:
        UsbpoError: no runs, a run named twice, seeds of one method of unequal lengths, an input file that is missing,
            damaged or of another run, or an output folder that cannot be written.
    """
    _check(runs)
    read = [read_run(run, root) for run in runs]

    returns = tables.final_returns(read)
    write_text(output / "evaluations.csv", tables.evaluations(read).csv())
    write_text(output / "final_returns.csv", tables.final_returns_table(returns).csv())
    write_text(output / "final_returns.md", tables.final_returns_markdown(experiment, returns))
    write_text(output / "model_shift_and_bias.csv", tables.model_shift_and_bias(read).csv())
    write_text(output / "holdout_error.csv", tables.holdout_error(read).csv())
    write_text(output / "policy_diagnostics.csv", tables.policy_diagnostics(read).csv())

    drawing.save(lambda: figures.learning_curves(read), output / "learning_curves")
    drawing.save(lambda: figures.model_shift_and_bias(read), output / "model_shift_and_bias")
    drawing.save(lambda: figures.holdout_error(read), output / "holdout_error")
    drawing.save(lambda: figures.policy_diagnostics(read), output / "policy_diagnostics")
    theory_figures.save(read, output)


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
        if any(getattr(run, key) != getattr(other, key) for key in ("cycles", "cycle_steps", "model_every", "phase2")):
            raise UsbpoError(
                f"{run} and {other} are of unequal lengths or schedules; seeds of one method must be alike in both."
            )
