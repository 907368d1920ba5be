"""A ceiling for everything, so that nothing grows until the process dies."""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.model.errors import ConfigError
from agentsched.model.time import MINUTE, SECOND, Nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings of the core. Each has an answer when it is reached: see the comment beside it."""

    programs_max: int = 20_000  # the idlest is forgotten, unserved first; all busy: PROGRAMS_FULL
    program_idle_ns_max: Nanos = Nanos(60 * MINUTE)  # then the program is closed as "idle"
    conversations_per_program_max: int = 64  # the idlest conversation is forgotten
    ready_steps_max: int = 10_000  # Reject(QUEUE_FULL)
    running_steps_per_engine_max: int = 2_048  # steps are held; past their wait bound, WAIT_BOUND
    slow_start_ns: Nanos = Nanos(10 * SECOND)  # one that came back gets its part little by little
    silence_ns: Nanos = Nanos(10 * SECOND)  # nothing moves there: others get what is new
    engine_wait_ns_max: Nanos = Nanos(10 * SECOND)  # with no engine up: Reject(NO_ENGINE)
    wait_ns_max: Nanos = Nanos(120 * SECOND)  # a held step goes next; nowhere to go: Reject
    bypasses_max: int = 1_000  # later steps that go before a held one; then it goes next
    pins_per_engine_max: int = 4_096  # the pin of least value gives way
    pinned_tokens_per_engine_max: int = 50_000_000  # likewise
    pinned_tokens_per_tenant_max: int = 50_000_000  # of one tenant, on one engine; likewise
    warm_ups_per_engine_max: int = 1  # under way at once; further ones wait for their turn
    warm_ups_per_tenant_max: int = 2  # likewise, over all engines
    warm_tokens_per_tenant_a_minute_max: int = 2_000_000  # likewise, begun in any minute
    pin_ttl_ns_max: Nanos = Nanos(10 * MINUTE)  # longer requests are clipped
    tools_per_program_max: int = 256  # the oldest open tool call is forgotten
    story_entries_max: int = 32  # the oldest entries of a program's story fall out
    tenants_max: int = 10_000  # the account served least recently is forgotten, its weight is not
    journal_backlog_max: int = 65_536  # a sink that falls behind drops and counts
    retries_max: int = 2  # dispatches of one step beyond the first

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value < (0 if name in ("retries_max", "bypasses_max") else 1):
                raise ConfigError(f"limit {name} must be positive, not {value}")
