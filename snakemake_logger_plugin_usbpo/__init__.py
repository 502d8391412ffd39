"""The name under which Snakemake finds the display of `usbpo.monitor.progress`: `snakemake --logger usbpo`."""

from usbpo.monitor.progress import LogHandler

__all__ = ["LogHandler"]
