"""The one exception that a user is meant to read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 400
"""Letters of a word, such as a path, that a sentence repeats"""


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


def one_line(sentence: str) -> str:
    """A sentence as a terminal can show it, whatever a name or a file in it holds: no controls, no endless words."""
    letters = (" " if letter in "\n\r\t" else letter for letter in sentence)
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in letters)
    return re.sub(rf"\S{{{LONGEST},}}", lambda word: f"{word[0][: LONGEST // 2]}…{word[0][-LONGEST // 4 :]}", shown)
