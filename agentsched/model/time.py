"""Instants and spans, in whole nanoseconds: exact, JSON-safe, and what `monotonic_ns` returns.

An `Instant` is a point on the host's monotonic clock; a `Nanos` is a length of time. They are two
types so that a checker keeps one from being passed as the other.
"""

from __future__ import annotations

import re
from typing import Final, NewType

from agentsched.model.errors import ConfigError

Instant = NewType("Instant", int)
Nanos = NewType("Nanos", int)

MILLISECOND: Final = Nanos(1_000_000)
SECOND: Final = Nanos(1_000_000_000)
MINUTE: Final = Nanos(60 * SECOND)

_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": 60 * MINUTE,
}
_SPAN: Final = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*(ns|us|ms|s|m|h)\s*")


def after(at: Instant, span: Nanos) -> Instant:
    """The instant that lies `span` after `at`."""
    return Instant(at + span)


def between(start: Instant, end: Instant) -> Nanos:
    """The span from `start` to `end`; negative when `end` is earlier."""
    return Nanos(end - start)


def seconds(value: float) -> Nanos:
    """`value` seconds as a span."""
    return Nanos(round(value * SECOND))


def in_seconds(span: Nanos) -> float:
    """`span` as seconds, for people and formulas."""
    return span / SECOND


def parse_span(text: str) -> Nanos:
    """Read `15s`, `250ms`, `1.5 h`.

    Raises:
        ConfigError: the text is not a number followed by ns, us, ms, s, m or h.
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ConfigError(f"not a length of time: {text!r} (write 250ms, 15s, 2m or 1h)")
    whole, _, part = match[1].partition(".")
    unit, tenths = _UNITS[match[2]], 10 ** len(part)
    # In whole numbers, since a float is a few nanoseconds off from 2**53 on.
    return Nanos(int(whole) * unit + (2 * int(part or 0) * unit + tenths) // (2 * tenths))
