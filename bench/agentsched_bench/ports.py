"""Ports for servers that must be told where to listen."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from typing import Final

#: Where the kernel (Linux) takes ports from for all who leave the choice to it.
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_DEFAULT: Final = (32_768, 60_999)
_LOWEST: Final = 10_000
_HIGHEST: Final = 65_535
_TRIES: Final = 200
#: Not the same numbers in two processes, forked ones included.
_rng = random.SystemRandom()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listened on a moment ago, and that nobody gets by leaving the choice.

    A server that is started with it has it a second later, when it listens, and again after a
    restart: connections and servers beside it are given others by the kernel.

    Raises:
        OSError: none is free.
    """
    for _ in range(_TRIES):
        port = _rng.choice(_choices())
        with contextlib.suppress(OSError):
            _probe(host, port)
            return port
    # All but the kernel's own are taken, or none is left.
    return _probe(host, 0)


def _choices() -> range:
    """The larger part of the ports that the kernel leaves alone; else all."""
    try:
        low, high = (int(number) for number in _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        low, high = _EPHEMERAL_DEFAULT
    below, above = range(_LOWEST, low), range(high + 1, _HIGHEST + 1)
    return max(below, above, key=len) or range(_LOWEST, _HIGHEST + 1)


def _probe(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        probe.bind((host, port))
        return int(probe.getsockname()[1])
