"""Snakemake's messages: which tell a user nothing, and what is to be read out of the others."""

import errno
import re
import signal
from pathlib import Path

SMALL_TALK = (
    "Assuming unrestricted shared filesystem usage",
    "Complete log(s):",
    "Conda environments: ignored",
    "Elapsed time:",
    "Exiting because a job execution failed",
    "Processed ",
    "Removing temporary output",
    "Select jobs to execute",
    "Shutting down, this might take some time",
    "Singularity containers: ignored",
    "Touching output file",
    "Using shell:",
    "Write-protecting output file",
)
"""Beginnings of messages that tell a user nothing: the display says it, or it does not matter."""


FULL = re.compile(rf"\[Errno (?:{errno.ENOSPC}|{errno.EDQUOT})\]")
"""In the message of an OSError: no space, or none of the user's quota"""


def vanished(text: str) -> str:
    """Our sentence for Snakemake's message that outputs of a job are missing after it has ended well."""
    paths = re.findall(r"^(.+?)(?: \(missing.*\))?$", text.partition("--latency-wait:\n")[2], re.MULTILINE)
    return (
        f"usbpo: {', '.join(paths)}: gone when the job had ended that made it; find out what deletes files there, or "
        "give --latency-wait 60 where the file system is slow to show them, and type the command again."
    )


def ending_signal(told: str) -> str:
    """The signal by which a shell command ended, out of Snakemake's message, as " (SIGKILL)"; "" if it just failed.

    A log is silent about it, and SIGKILL is what a job gets that takes too much memory.
    """
    found = re.search(r"' (?:died with <Signals\.(\w+): \d+>|returned non-zero exit status (\d+))\.?\s*$", told)
    if found and found[1]:
        return f" ({found[1]})"
    number = int(found[2]) - 128 if found else 0  # a shell reports the signal that ended its command so
    return f" ({signal.Signals(number).name})" if number in signal.valid_signals() and number > 0 else ""


def without_places(text: str) -> str:
    """A message of an error that the Snakefile raised, without the places in the code that it came through."""
    return "\n".join(part for part in text.splitlines() if not re.match(r'  File ".*", line \d+, in .*$', part))


def sentence(text: str) -> str:
    """The one sentence that a user is told in place of a message; "" where the message itself will do.

    It is that of a UsbpoError that the Snakefile raised, itself or in an input function; or our own where Snakemake's
    would mislead: it advises to remove the lock of another that is at work, and shows where in its code a disk is full.
    """
    if text.startswith("LockException"):
        return f"usbpo: {Path.cwd()}: it cannot be locked: another Snakemake is at work; wait for it, or stop it."
    if text.startswith(("Traceback", "WorkflowError", "OSError")) and FULL.search(text):
        return f"usbpo: {Path.cwd()}: the disk is full; free space, and the same command goes on where this one ended."
    if not text.startswith(("UsbpoError", "InputFunctionException")):
        return ""
    found = re.search(r"^UsbpoError\b.*:\n(.*)$|^  UsbpoError: (.*)$", text, re.MULTILINE)
    return str(found[1] or found[2]) if found else ""
