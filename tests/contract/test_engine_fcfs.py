"""Engines under first come, first served: what a priority does there, and what we say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


async def test_a_priority_changes_nothing(
    fcfs_client: Any, prompt: Callable[[str, int], list[int]]
) -> None:
    assert await fcfs_client.served_order(prompt) == ["later", "sooner"]


async def test_an_order_that_is_not_confirmed_is_not_claimed(fcfs_client: Any) -> None:
    assert not fcfs_client.engine.capabilities.priority
    # The rest is known all the same.
    assert fcfs_client.engine.capabilities.prefix_cache
    assert fcfs_client.engine.capabilities.cached_tokens
