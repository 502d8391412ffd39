"""The verb `usbpo worker`."""

from typing import Annotated

import typer


def worker(
    idle: Annotated[
        float | None,
        typer.Option(help="Seconds without a request after which it ends; USBPO_WARM_IDLE, or 600.", min=1),
    ] = None,
) -> None:
    """Keep a warm process that stages fork from; Snakemake starts and ends one by itself."""
    from usbpo.worker.warm import run

    run(idle)
