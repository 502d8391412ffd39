"""The folders that tests of the warm worker begin with."""

from collections.abc import Iterator

import pytest
from helpers.worker import Room


@pytest.fixture
def room() -> Iterator[Room]:
    """For a test of the worker's life."""
    room = Room()
    yield room
    room.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Room]:
    """A worker that all other tests share."""
    room = Room()
    room.server()
    yield room
    room.close()
