from __future__ import annotations

import subprocess
import sys

import pytest

import agentsched_adapters


@pytest.mark.parametrize("name", agentsched_adapters.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(agentsched_adapters, name).__name__ == name


def test_no_other_name_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = agentsched_adapters.Nothing


def test_a_plugin_needs_no_http_client() -> None:
    check = "import sys, agentsched_adapters as a; a.NoHints; assert 'aiohttp' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
