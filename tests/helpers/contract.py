"""What another tool does inside, and usbpo rests on: a test that fails says in one sentence what is no longer so."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import pytest


@contextmanager
def contract(tool: str, behaviour: str) -> Iterator[None]:
    """Fail with the sentence of a behaviour, and the installed version, if anything in the block is not as it was."""
    try:
        yield
    except Exception as error:
        told = str(error).strip() or type(error).__name__
        pytest.fail(f"{tool} {version(tool)} has changed this: {behaviour}. Found: {told}", pytrace=False)
