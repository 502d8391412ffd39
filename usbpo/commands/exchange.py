"""The verbs `usbpo export` and `usbpo import`."""

from pathlib import Path
from typing import Annotated

import typer

from usbpo.artifacts import layout

RunName = Annotated[str, typer.Argument(help="TASK/METHOD/seed-N, or the folder of a run.")]
DataFolder = Annotated[Path, typer.Option(help="Folder that holds data/.", readable=False)]
"""As with every path here, whether it can be read is for the verb to say, in one sentence."""
EnvironmentId = Annotated[
    str | None, typer.Option("--environment", help="Gymnasium id; without it that of the task's configuration.")
]
EnvironmentArguments = Annotated[
    str | None,
    typer.Option(help="Its keyword arguments, as JSON; without it the configuration's, or none with --environment."),
]
Task = Annotated[str, typer.Option(help="Task of config/tasks that the data are checked against.")]
Output = Annotated[
    Path | None,
    typer.Option(help="File to write; data/imported/TASK.h5 without it.", show_default=False, readable=False),
]
Observations = Annotated[
    int | None,
    typer.Option(
        help="Numbers of each observation that are taken, from the first on; all without it.",
        min=1,
        show_default=False,
    ),
]

exports = typer.Typer(
    help="Write a run's data or its policy in formats that other programs read.", no_args_is_help=True
)
imports = typer.Typer(help="Check real data from elsewhere, so that a run can begin with them.", no_args_is_help=True)


@exports.command("minari")
def export_minari(
    run: RunName,
    output: Annotated[
        Path | None, typer.Option(help="Minari's folder of datasets; data/exports/minari.", readable=False)
    ] = None,
    environment: EnvironmentId = None,
    environment_arguments: EnvironmentArguments = None,
    folder: DataFolder = Path(),
) -> None:
    """Write a run's real data as a Minari dataset."""
    from usbpo.experiment.named import named_run
    from usbpo.formats.minari_export import export_minari as write

    write(named_run(run, folder), output or folder / layout.MINARI, environment, environment_arguments)


@exports.command("policy")
def export_policy(
    run: RunName,
    cycle: Annotated[int | None, typer.Option(help="Cycle of the policy; the last without it.", min=0)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; data/exports/policies/TASK/METHOD/seed-N/CYCLE without it.", readable=False
        ),
    ] = None,
    environment: EnvironmentId = None,
    environment_arguments: EnvironmentArguments = None,
    folder: DataFolder = Path(),
) -> None:
    """Write a run's actor as ONNX and as a plain torch module with an example."""
    from usbpo.experiment.named import named_run
    from usbpo.formats.policy_export import export_policy as write

    write(named_run(run, folder), output, cycle, environment, environment_arguments)


@imports.command("minari")
def import_minari(
    dataset: Annotated[str, typer.Argument(help="Minari's name of a dataset on this machine.")],
    task: Task,
    output: Output = None,
    observations: Observations = None,
) -> None:
    """Take the episodes of a Minari dataset."""
    from usbpo.formats.imports import import_minari as take

    take(dataset, task, output or Path(layout.IMPORTED.format(task=task)), observations)


@imports.command("hdf5")
def import_hdf5(
    file: Annotated[
        Path, typer.Argument(help="HDF5 file with D4RL's or Gymnasium's names (docs/formats.md).", readable=False)
    ],
    task: Task,
    output: Output = None,
    observations: Observations = None,
) -> None:
    """Take the steps of an HDF5 file."""
    from usbpo.formats.imports import import_hdf5 as take

    take(file, task, output or Path(layout.IMPORTED.format(task=task)), observations)
