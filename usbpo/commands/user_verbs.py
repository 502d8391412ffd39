"""The user's verbs: what each takes, and whom it asks. Nothing heavy is imported before its verb is chosen."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from usbpo.commands.exchange import DataFolder, EnvironmentArguments, EnvironmentId
from usbpo.errors import one_line
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.schema import SCHEMAS, json_schema, keys_table

if TYPE_CHECKING:
    from rich.console import Console

SomeRuns = Annotated[
    list[str] | None,
    typer.Argument(
        help="TASK/METHOD/seed-N, a folder of runs, or data/results/EXPERIMENT; without it every run.",
        show_default=False,
    ),
]


def terminal(width: int = 120) -> "Console":
    """The user's terminal, or a pipe or file as one of `width` columns, so that nothing in it is cut short."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def status(folder: Annotated[Path, typer.Argument(help="Folder that holds data/.", readable=False)] = Path()) -> None:
    """Show how far every run on disk is, during a run or after it."""
    from usbpo.monitor.table import print_status

    print_status(folder, terminal())


def usage(
    runs: SomeRuns = None,
    output: Annotated[
        Path | None, typer.Option(help="CSV file with a line for each stage of each run.", readable=False)
    ] = None,
    folder: DataFolder = Path(),
) -> None:
    """Tell what runs have taken: time by the clock and of CPU, memory, and which stages took it."""
    from usbpo.experiment.named import named_runs
    from usbpo.monitor.usage import print_usage

    print_usage(named_runs(runs or [], folder), output, terminal())


def inspect(
    files: Annotated[list[Path], typer.Argument(help="Artifacts: .h5, .safetensors or .json.", readable=False)],
) -> None:
    """Tell what an artifact is: kind, shapes, ranges, versions, configuration, seed, cycle."""
    from usbpo.artifacts.inspection import print_artifact

    for path in files:
        print_artifact(path, terminal(160))


def verify(
    what: Annotated[
        str, typer.Argument(help="An artifact; TASK/METHOD/seed-N or a folder of runs; an experiment's file or name.")
    ],
    folder: DataFolder = Path(),
) -> None:
    """Tell whether artifacts are whole, belong where they lie, and were made from what lies beside them."""
    from usbpo.commands.verify import lines
    from usbpo.commands.verify import verify as look_at

    report = look_at(what, folder)
    for line in lines(report, what):
        print(one_line(line))
    if report.findings:
        raise typer.Exit(1)


def results(
    experiment: Annotated[str, typer.Option(help="Name of the experiment.")],
    runs: Annotated[list[str], typer.Option(help="Runs, TASK/METHOD/seed-N:cycles=N:cycle_steps=N…")],
    output: Annotated[Path, typer.Option(help="Folder for figures and tables.", readable=False)],
    returns: Annotated[
        list[str] | None,
        typer.Option(help="Returns whose first reaching is timed, TASK=RETURN,RETURN…", show_default=False),
    ] = None,
    folder: DataFolder = Path(),
) -> None:
    """Draw the figures and tables of an experiment."""
    from usbpo.experiment.run_files import RunFiles, parse_returns

    with _own_folder_of_matplotlib():
        from usbpo.report.results import results as make_results

        make_results(
            experiment=experiment,
            runs=[RunFiles.parse(run) for run in runs],
            output=output,
            returns=parse_returns(returns or []),
            root=folder,
        )


def compare(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Files evaluations.csv: yours, or published ones.", readable=False)
    ],
    output: Annotated[Path, typer.Option(help="Folder for figures and tables.", readable=False)],
    experiment: Annotated[str, typer.Option(help="Name for headings.")] = "of files",
    returns: Annotated[
        list[str] | None,
        typer.Option(help="Returns whose first reaching is timed, TASK=RETURN,RETURN…", show_default=False),
    ] = None,
) -> None:
    """Compare runs by what is published of their evaluations: figures and tables of returns, without the runs."""
    from usbpo.experiment.run_files import parse_returns

    with _own_folder_of_matplotlib():
        from usbpo.report.results import compare as make_comparison

        make_comparison(
            evaluations=evaluations, output=output, experiment=experiment, returns=parse_returns(returns or [])
        )


@contextmanager
def _own_folder_of_matplotlib() -> Iterator[None]:
    """Have matplotlib keep its list of this machine's fonts, which it makes in a second, elsewhere than in HOME."""
    variable = "MPLCONFIGDIR"
    if variable in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="usbpo-") as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            del os.environ[variable]


def plan(
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment file, or the name of one in config/experiments; or the default.")
    ] = None,
    cores: Annotated[int, typer.Option(help="Cores that Snakemake may use.", min=1)] = os.cpu_count() or 1,
    scale: Annotated[float | None, typer.Option(help="In place of the experiment's scale.")] = None,
    folder: DataFolder = Path(),
) -> None:
    """Say what an experiment will take before it runs: runs, jobs, disk, time, and what stands already."""
    from usbpo.experiment.plan import Plan
    from usbpo.monitor.estimate import print_plan

    changed = {} if scale is None else {"scale": scale}
    chosen = Plan.named(experiment, changed)
    chosen.check_files(folder)
    print_plan(chosen, cores, folder, terminal())


