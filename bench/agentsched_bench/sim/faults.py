"""What goes wrong in a simulation: written by hand, or drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

import xxhash

from agentsched.model import ConfigError, Instant, Nanos, after, in_seconds, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """An engine dies and is back, empty, after a while."""

    engine: int
    at: Instant
    back_at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """An engine's steps take `factor` times as long for a while."""

    engine: int
    at: Instant
    until: Instant
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """An engine stands still for a while: it takes calls, and answers looks and nothing else."""

    engine: int
    at: Instant
    until: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The proxy dies with all it knows, and a new one serves after a while."""

    at: Instant
    back_at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Everything that goes wrong in one simulation.

    `lost`, `late` and `twice` are shares of the events by which a proxy learns of answers (first
    token, end): never told, told up to `late_ns_max` later, told twice. An end is never lost: the
    proxy itself relays it. `seed` decides which.
    """

    outages: tuple[Outage, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()
    stalls: tuple[Stall, ...] = ()
    restarts: tuple[Restart, ...] = ()
    lost: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    late_ns_max: Nanos = field(default_factory=lambda: seconds(0.5))
    seed: int = 0

    def strikes(self, kind: str, key: str, share: float) -> bool:
        """Whether a fault of this kind befalls `key`: the same whatever else happens."""
        return share > 0 and self._draw(kind, key) < share

    def delay(self, key: str) -> Nanos:
        """How much later a late event is told."""
        return Nanos(round(self.late_ns_max * self._draw("delay", key)))

    def _draw(self, kind: str, key: str) -> float:
        return xxhash.xxh3_64_intdigest(f"{kind}/{key}".encode(), seed=self.seed) / 2.0**64


NO_FAULTS: Final = Faults()


def apart(faults: Faults) -> Faults:
    """The same, with what overlaps on one engine, or of the proxy, as one fault: whoever is down
    twice is back when the longer one ends. Slowdowns stay as they are, for they multiply."""
    outages = _joined([(one.engine, one.at, one.back_at) for one in faults.outages])
    stalls = _joined([(one.engine, one.at, one.until) for one in faults.stalls])
    restarts = _joined([(0, one.at, one.back_at) for one in faults.restarts])
    return replace(
        faults,
        outages=tuple(Outage(engine=engine, at=at, back_at=end) for engine, at, end in outages),
        stalls=tuple(Stall(engine=engine, at=at, until=end) for engine, at, end in stalls),
        restarts=tuple(Restart(at=at, back_at=end) for _, at, end in restarts),
    )


_Span = tuple[int, Instant, Instant]


def _joined(spans: Sequence[_Span]) -> Sequence[_Span]:
    found: list[_Span] = []
    for engine, at, end in sorted(spans):
        if found and found[-1][0] == engine and at < found[-1][2]:
            found[-1] = engine, found[-1][1], max(end, found[-1][2])
        else:
            found.append((engine, at, end))
    # Where nothing overlaps, they keep their order: of two deeds at one instant it decides.
    return spans if len(found) == len(spans) else found


#: Of a drawn misfortune: mean time between faults of a kind on one engine or proxy, and lengths.
_LOSS_EVERY_S: Final = 600.0
_SLOW_EVERY_S: Final = 300.0
_RESTART_EVERY_S: Final = 1_800.0
_OUTAGE_S: Final = (5.0, 60.0)
_SLOW_S: Final = (10.0, 120.0)
_SLOW_FACTOR: Final = (1.5, 8.0)
_RESTART_S: Final = (1.0, 10.0)


def draw_faults(seed: int, *, engines: int, length: Nanos, rate: float = 1.0) -> Faults:
    """Faults of every kind over `length`; `rate` multiplies how often. One seed, one misfortune."""
    rng = random.Random(f"faults/{seed}")
    span_s = in_seconds(length)

    def times(every_s: float) -> list[float]:
        found = []
        at_s = rng.expovariate(rate / every_s)
        while at_s < span_s:
            found.append(at_s)
            at_s += rng.expovariate(rate / every_s)
        return found

    outages: list[Outage] = []
    slowdowns: list[Slowdown] = []
    for engine in range(engines):
        free_at_s = 0.0
        for at_s in times(_LOSS_EVERY_S):
            if at_s >= free_at_s:
                free_at_s = at_s + rng.uniform(*_OUTAGE_S)
                at, back_at = Instant(seconds(at_s)), Instant(seconds(free_at_s))
                outages.append(Outage(engine=engine, at=at, back_at=back_at))
        for at_s in times(_SLOW_EVERY_S):
            start = Instant(seconds(at_s))
            until = after(start, seconds(rng.uniform(*_SLOW_S)))
            factor = rng.uniform(*_SLOW_FACTOR)
            slowdowns.append(Slowdown(engine=engine, at=start, until=until, factor=factor))
    restarts: list[Restart] = []
    for at_s in times(_RESTART_EVERY_S):
        start = Instant(seconds(at_s))
        if not restarts or start > restarts[-1].back_at:
            back_at = after(start, seconds(rng.uniform(*_RESTART_S)))
            restarts.append(Restart(at=start, back_at=back_at))
    return Faults(
        outages=tuple(outages),
        slowdowns=tuple(slowdowns),
        restarts=tuple(restarts),
        lost=min(0.5, 0.02 * rate),
        late=min(0.5, 0.05 * rate),
        twice=min(0.5, 0.02 * rate),
        seed=seed,
    )


def outage(text: str) -> Outage:
    """Read `ENGINE@START+LENGTH`, seconds: `0@30+20`.

    Raises:
        ConfigError: it is not of that form.
    """
    engine, at, back_at = _when(text, "an outage", "ENGINE@START+SECONDS")
    return Outage(engine=int(engine), at=at, back_at=back_at)


def slowdown(text: str) -> Slowdown:
    """Read `ENGINE@START+LENGTHxFACTOR`: `0@30+20x4`.

    Raises:
        ConfigError: it is not of that form.
    """
    when, _, factor = text.rpartition("x")
    form = "ENGINE@START+SECONDSxFACTOR"
    engine, at, until = _when(when, "a slowdown", form)
    try:
        times = float(factor)
    except ValueError:
        times = 0.0
    if not 0 < times < inf:
        raise ConfigError(f"not a slowdown: {text!r} (write {form})")
    return Slowdown(engine=int(engine), at=at, until=until, factor=times)


def stall(text: str) -> Stall:
    """Read `ENGINE@START+LENGTH`, seconds: `0@30+20`.

    Raises:
        ConfigError: it is not of that form.
    """
    engine, at, until = _when(text, "a stall", "ENGINE@START+SECONDS")
    return Stall(engine=int(engine), at=at, until=until)


def restart(text: str) -> Restart:
    """Read `START+LENGTH`: `60+5`.

    Raises:
        ConfigError: it is not of that form.
    """
    _, at, back_at = _when(f"0@{text}", "a restart", "START+SECONDS")
    return Restart(at=at, back_at=back_at)


def _when(text: str, what: str, form: str) -> tuple[int, Instant, Instant]:
    try:
        engine, _, times = text.partition("@")
        start, _, length = times.partition("+")
        at = Instant(seconds(float(start)))
        end = after(at, seconds(float(length)))
        if int(engine) < 0 or at < 0 or end <= at:
            raise ValueError(text)
        return int(engine), at, end
    except (ValueError, OverflowError):
        raise ConfigError(f"not {what}: {text!r} (write {form})") from None
