"""Snakemake's messages: which tell a user nothing, and what is to be read out of the others."""

import re
import signal

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
    """The sentence of a UsbpoError that the Snakefile raised, itself or in an input function; "" if there is none."""
    if not text.startswith(("UsbpoError", "InputFunctionException")):
        return ""
    found = re.search(r"^UsbpoError\b.*:\n(.*)$|^  UsbpoError: (.*)$", text, re.MULTILINE)
    return str(found[1] or found[2]) if found else ""
