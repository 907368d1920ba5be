"""The six questions that policies answer.

A policy learns in `observe` and nowhere else. Every other method is a query: asked twice it gives
one answer and changes nothing, so that a dry run and a replay are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

from agentsched.model import Choice, ConversationId, Event, Instant, Nanos, Prefix
from agentsched.policy.views import EngineView, PauseView, StepView, TenantView, World

#: Smaller is sooner. Keys of one policy have one length; the kernel breaks ties by arrival and id.
SortKey = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Let the step in. `releases` are paused conversations whose KV is given up for it."""

    releases: tuple[ConversationId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Not now. Asked again after every event, and at `until` where time alone may help.

    `blocks_others`: later steps in the order must not overtake this one on the same engine.
    """

    reason: str
    until: Instant | None = None
    blocks_others: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedAway:
    """Not at all; the client may come back after `retry_after`."""

    reason: str
    retry_after: Nanos | None = None


Admission = Admitted | Held | TurnedAway


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Keep a paused conversation's KV for `ttl`; `value` ranks it (greater is dearer).

    `prefix` is what to keep of it: a beginning of its context, None for all.
    """

    ttl: Nanos
    value: float = 0.0
    prefix: Prefix | None = None


class Policy(Protocol):
    """What all policies share.

    Optional attribute: `reads_gauges`, true where what an engine's gauges say while it serves
    (`EngineReported.load`, `EngineView.load`) bears on what is decided. The simulator looks at its
    engines as often as the proxy does where a policy says so; for all others it saves the turns.
    """

    def observe(self, event: Event, *, now: Instant) -> None:
        """Learn from an event, after the scheduler applied it and before anything is decided.

        A program ends for a policy with `ProgramClosed`; the scheduler makes one up where nobody
        said so. It comes twice when steps were still active at the first: the second is the end.
        """
        ...


class OrderPolicy(Policy, Protocol):
    """Which ready step is next."""

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        """The step's place in the order; smaller is sooner."""
        ...

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        """The number for an engine's own queue: lower first, 0 to leave its order alone."""
        ...


class AdmitPolicy(Policy, Protocol):
    """Whether a step may go to an engine now."""

    def admit(
        self, step: StepView, engine: EngineView, world: World, *, now: Instant
    ) -> Admission: ...

    def has_room(self, engine: EngineView, world: World, *, now: Instant) -> bool:
        """False when no step whatever would be let in to this engine now.

        Asked once an engine and turn, so that a full house costs nothing however many wait. True
        when in doubt; a policy that leaves this method out says True.
        """
        ...

    # Optional as well, and not part of the protocol's type: `shuts_out(engines, world, *, now) ->
    # Held | None`. A `Held` (without `until` and `blocks_others`) when `admit` would say just that
    # on each of `engines` (those that are up and have one model) to every waiting step for that
    # model which is alone in a program that was never sent anything, unless its wait is up, for the
    # rest of this turn, whatever is sent in it. So a queue of thousands of newcomers costs one
    # question for each model and turn. None when in doubt.


class PlacePolicy(Policy, Protocol):
    """How good an engine is for a step."""

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        """Greater is better; only the order counts. Ties go to the smaller engine id.

        Where comparing all engines is dear, a policy may have a method `best(step, engines, world,
        *, now) -> EngineView` that says the same at once: the engine of the greatest score.
        """
        ...


class PinPolicy(Policy, Protocol):
    """Whether and how long to keep a paused conversation's KV, seen from now.

    Asked while the pressure gate is open: as a pause begins; as the gate opens, of what is resident
    then and has no pin; and as a tool begins that no answer called. So `now` may be long after
    `pause.since`, and the TTL runs from now. Not asked again as a pin expires or gives way: the
    value that it was given ranks it to its end.
    """

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None: ...


class PrefetchPolicy(Policy, Protocol):
    """When to warm a paused conversation's prefix for its next step.

    Asked while the pressure gate is open: as a pause begins; as the gate opens, of what is resident
    then; as a tool of the pause ends by a report, or one begins that no answer called; and as an
    engine says that it has the conversation no more (our plugin does). That something is evicted
    while it pauses, as far as we know, is by itself no reason to ask.
    """

    def warm_at(self, pause: PauseView, world: World, *, now: Instant) -> Instant | None:
        """The instant to warm it (in the past: now), None for never."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a tenant is charged for, in units of one computed prompt token.

    `output` for a token of an answer, `memory` for a token of KV that is kept for a second while
    its conversation pauses. They are constants, so that a bill can be checked and a bound proved.
    """

    prefill: float = 1.0
    output: float = 4.0
    memory: float = 0.02

    def __post_init__(self) -> None:
        for price in (self.prefill, self.output, self.memory):
            if not (isfinite(price) and price >= 0):
                raise ValueError(f"a price is a number of at least 0, not {price}")


class SharePolicy(Policy, Protocol):
    """Which tenant is served next. The order of its programs is the order policy's.

    Optional attributes: `prices`, where a tenant is to be charged other than the usual ones;
    `is_neutral`, true where tenants do not matter and nobody need ask; and a method
    `may_continue(tenant, world, *, now) -> bool`, which lets a tenant's conversations whose KV is
    resident go before the turn of other tenants as long as it says True.
    """

    def rank_tenant(self, tenant: TenantView, world: World, *, now: Instant) -> SortKey | None:
        """The tenant's place among those that wait; smaller is sooner.

        None means that tenants do not matter: all steps wait in one line. Asked again after each
        step that is sent, since that is charged to its tenant at once.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A named set of policies. `source` is the paper or idea, `summary` one sentence for people.

    Found by name through entry points of the group `agentsched.profiles`.
    """

    name: str
    summary: str
    source: str = ""
    order: Choice = Choice(name="fcfs")
    admit: Choice = Choice(name="open")
    place: Choice = Choice(name="round-robin")
    pin: Choice = Choice(name="never")
    prefetch: Choice = Choice(name="never")
    share: Choice = Choice(name="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """One policy for each question, and the names of the profile and policies that were chosen.

    `choices` says with which parameters each was made, where it was made by name: a change at run
    time keeps the policies whose choice stays, with all that they have learnt.
    """

    profile: str
    names: Mapping[str, str]
    order: OrderPolicy
    admit: AdmitPolicy
    place: PlacePolicy
    pin: PinPolicy
    prefetch: PrefetchPolicy
    share: SharePolicy
    choices: Mapping[str, Choice] = field(default_factory=dict)
