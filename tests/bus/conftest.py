"""A broker of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentsched_bench.services.mosquitto import LocalMosquitto


@pytest.fixture
def broker() -> Iterator[LocalMosquitto]:
    """A real one, which the test may kill. Mark tests that use it `services`."""
    with LocalMosquitto() as started:
        yield started