def publish(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments, TASK/METHOD/seed-N, or folders of runs; without it the default experiment.",
            show_default=False,
        ),
    ] = None,
    push: Annotated[bool, typer.Option(help="Push to DVC's remote, too.")] = True,
    remote: Annotated[str | None, typer.Option(help="Name of DVC's remote; without it the default one.")] = None,
    folder: DataFolder = Path(),
) -> None:
    """Add what is finished to DVC and push it; only `git commit` is left to do."""
    from usbpo.commands.publish import publish as add_and_push

    try:
        add_and_push(what or [], folder, push=push, remote=remote)
    except KeyboardInterrupt:
        print("usbpo publish: interrupted; git was handed nothing, so type the same command again.", file=sys.stderr)
        raise SystemExit(130) from None


def gc(
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment file, or the name of one in config/experiments; or the default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    folder: DataFolder = Path(),
) -> None:
    """Delete what an experiment's runs need no more: models, policies and rollouts not kept, and broken-off files."""
    from usbpo.commands.gc import collect_leftovers
    from usbpo.experiment.layers import experiment_file

    collect_leftovers(experiment_file(experiment), FOLDERS, dry_run, folder, terminal())


def submit(
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment file, or the name of one in config/experiments; or the default.")
    ] = None,
    runs_per_job: Annotated[int, typer.Option(help="Runs, of one task and method, in a job.", min=1)] = 1,
    cores: Annotated[
        int | None, typer.Option(help="Cores of a job; as many as it has runs without it.", min=1, show_default=False)
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of a job; one for `device: cuda` without it.", min=0, show_default=False)
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition; its default without it.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Time limit of a job as Slurm writes it; twice the estimate without it.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="In place of the experiment's scale.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Finished runs too: their keys or code changed.")] = False,
    results: Annotated[bool, typer.Option(help="Whether a last job draws the results.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch scripts and submit nothing.")] = False,
    folder: DataFolder = Path(),
) -> None:
    """Run an experiment on a Slurm cluster: a job for each run, or for some; type it again for what is not finished."""
    from usbpo.commands.batch_scripts import Request, Workspace
    from usbpo.commands.submit import submit as submit_jobs
    from usbpo.experiment.layers import experiment_file
    from usbpo.experiment.plan import Plan

    changed = {} if scale is None else {"scale": scale}
    request = Request(runs_per_job, cores, gpus, partition, time, everything, results)
    workspace = Workspace(folder, experiment_file(experiment), scale)
    chosen = Plan.named(experiment, changed)
    chosen.check_files(folder)
    submit_jobs(chosen, workspace, request, dry_run)


def check_task(
    file: Annotated[str, typer.Argument(help="Task file, or the name of one in config/tasks.")],
) -> None:
    """Test a task before hours are spent on it: its keys, spaces, numbers, termination and exact restore."""
    from usbpo.commands.check_task import print_checks

    if not print_checks(file):
        raise typer.Exit(1)


def tensorboard(
    runs: SomeRuns = None,
    output: Annotated[
        Path, typer.Option(help="TensorBoard's log folder; each run has a folder below it.", readable=False)
    ] = Path("data/tensorboard"),
    cycles: Annotated[int | None, typer.Option(help="Last cycle to read; all without it.", min=0)] = None,
    folder: DataFolder = Path(),
) -> None:
    """Write what runs have on disk as TensorBoard event files."""
    from usbpo.experiment.named import named_runs
    from usbpo.formats.tensorboard import write_runs

    write_runs(named_runs(runs or [], folder), output, cycles)


def video(
    run: Annotated[str, typer.Argument(help="TASK/METHOD/seed-N, or the folder of a run.")],
    cycle: Annotated[int | None, typer.Option(help="Cycle of the policy; the last without it.", min=0)] = None,
    output: Annotated[
        Path | None,
        typer.Option(help=".gif or .mp4; data/videos/TASK/METHOD/seed-N/CYCLE.gif without it.", readable=False),
    ] = None,
    episode_seed: Annotated[
        int | None, typer.Option(help="Seed of the episode; without it that of the run's first evaluation.", min=0)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Longest video, in seconds of simulated time.", min=0.1)] = 10.0,
    environment: EnvironmentId = None,
    environment_arguments: EnvironmentArguments = None,
    folder: DataFolder = Path(),
) -> None:
    """Film one episode of a run's deterministic policy."""
    from usbpo.experiment.named import last_policy, named_run
    from usbpo.formats.environment import environment_of, headers_of
    from usbpo.formats.video import video as film

    named = named_run(run, folder)
    cycle = last_policy(named) if cycle is None else cycle
    made_in = environment_of(named, headers_of(named, cycle), environment, environment_arguments)
    film(named, cycle, made_in, output=output, episode_seed=episode_seed, seconds=seconds)


def schema(
    folder: Annotated[Path, typer.Argument(help="Folder to write into.", readable=False)] = Path("workflow/schemas"),
) -> None:
    """Write the JSON schemas and the table of keys from the models in usbpo/experiment/."""
    from usbpo.artifacts.files import write_text

    for name in SCHEMAS:
        write_text(folder / f"{name}.schema.json", json_schema(name))
    write_text(folder / "keys.md", keys_table())


VERBS = (
    *(status, usage, inspect, verify, results, compare, plan),
    *(submit, publish, gc, check_task, tensorboard, video, schema),
)
"""In the order of the help"""
