"""The name under which Snakemake finds the display of `usbpo.monitor.progress`: `snakemake --logger usbpo`."""

from usbpo.monitor import progress
from usbpo.workspace import configfiles

__all__ = ["LogHandler"]


class LogHandler(progress.LogHandler):
    """The display. Snakemake makes it before it reads a configuration file, so that it also says how these are read."""

    def __post_init__(self) -> None:
        configfiles.read_as_data()
        super().__post_init__()
