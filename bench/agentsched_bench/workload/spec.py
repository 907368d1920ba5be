"""The `[workload]` of a scenario: what is asked of the engines, by whom and when, as TOML.

One file says everything that decides the load; the same file and seed give the same load on every
machine. Paths are relative to the file. `agentsched_bench.workload.compose` carries it out.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentsched.model import ConfigError

#: In place of a path: the synthetic sample that ships with the package.
SAMPLE: Final = "sample"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Poisson(_Strict):
    """Independent arrivals: `rate` programs per second on average."""

    process: Literal["poisson"] = "poisson"
    rate: Positive


class Bursty(_Strict):
    """A Markov-modulated Poisson process with two states, calm and burst.

    The state lasts an exponential time with the given mean and has its own rate. The mean rate is
    (rate * calm_s + burst_rate * burst_s) / (calm_s + burst_s).
    """

    process: Literal["bursty"] = "bursty"
    rate: NotNegative
    burst_rate: Positive
    calm_s: Positive
    burst_s: Positive


class Regular(_Strict):
    """One program every 1 / `rate` seconds."""

    process: Literal["regular"] = "regular"
    rate: Positive


class RecordedArrivals(_Strict):
    """The recorded starts, divided by `scale_time` and by `speed`, the first program at 0."""

    process: Literal["recorded"] = "recorded"
    speed: Positive = 1.0


class Closed(_Strict):
    """`concurrency` programs at a time: when one ends, the next one starts."""

    process: Literal["closed"] = "closed"
    concurrency: Annotated[int, Field(ge=1)]


ArrivalProcess = Annotated[
    Poisson | Bursty | Regular | RecordedArrivals | Closed, Field(discriminator="process")
]


class Traffic(StrEnum):
    """What a program is. Chat and batch are the background of agents."""

    AGENT = "agent"
    CHAT = "chat"
    BATCH = "batch"


class Source(_Strict):
    """A trace to draw programs from.

    `weight` is its share of the programs drawn; `programs`, which all sources have or none, takes
    exactly so many instead. A program is drawn again (with another name and, unless its text is
    real, other content) only when the trace has no more. Scales that are given here go before the
    workload's.
    """

    trace: Name
    name: Name | None = None
    weight: Positive = 1.0
    programs: Annotated[int, Field(ge=1)] | None = None
    only: tuple[str, ...] = ()
    traffic: Traffic = Traffic.AGENT
    tenant: Name | None = None
    has_ids: bool = True
    scale_tokens: Positive | None = None
    scale_time: Positive | None = None
    gap_cap_s: NotNegative | None = None


class Tenant(_Strict):
    """Someone whose programs these are.

    `load` is the share of the programs that are this tenant's; `weight` is its share of service for
    policies that share. With `arrivals` its programs come by themselves, beside the others'.
    """

    name: Name
    load: Positive = 1.0
    weight: Positive = 1.0
    arrivals: ArrivalProcess | None = None


class Background(_Strict):
    """Single calls beside the programs: chats that somebody waits for, or batch work.

    Token counts are log-normal by median and 90th percentile, before scaling; a `trace` takes
    recorded calls instead. `shared_tokens` is a system prompt that all of them have. They carry no
    ids unless `has_ids`.
    """

    traffic: Literal[Traffic.CHAT, Traffic.BATCH] = Traffic.CHAT
    name: Name | None = None
    arrivals: ArrivalProcess
    programs: Annotated[int, Field(ge=1)] | None = None
    trace: Name | None = None
    prompt_tokens: tuple[Positive, Positive] = (1020, 3600)
    output_tokens: tuple[Positive, Positive] = (210, 640)
    shared_tokens: Annotated[int, Field(ge=0)] = 0
    tenant: Name | None = None
    has_ids: bool = False


class Workload(_Strict):
    """All of `[workload]`.

    `programs` or `duration_s` (seconds of arrivals, after scaling) bounds what is drawn from the
    sources; both: whichever comes first. Tokens are divided by `scale_tokens`; pauses are cut to
    `gap_cap_s` and then divided by `scale_time`. The rates of arrivals are those of the replay,
    which nothing scales. `shared_tokens_max` (scaled) lets programs share no more than so much of
    their prompts. `text` keeps recorded texts where the traces have them.
    """

    seed: int = 0
    programs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    duration_s: Positive | None = None
    scale_tokens: Positive = 8.0
    scale_time: Positive = 2.0
    gap_cap_s: NotNegative = 60.0
    steps_max: Annotated[int, Field(ge=1)] | None = None
    context_tokens_max: Annotated[int, Field(ge=2)] | None = None
    shared_tokens_max: Annotated[int, Field(ge=0)] | None = None
    cycle_tokens_per_s: Positive = 60.0
    text: bool = False
    arrivals: ArrivalProcess = Closed(concurrency=8)
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    tenants: tuple[Tenant, ...] = ()
    background: tuple[Background, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ValueError("two tenants have one name")
        owners = [*(s.tenant for s in self.sources), *(b.tenant for b in self.background)]
        for owner in owners:
            if owner is not None and names and owner not in names:
                raise ValueError(f"no tenant is called {owner!r} ({', '.join(names)})")
        given = [source.programs is not None for source in self.sources]
        counted = all(given)
        if any(given) and not counted:
            raise ValueError("some sources have programs: say how many of each, or of none")
        is_bounded = self.programs is not None or self.duration_s is not None or counted
        processes = [self.arrivals, *(t.arrivals for t in self.tenants if t.arrivals)]
        if not (is_bounded or all(isinstance(one, RecordedArrivals) for one in processes)):
            raise ValueError("say how much: programs or duration_s (or programs of each source)")
        for part in self.background:
            has_own = part.programs is not None or part.trace is not None
            # A loop goes on for as long as it has programs, whatever time there is.
            has_end = self.duration_s is not None and not isinstance(part.arrivals, Closed)
            if not (has_own or has_end):
                raise ValueError("background needs its own programs, or (no loop) a duration_s")
        is_timed = self.duration_s is not None and self.programs is None and not counted
        if is_timed and any(isinstance(one, Closed) for one in processes):
            raise ValueError("closed arrivals need programs: a duration does not bound them")
        return self


def parse_workload(table: dict[str, Any], *, where: str) -> Workload:
    """A `[workload]` table. Raises ConfigError that names `where` and each wrong field."""
    try:
        return Workload.model_validate(table)
    except ValidationError as error:
        lines = [
            f"{where}: {'.'.join(str(part) for part in ('workload', *problem['loc']))}: "
            f"{problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from error


def load_workload(path: Path) -> Workload:
    """The `[workload]` of a TOML file. Raises ConfigError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    table = document.get("workload")
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: no [workload]")
    return parse_workload(table, where=str(path))
