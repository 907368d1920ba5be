"""A network that can be cut: a pair of virtual cards with a process behind it (Linux, root)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from agentsched.model import AgentschedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One namespace. `host` is its address, `prefix` runs a command inside."""

    name: str
    card: str
    host: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Nothing goes through any more, and nobody is told."""
        _ip("link", "set", self.card, "down")

    def heal(self) -> None:
        """Everything goes through again; connections go on where they were."""
        _ip("link", "set", self.card, "up")


def is_possible() -> bool:
    """Whether this process may make networks."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@contextlib.contextmanager
def network(number: int) -> Iterator[Network]:
    """A namespace with one address of 10.213/16; gone afterwards.

    Raises:
        AgentschedError: the system does not allow it.
    """
    if not is_possible():
        raise AgentschedError("cutting networks takes root and iproute2")
    label = f"as{os.getpid() % 100_000}{number}"
    outer, inner = f"v{label}a", f"v{label}b"
    subnet = f"10.213.{os.getpid() % 250}.{number * 4}"
    base, last = subnet.rsplit(".", 1)
    ours, theirs = f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}"
    made = Network(name=label, card=outer, host=theirs)
    try:
        _ip("netns", "add", label)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", label)
        _ip("addr", "add", f"{ours}/30", "dev", outer)
        _ip("link", "set", outer, "up")
        _ip("-n", label, "addr", "add", f"{theirs}/30", "dev", inner)
        _ip("-n", label, "link", "set", inner, "up")
        _ip("-n", label, "link", "set", "lo", "up")
        yield made
    finally:
        for command in (["link", "del", outer], ["netns", "del", label]):
            subprocess.run(["ip", *command], check=False, capture_output=True, timeout=10)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, timeout=10)
    if done.returncode:
        raise AgentschedError(f"ip {' '.join(arguments)}: {done.stderr.decode().strip()}")
