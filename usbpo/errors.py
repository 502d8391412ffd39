"""The one exception that a user is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsbpoError(Exception):
    """Bad input or an unusable file: one sentence that names it, says what is wrong and what to do.

    The command line prints the sentence without a traceback and exits with 1.
    """


@contextmanager
def saying(where: str) -> Iterator[None]:
    """Put before the sentence of an error where it happened, which what raises it does not know."""
    try:
        yield
    except UsbpoError as error:
        raise UsbpoError(f"{where}: {error}") from error
