"""The real agents' command lines on a machine without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.clients.command_lines import Installed
from agentsched_bench.clients.isolation import loopback_only
from agentsched_bench.clients.stand import Stand, standing

_ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def installed() -> Installed:
    """The agents. Where the registries cannot be reached they are missing, and a line says so."""
    try:
        return Installed(_ROOT / ".clients")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def _no_network(installed: Installed) -> Iterator[None]:
    try:
        isolation = loopback_only()
        isolation.__enter__()
    except ConfigError as error:
        pytest.skip(str(error))
    yield
    isolation.__exit__(None, None, None)


@pytest.fixture
def stand(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Stand]]:
    """`async with stand(scripts, strips_ids=..., settings=...)`: an engine, the proxy, a relay."""
    return partial(standing, tmp_path)
