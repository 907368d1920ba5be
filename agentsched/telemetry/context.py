"""W3C trace context: what `traceparent` says, and how it is written."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final, NamedTuple

_HEADER: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_CHARS_MAX: Final = 256


class TraceContext(NamedTuple):
    """A span as others name it. Ids are never zero."""

    trace_id: int
    span_id: int
    is_sampled: bool

    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.is_sampled):02x}"


def read_traceparent(value: str | None) -> TraceContext | None:
    """What the header says; None where it is missing or not as the recommendation wants it."""
    if not value or len(value) > _CHARS_MAX:
        return None
    match = _HEADER.fullmatch(value.strip())
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    return TraceContext(trace_id, span_id, bool(int(match[4], 16) & 1))


def trace_of(name: str) -> int:
    """The trace of a program that came without one: the same in each replica, after restarts."""
    return int.from_bytes(blake2b(name.encode(), digest_size=16, person=b"agentsched").digest()) | 1


def is_chosen(trace_id: int, ratio: float) -> bool:
    """Whether a trace belongs to the sample: a function of its id, as OpenTelemetry's samplers."""
    return (trace_id & 0xFFFF_FFFF_FFFF_FFFF) < round(ratio * (1 << 64))
