"""Fixtures of the identity tests."""

from __future__ import annotations

import pytest

from agentsched_bench.clients.acting import Wire


@pytest.fixture
def wire() -> Wire:
    return Wire()
