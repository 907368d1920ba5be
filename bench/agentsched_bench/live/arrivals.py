"""When programs start: as recorded, at random, in a steady burst, or as others finish."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agentsched.model import ConfigError
from agentsched_bench.workload.shape import PlannedProgram


class Process(StrEnum):
    """How arrivals come about."""

    RECORDED = "recorded"
    POISSON = "poisson"
    BURST = "burst"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """An arrival process. `value` is programs per second, or for CLOSED programs at a time."""

    process: Process
    value: float = 0.0

    @property
    def concurrency(self) -> int | None:
        """At most this many programs at a time; None: no limit."""
        return int(self.value) if self.process is Process.CLOSED else None

    def __str__(self) -> str:
        match self.process:
            case Process.RECORDED:
                return "recorded"
            case Process.CLOSED:
                return f"closed:{self.value:g}"
            case _:
                return f"{self.process}:{self.value:g}/s"

    def starts_s(self, programs: Sequence[PlannedProgram], *, rng: random.Random) -> list[float]:
        """Seconds after the beginning at which each program may start, in the given order.

        Those of a closed loop may at once: they wait for its room.

        Raises:
            ConfigError: recorded arrivals are asked of a trace that has none.
        """
        timed = [program for program in programs if program.pool is None]
        match self.process:
            case Process.CLOSED:
                starts = [0.0] * len(timed)
            case Process.BURST:
                starts = [index / self.value for index in range(len(timed))]
            case Process.POISSON:
                starts = self._poisson(len(timed), rng)
            case Process.RECORDED:
                # Beside loops, which begin at once, what comes late is meant to.
                first = min((p.arrival_s or 0.0 for p in timed), default=0.0)
                starts = _recorded(timed, begin=first if len(timed) == len(programs) else 0.0)
        left = iter(starts)
        return [0.0 if program.pool is not None else next(left) for program in programs]

    def _poisson(self, count: int, rng: random.Random) -> list[float]:
        starts = [0.0]
        while len(starts) < count:
            starts.append(starts[-1] + rng.expovariate(self.value))
        return starts[:count]


def _recorded(programs: Sequence[PlannedProgram], *, begin: float) -> list[float]:
    known = [program.arrival_s for program in programs if program.arrival_s is not None]
    if len(known) < len(programs):
        raise ConfigError(
            f"{len(programs) - len(known)} programs have no recorded start: "
            "use --arrivals burst:RATE/s, poisson:RATE or closed:NUMBER"
        )
    return [at - begin for at in known]


def parse_arrivals(text: str) -> Arrivals:
    """Read `recorded`, `poisson:0.2`, `burst:3/s` or `closed:8`.

    Raises:
        ConfigError: it is none of these.
    """
    name, _, rest = text.strip().partition(":")
    try:
        process = Process(name)
        if process is Process.RECORDED:
            if rest:
                raise ValueError(rest)
            return Arrivals(process=process)
        value = float(rest.removesuffix("/s"))
        if not 0 < value < float("inf") or (process is Process.CLOSED and value != int(value)):
            raise ValueError(rest)
    except ValueError:
        raise ConfigError(
            f"not an arrival process: {text!r} (write recorded, poisson:0.2, burst:3/s or closed:8)"
        ) from None
    return Arrivals(process=process, value=value)
