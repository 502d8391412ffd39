"""The name under which Snakemake finds the display of `usbpo.monitor.log_handler`: `snakemake --logger usbpo`."""

from usbpo.monitor.log_handler import LogHandler

__all__ = ["LogHandler"]
