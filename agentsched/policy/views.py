"""What a policy may see: the scheduler's own records through read-only protocols.

Views are live, not copies: they are valid during one call and must not be kept. Every mapping
iterates in insertion order, so that a policy which walks one decides the same on every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from agentsched.model import (
    CallId,
    Capabilities,
    ConversationId,
    EngineId,
    EngineLoad,
    Instant,
    Lineage,
    Nanos,
    Prefix,
    ProgramId,
    StepClass,
    StepId,
    StepState,
    TenantId,
    ToolName,
)


class StepView(Protocol):
    """One LLM call."""

    @property
    def step(self) -> StepId: ...
    @property
    def program(self) -> ProgramId: ...
    @property
    def conversation(self) -> ConversationId: ...
    @property
    def tenant(self) -> TenantId: ...
    @property
    def state(self) -> StepState: ...
    @property
    def step_class(self) -> StepClass: ...
    @property
    def lineage(self) -> Lineage: ...
    @property
    def arrived_at(self) -> Instant: ...
    @property
    def bypassed(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def prefixes(self) -> tuple[Prefix, ...]: ...
    @property
    def model(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def deadline(self) -> Instant | None: ...
    @property
    def output_tokens_expected(self) -> int | None: ...
    @property
    def output_tokens_max(self) -> int | None: ...
    @property
    def engine(self) -> EngineId | None: ...
    @property
    def dispatched_at(self) -> Instant | None: ...
    @property
    def started_at(self) -> Instant | None: ...


class ConversationView(Protocol):
    """One KV lineage of a program.

    `context_tokens` is prompt plus answer of its latest step; `engine` is where its KV was last
    computed; `is_resident` whether we still count that KV as held there; `paused_at` is when its
    last running step ended, None while a step of it waits or runs; `growth_tokens` the mean
    growth of its context per step.
    """

    @property
    def conversation(self) -> ConversationId: ...
    @property
    def program(self) -> ProgramId: ...
    @property
    def parent(self) -> ConversationId | None: ...
    @property
    def engine(self) -> EngineId | None: ...
    @property
    def is_resident(self) -> bool: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def growth_tokens(self) -> float: ...
    @property
    def prefixes(self) -> tuple[Prefix, ...]: ...
    @property
    def steps_done(self) -> int: ...
    @property
    def active_steps(self) -> int: ...
    @property
    def paused_at(self) -> Instant | None: ...
    @property
    def is_over(self) -> bool:
        """Its latest answer asked for no tool: as far as anyone can tell it was the last."""
        ...


class ProgramView(Protocol):
    """One agent run."""

    @property
    def program(self) -> ProgramId: ...
    @property
    def tenant(self) -> TenantId: ...
    @property
    def parent(self) -> ProgramId | None: ...
    @property
    def agent(self) -> str: ...
    @property
    def ordinal(self) -> int:
        """How many programs were opened before it: a stable arrival order."""
        ...

    @property
    def opened_at(self) -> Instant: ...
    @property
    def last_at(self) -> Instant: ...
    @property
    def deadline(self) -> Instant | None: ...
    @property
    def steps_done(self) -> int: ...
    @property
    def was_served(self) -> bool:
        """Whether it has begun: a step of it was answered, here or by another replica.

        Batch steps count, which `steps_done` leaves out; titles, probes and the like do not.
        """
        ...

    @property
    def active_steps(self) -> int: ...
    @property
    def served_tokens(self) -> int:
        """Uncached prompt tokens plus output tokens of its finished steps."""
        ...

    @property
    def conversations(self) -> Mapping[ConversationId, ConversationView]: ...


class EngineView(Protocol):
    """One serving engine, as we know it."""

    @property
    def engine(self) -> EngineId: ...
    @property
    def is_up(self) -> bool:
        """It answers, and is not being drained."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def load(self) -> EngineLoad: ...
    @property
    def running_steps(self) -> int:
        """Steps that we sent to it and that have not ended."""
        ...

    @property
    def peer_steps(self) -> int:
        """Steps that other replicas of this proxy have there."""
        ...

    @property
    def peer_tokens(self) -> int:
        """Tokens that those replicas keep there."""
        ...

    @property
    def running_tokens(self) -> int:
        """Prompt tokens of those steps."""
        ...

    @property
    def starting_tokens(self) -> int:
        """Prompt tokens of those that have no first token yet: prefill in flight."""
        ...

    @property
    def pinned_tokens(self) -> int: ...
    @property
    def is_contended(self) -> bool:
        """Whether programs under way want more of its cache than it has; True when unknown."""
        ...

    @property
    def wanted_tokens(self) -> int:
        """What they want, shared prefixes counted once."""
        ...

    @property
    def warm_paid(self) -> float:
        """The share of lately warmed tokens that a next step found cached; 1 at first."""
        ...

    @property
    def dispatched_total(self) -> int:
        """Steps sent to it so far; one that joins late starts level with the others."""
        ...

    @property
    def reload_ns(self) -> float:
        """Nanoseconds per token of a conversation that comes back, from the cheapest source."""
        ...

    def reload(self, tokens: int) -> Nanos:
        """How long it takes to bring so many tokens of a conversation back, were it alone.

        By the engine's learnt law where that has earned confidence, else by `reload_ns`.
        """
        ...

    @property
    def prefill_ns(self) -> float:
        """Nanoseconds to compute one prompt token: learnt, a guess at first."""
        ...

    @property
    def is_priced(self) -> bool:
        """Whether a step taught `prefill_ns`: until then it says nothing of this engine."""
        ...

    @property
    def decode_ns(self) -> float:
        """Nanoseconds for one output token under its usual load: learnt, a guess at first."""
        ...

    def cold_tokens(self, *, now: Instant) -> int:
        """Prompt tokens that it is computing now: of steps without a first token so far.

        What is reloaded from a tier counts for the time it takes, in computed tokens.
        """
        ...

    def cold_until(self, *, now: Instant) -> Instant | None:
        """When the first of those should be done, were its first token not to be seen."""
        ...


