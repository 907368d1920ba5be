"""What goes wrong, and how often: drawn from a seed, counted by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One connection's fate. Spans are seconds, places are bytes of one direction."""

    latency_s: float = 0.000_3
    #: Further latency of single segments, at most.
    jitter_s: float = 0.0
    segment_max: int = 65_536
    reset_after: int | None = None
    #: From here on nothing arrives any more, and nobody is told.
    stall_after: int | None = None
    is_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How often each kind of fault happens: a share of connections, requests or turns."""

    slow_link: float = 0.0
    tiny_segments: float = 0.0
    reset: float = 0.0
    stall: float = 0.0
    lost_connect: float = 0.0
    engine_error: float = 0.0
    engine_busy: float = 0.0
    engine_silent: float = 0.0
    engine_hang: float = 0.0
    engine_cut: float = 0.0
    engine_torn: float = 0.0
    engine_short: float = 0.0
    engine_garbage: float = 0.0
    engine_stream_error: float = 0.0
    plugin_error: float = 0.0
    pin_refused: float = 0.0
    client_hang_up: float = 0.0
    client_duplicate: float = 0.0
    client_slow_reader: float = 0.0
    client_slow_writer: float = 0.0
    tool_reports: float = 0.0
    #: Mean seconds between two of each of the following; 0 is never.
    crash_every_s: float = 0.0
    slow_engine_every_s: float = 0.0
    sick_probe_every_s: float = 0.0
    pause_every_s: float = 0.0
    disk_full_every_s: float = 0.0
    peers_every_s: float = 0.0
    verbs_every_s: float = 0.0

    def scaled(self, factor: float) -> Weather:
        """The same kinds, more or less of each."""
        values = {}
        for name in self.__slots__:
            value = getattr(self, name)
            is_span = name.endswith("_every_s")
            values[name] = (value / factor if factor else 0.0) if is_span else value * factor
        return Weather(**values)


CALM: Final = Weather()
STORM: Final = Weather(
    slow_link=0.1,
    tiny_segments=0.15,
    reset=0.03,
    stall=0.015,
    lost_connect=0.02,
    engine_error=0.02,
    engine_busy=0.02,
    engine_silent=0.01,
    engine_hang=0.015,
    engine_cut=0.02,
    engine_torn=0.02,
    engine_short=0.01,
    engine_garbage=0.01,
    engine_stream_error=0.01,
    plugin_error=0.05,
    pin_refused=0.1,
    client_hang_up=0.06,
    client_duplicate=0.08,
    client_slow_reader=0.05,
    client_slow_writer=0.05,
    tool_reports=0.3,
    crash_every_s=40.0,
    slow_engine_every_s=60.0,
    sick_probe_every_s=60.0,
    pause_every_s=60.0,
    disk_full_every_s=30.0,
    peers_every_s=10.0,
    verbs_every_s=30.0,
)


class Faults:
    """The one source of chance in a run. `weather` may be changed at any time."""

    def __init__(self, seed: int, weather: Weather) -> None:
        self.random = Random(seed)
        self.weather = weather
        #: What was done, by kind.
        self.counts: Counter[str] = Counter()

    def strikes(self, kind: str) -> bool:
        """Whether this kind happens now; counted if it does."""
        chance = getattr(self.weather, kind)
        # Drawn also where it cannot happen, so that a calmer run differs by its faults alone.
        if self.random.random() >= chance:
            return False
        self.counts[kind] += 1
        return True

    def span(self, mean_s: float) -> float:
        """Seconds until the next of a kind that comes so often on average."""
        return self.random.expovariate(1.0 / mean_s)

    def link(self, where: str) -> Link:
        """The fate of a new connection."""
        random = self.random
        is_slow = self.strikes("slow_link")
        is_tiny = self.strikes("tiny_segments")
        is_reset = self.strikes("reset")
        is_stalled = self.strikes("stall")
        return Link(
            latency_s=random.uniform(0.05, 0.4) if is_slow else random.uniform(0.000_1, 0.002),
            jitter_s=random.uniform(0.0, 0.3) if is_slow else 0.0,
            segment_max=random.choice((1, 3, 17, 100)) if is_tiny else 65_536,
            reset_after=int(random.expovariate(1 / 1_500)) if is_reset else None,
            stall_after=int(random.expovariate(1 / 1_500)) if is_stalled else None,
            is_lost=self.strikes("lost_connect"),
        )
