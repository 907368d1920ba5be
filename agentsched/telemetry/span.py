"""A span before it is anybody's format: instants are the journal's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentsched.model import Instant
from agentsched.telemetry.context import TraceContext

Value = str | int | float | bool | tuple[str, ...]

_EVENTS_MAX: Final = 32


class SpanEvent(NamedTuple):
    """Something that happened at one moment of a span."""

    name: str
    at: Instant
    attributes: Mapping[str, Value]


@dataclass(slots=True, kw_only=True)
class Span:
    """One span, open until it has an end. Instants are the journal's."""

    name: str
    context: TraceContext
    parent: TraceContext | None
    begin: Instant
    end: Instant | None = None
    #: CLIENT for what we ask of an engine, INTERNAL for all else.
    is_client: bool = False
    attributes: dict[str, Value] = field(default_factory=dict)
    events: list[SpanEvent] = field(default_factory=list)
    links: list[TraceContext] = field(default_factory=list)
    #: `error.type`; empty: it went well.
    error: str = ""

    def happened(self, name: str, at: Instant, attributes: Mapping[str, Value]) -> None:
        """Add an event, as long as there are not too many."""
        if len(self.events) < _EVENTS_MAX:
            self.events.append(SpanEvent(name=name, at=at, attributes=attributes))
