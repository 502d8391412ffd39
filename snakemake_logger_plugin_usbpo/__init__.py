"""The name under which Snakemake finds the display of `usbpo.monitor.log_handler`: `snakemake --logger usbpo`."""

from usbpo.monitor import log_handler
from usbpo.workspace import configfiles

__all__ = ["LogHandler"]


class LogHandler(log_handler.LogHandler):
    """The display. Snakemake makes it before it reads a configuration file, so that it also says how these are read."""

    def __post_init__(self) -> None:
        configfiles.read_as_data()
        super().__post_init__()
