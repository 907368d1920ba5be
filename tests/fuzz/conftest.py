"""One event loop for all examples of a test: the proxies under fire live as long as their module.

`AGENTSCHED_FUZZ_EXAMPLES=5000 pytest tests/fuzz` tries so many examples of each kind, new ones each
time; without it a few fixed ones are tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, settings

from agentsched_bench.fuzz.nasty import NastyEngine, running_nasty

_MANY = int(os.environ.get("AGENTSCHED_FUZZ_EXAMPLES", "0"))

T = TypeVar("T")

for _name, _count in (("fuzz-rare", 8), ("fuzz-few", 20), ("fuzz-many", 150)):
    settings.register_profile(
        _name,
        max_examples=_MANY or _count,
        derandomize=not _MANY,
        deadline=None,
        print_blob=True,
        database=None,
        # No explaining: it would run the examples again under a tracer.
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


class House:
    """Keeps contexts open on a loop that runs only while it is asked something."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stack = contextlib.AsyncExitStack()

    def open(self, context: AbstractAsyncContextManager[T]) -> T:
        return self.run(self._stack.enter_async_context(context))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def close(self) -> None:
        try:
            self.run(self._stack.aclose())
        finally:
            self._runner.close()


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


@pytest.fixture(scope="module")
def run(house: House) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on the loop on which everything lives."""
    return house.run


@pytest.fixture(scope="module")
def start(house: House) -> Callable[[AbstractAsyncContextManager[Any]], Any]:
    """Enters a context that is left when the module's tests are done."""
    return house.open


@pytest.fixture(scope="module")
def nasty(start: Callable[[AbstractAsyncContextManager[Any]], Any]) -> NastyEngine:
    """An engine that says whatever it is told to, and looks hard at what it is sent."""
    engine: NastyEngine = start(running_nasty())
    return engine
