"""A policy by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A policy's name and the parameters it is made with."""

    name: str
    params: Mapping[str, object] = field(default_factory=dict)
