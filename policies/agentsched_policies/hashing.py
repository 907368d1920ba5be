"""Hashes that are the same in every process and on every machine."""

from __future__ import annotations

from hashlib import blake2b
from math import log


def unit_hash(*parts: str) -> float:
    """A number in (0, 1), evenly spread, that depends on the parts and on nothing else."""
    digest = blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64


def rendezvous(key: str, node: str, *, weight: float = 1.0) -> float:
    """Weighted rendezvous hashing (Thaler and Ravishankar 1998): the node of the least value wins.

    Nodes win keys in proportion to their weights, and one that comes or goes moves only its own
    keys. Values are exponentially distributed with mean 1 / weight.
    """
    return -log(unit_hash(key, node)) / weight
