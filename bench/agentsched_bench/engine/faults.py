"""Faults on request: what an engine does when it does not do what it should.

Written as `kind` or `kind=value`, joined by semicolons, in the header `x-sim-fault` or in the body
of `POST /sim/faults`:

    status=503      answer with this status; with retry-after=3 also that header
    hang            never answer
    delay=2         wait this many seconds first
    cut-after=5     break the connection after this many chunks
    eof-after=5     end the stream cleanly after this many chunks, without its end marks
    slow=10         give tokens this many times slower
    error-event     after the first chunk of a stream, an error event instead of the rest
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Final

from agentsched.model.errors import WireError

_SECONDS_MAX: Final = 86_400.0
_COUNT_MAX: Final = 1_000_000
RULES_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one request; absent parts go right."""

    status: int | None = None
    retry_after: int | None = None
    hang: bool = False
    delay_s: float = 0.0
    cut_after: int | None = None
    eof_after: int | None = None
    slow: float = 1.0
    error_event: bool = False


NO_FAULT: Final = Fault()


def parse_fault(text: str) -> Fault:
    """Read the notation above.

    Raises:
        WireError: an unknown kind or a bad value.
    """
    fault = NO_FAULT
    for part in text.split(";"):
        name, _, value = part.strip().partition("=")
        if name:
            fault = _with(fault, name.strip().lower(), value.strip())
    return fault


def _with(fault: Fault, name: str, value: str) -> Fault:
    match name:
        case "status":
            return replace(fault, status=int(_number(name, value, low=400, high=599)))
        case "retry-after":
            return replace(fault, retry_after=int(_number(name, value, high=_SECONDS_MAX)))
        case "hang":
            return replace(fault, hang=True)
        case "delay":
            return replace(fault, delay_s=_number(name, value, high=_SECONDS_MAX))
        case "cut-after":
            return replace(fault, cut_after=int(_number(name, value, high=_COUNT_MAX)))
        case "eof-after":
            return replace(fault, eof_after=int(_number(name, value, high=_COUNT_MAX)))
        case "slow":
            return replace(fault, slow=_number(name, value, low=1, high=1e6))
        case "error-event":
            return replace(fault, error_event=True)
        case _:
            raise WireError(f"unknown fault {name!r}", param="x-sim-fault")


def _number(name: str, value: str, *, low: float = 0, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        message = f"fault {name} wants a number from {low:g} to {high:g}, not {value!r}"
        raise WireError(message, param="x-sim-fault")
    return number


@dataclass(slots=True, kw_only=True)
class Rule:
    """A fault for a share `rate` of the requests, at most `count` times (None: for ever)."""

    fault: Fault
    text: str
    rate: float
    count: int | None
    dice: random.Random
    done: int = 0


class FaultPlan:
    """The standing rules; the first that strikes decides."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, *, text: str, rate: float = 1.0, count: int | None = None, seed: int = 0) -> None:
        """Add a rule.

        Raises:
            WireError: the fault cannot be read, the rate is no share, or there are too many rules.
        """
        if not 0 <= rate <= 1:
            raise WireError(f"rate must be from 0 to 1, not {rate}", param="rate")
        if len(self._rules) >= RULES_MAX:
            raise WireError(f"there are {RULES_MAX} rules already", status=409)
        rule = Rule(
            fault=parse_fault(text), text=text, rate=rate, count=count, dice=random.Random(seed)
        )
        self._rules.append(rule)

    def clear(self) -> None:
        """Drop all rules."""
        self._rules.clear()

    def strike(self) -> Fault:
        """What goes wrong with the next request."""
        for rule in self._rules:
            if rule.count is not None and rule.done >= rule.count:
                continue
            if rule.dice.random() < rule.rate:
                rule.done += 1
                return rule.fault
        return NO_FAULT

    def listing(self) -> list[dict[str, str | float | int | None]]:
        """The rules, for people."""
        return [
            {"kind": rule.text, "rate": rule.rate, "count": rule.count, "done": rule.done}
            for rule in self._rules
        ]
