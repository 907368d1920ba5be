"""Ports that are told to servers: free, and the kernel gives them to nobody else."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agentsched_bench import ports
from agentsched_bench.ports import free_port


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's range, as a file of the test's own."""
    file = tmp_path / "range"
    monkeypatch.setattr(ports, "_EPHEMERAL", file)
    return file


@pytest.mark.parametrize(("low", "high"), [(32_768, 60_999), (15_000, 30_000)])
def test_it_is_none_of_those_that_the_kernel_gives(own: Path, low: int, high: int) -> None:
    own.write_text(f"{low}\t{high}\n")
    assert not [port for port in (free_port() for _ in range(50)) if low <= port <= high]


@pytest.mark.parametrize("text", ["1024 65535", "nonsense"])
def test_there_is_one_also_where_the_kernel_has_all_or_says_nothing(own: Path, text: str) -> None:
    own.write_text(text)
    assert 1_024 < free_port() <= 65_535


def test_one_that_is_taken_is_not_given(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setattr(ports, "_choices", lambda: range(port, port + 1))
        assert free_port() != port
