"""What is checked before anything is computed: whether artifacts can be written, and what runs begin with is there."""

import os
from pathlib import Path

from usbpo.environments import argument_files
from usbpo.errors import UsbpoError
from usbpo.experiment.options import environment_arguments
from usbpo.experiment.paths import is_file
from usbpo.experiment.run import Run

LEAST_FREE = 1_000_000
"""Bytes of disk without which Snakemake itself cannot begin: its log, locks and records"""


def check_writable(folder: Path) -> None:
    """Check, before anything is computed, that artifacts can be written.

    Raises:
        UsbpoError: data/, data/runs or data/results is no folder, or cannot be written, or the disk is full.
    """
    about = os.statvfs(folder)
    if about.f_bavail * about.f_frsize < LEAST_FREE:
        raise UsbpoError(f"{folder.resolve()}: the disk is full; free space, and type the command again.")
    for output in (folder / "data", folder / "data/runs", folder / "data/results"):
        probe = output / f".usbpo-probe-{os.getpid()}"  # two may look at the same time
        try:
            output.mkdir(exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsbpoError(
                f"{output}: the output folder cannot be written ({error.strerror}); "
                "mend its permissions or run in another folder with --directory."
            ) from error


def check_files(run: Run, root: Path) -> None:
    """Check that the files which a run's configuration names are there, and can be used, below `root`.

    Raises:
        UsbpoError: one is missing, cannot be read or does not fit.
    """
    environment = run.config.environment
    try:
        argument_files.check(environment.id, environment.arguments, root)
    except UsbpoError as error:
        raise UsbpoError(f"environment.arguments of {run.task} with {run.method}: {error}") from error
    check_initial_data(run, root)


def check_initial_data(run: Run, root: Path) -> None:
    """Check that the imported file, if there is one, is below `root` and fits; the rows themselves are not read.

    Raises:
        UsbpoError: it is not there, or does not fit.
    """
    from usbpo.experiment.initial_data import check_imported  # not before: few runs have any

    environment = run.config.environment
    arguments, steps = environment_arguments(environment), run.config.schedule.random_steps
    for path in run.initial_data(0):
        try:
            is_file(root / path)  # whatever its name
            check_imported(root / path, environment.id, arguments, steps)
        except UsbpoError as error:
            raise UsbpoError(f"schedule.initial_data of {run.task} with {run.method}: {error}") from error