class PauseView(Protocol):
    """A conversation whose step just ended, or that has been waiting for its tools since."""

    @property
    def program(self) -> ProgramId: ...
    @property
    def conversation(self) -> ConversationId: ...
    @property
    def tenant(self) -> TenantId: ...
    @property
    def tools(self) -> Mapping[CallId, ToolName]:
        """Tool calls that it waits for, oldest first."""
        ...

    @property
    def since(self) -> Instant: ...
    @property
    def engine(self) -> EngineId: ...
    @property
    def prefix(self) -> Prefix: ...


class ReturnView(Protocol):
    """When a paused conversation comes back to the engine, seen from now."""

    @property
    def has_skill(self) -> bool:
        """Whether it has shown to tell more than a constant; if not, it is the constant."""
        ...

    def probability_within(self, span: Nanos) -> float:
        """The probability that it comes back within so much time from now."""
        ...

    def chances(self, spans: Sequence[Nanos]) -> Sequence[float]:
        """`probability_within` of each of these spans."""
        ...

    def quantile(self, share: float) -> Nanos | None:
        """The time from now within which it does with this probability; None: perhaps never."""
        ...


class GraphView(Protocol):
    """What the execution graph of a program says about its future."""

    def steps_left(self) -> float | None:
        """Expected number of steps to come; None when it has no opinion."""
        ...

    def critical_path_left(self) -> float | None:
        """Expected number of those that must follow one another; None likewise."""
        ...

    def fan_out(self) -> int:
        """Conversations that have a live step at this moment, and open sub-programs."""
        ...

    def is_waiting_for_children(self) -> bool:
        """Whether a conversation pauses until its sub-agents or sub-programs are done."""
        ...

    def subagents_beside(self, conversation: ConversationId) -> int | None:
        """How many others the join of a sub-agent waits for; None: nobody waits for this one."""
        ...

    def subprograms_beside(self, program: ProgramId) -> int | None:
        """How many others the join of a sub-program waits for; None: nobody waits for this one."""
        ...

    def next_tools(self, conversation: ConversationId) -> tuple[tuple[ToolName, float], ...]:
        """Tools by how likely the next answer calls them, the likeliest first.

        `(end)` among them stands for an answer that calls none. Empty where nothing is known.
        """
        ...

    def returns(self, conversation: ConversationId, *, now: Instant) -> ReturnView | None:
        """When a paused conversation comes back; None for one that is not paused."""
        ...

    def last_pause_chance(self, conversation: ConversationId) -> float:
        """How likely its pause is the last: nothing more will come. 0 for one not paused."""
        ...

    def expected_return(self, conversation: ConversationId, *, now: Instant) -> Instant | None:
        """The instant at which it should: declared, else forecast; in the past when overdue."""
        ...


class TenantView(Protocol):
    """Who pays, and for what so far."""

    @property
    def tenant(self) -> TenantId: ...
    @property
    def weight(self) -> float:
        """Its share relative to others; 1.0 is ordinary."""
        ...

    @property
    def programs(self) -> Iterable[ProgramId]:
        """Its live programs, the one opened first coming first."""
        ...

    @property
    def waiting_steps(self) -> int: ...
    @property
    def running_steps(self) -> int: ...
    def service(self, *, now: Instant) -> float:
        """Weighted virtual service: what it was charged, by its weight, in `Prices` units.

        Includes what its running steps will probably cost and the KV that it keeps while it
        pauses. A tenant that comes back from idle is lifted to those that waited, so that nobody
        saves up a claim; hence only differences between tenants that wait mean anything.
        """
        ...


class World(Protocol):
    """Everything outside the thing that is being decided."""

    @property
    def programs(self) -> Mapping[ProgramId, ProgramView]: ...
    @property
    def engines(self) -> Mapping[EngineId, EngineView]: ...
    @property
    def waiting_steps(self) -> int: ...
    @property
    def wait_ns_max(self) -> int:
        """The operator's bound on a held step's wait."""
        ...

    @property
    def bypasses_max(self) -> int:
        """The operator's bound on the later steps that may go before a held one."""
        ...

    def served(self, tenant: TenantId) -> float:
        """Weighted service that a tenant has received: served tokens divided by its weight."""
        ...

    def tenant(self, tenant: TenantId) -> TenantView:
        """A tenant's account. Of one that was never seen, an empty one."""
        ...

    def least_service(self, *, now: Instant) -> float:
        """The least weighted virtual service of a tenant that has a step waiting; 0 if none."""
        ...

    def conversation(self, step: StepView) -> ConversationView:
        """The conversation that a step belongs to."""
        ...

    def graph(self, program: ProgramId) -> GraphView | None:
        """The program's execution graph, where one is built."""
        ...

    def resident(self, engine: EngineId) -> Iterable[ConversationView]:
        """Conversations whose KV is counted as held on an engine, running and paused ones."""
        ...

    def resident_tokens(self, engine: EngineId) -> int:
        """Tokens of those, shared prefixes counted once, and of what other replicas keep there."""
        ...

    def own_tokens(self, conversation: ConversationId) -> int:
        """Resident tokens that it shares with nobody: what letting go of it would free."""
        ...

    def missing_tokens(self, step: StepView, engine: EngineId) -> int:
        """Tokens of its prompt that no resident conversation of this engine has computed."""
        ...
