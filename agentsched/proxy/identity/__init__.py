"""Whose request is this? Programs and conversations, by what clients say and by what they send."""

from __future__ import annotations

from agentsched.proxy.identity.index import BYTES_PER_TOKEN, IdentityIndex
from agentsched.proxy.identity.model import (
    Declared,
    Evidence,
    Identity,
    IdentityLimits,
    IdentityStatistics,
)

__all__ = [
    "BYTES_PER_TOKEN",
    "Declared",
    "Evidence",
    "Identity",
    "IdentityIndex",
    "IdentityLimits",
    "IdentityStatistics",
]
