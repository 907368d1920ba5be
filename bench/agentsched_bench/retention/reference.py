"""One fixed course of events for all caches: who calls when, with which prompt.

The engine has no queue here and every call takes the same time whatever is cached, so that all
policies see the same string of references; only then is a clairvoyant's cost a lower bound for all.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from agentsched.model import (
    ConversationId,
    Event,
    Instant,
    StepArrived,
    StepStarted,
    Usage,
    after,
    seconds,
)
from agentsched_bench.sim.clients import CallState, Clients, Start
from agentsched_bench.workload.pieces import split
from agentsched_bench.workload.shape import PlannedConversation, PlannedProgram

#: Seconds of a call beside its work, per token that was never seen before, and per output token.
_CALL_S: Final = 0.15
_PREFILL_S: Final = 60e-6
_DECODE_S: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One call's prompt: the head that it shares with others, and its own tokens after that.

    `keep` own tokens were computed before by this conversation, and are the beginning of what it
    had; `own` are there when the call has ended.
    """

    conversation: ConversationId
    head: str
    head_tokens: int
    keep: int
    own: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Something happens: an event for schedulers, and what it means for caches."""

    at: Instant
    event: Event
    begins: Use | None = None
    ends: Use | None = None
    is_counted: bool = False


@dataclass(slots=True, kw_only=True)
class Reference:
    """Moments in order, and when each conversation's and each head's next use will be."""

    moments: list[Moment] = field(default_factory=list)
    #: Instants at which a conversation calls, and how many of its own tokens it then keeps.
    calls: dict[ConversationId, tuple[list[Instant], list[int]]] = field(default_factory=dict)
    heads: dict[str, list[Instant]] = field(default_factory=dict)
    #: Tokens of calls under way, which 95 in 100 of the time do not exceed.
    running_tokens: int = 0
    #: Mean tokens of conversations between two calls, shared ones counted once.
    paused_tokens: float = 0.0

    def next_call(
        self, conversation: ConversationId, *, now: Instant
    ) -> tuple[Instant, int] | None:
        """When it calls next and what it keeps then; None when it never does."""
        instants, keeps = self.calls[conversation]
        index = bisect_right(instants, now)
        return (instants[index], keeps[index]) if index < len(instants) else None

    def next_head(self, head: str, *, now: Instant) -> Instant | None:
        """When anybody uses this head next."""
        instants = self.heads[head]
        index = bisect_right(instants, now)
        return instants[index] if index < len(instants) else None


class _Course:
    """Plays programs on an engine that never makes anybody wait."""

    def __init__(self) -> None:
        self.now = Instant(0)
        self.reference = Reference()
        self._agenda: list[tuple[Instant, int, Callable[[Instant], None]]] = []
        self._number = 0
        self.clients = Clients(block_size=16, later=self._later, send=self._send)
        #: Programs from this number on are judged.
        self.counted_from = 0
        self._heads: dict[str, tuple[str, int]] = {}

    def play(self) -> Reference:
        while self._agenda:
            self.now, _, deed = heapq.heappop(self._agenda)
            deed(self.now)
        for instants in self.reference.heads.values():
            instants.sort()
        return self.reference

    def _later(self, at: Instant, deed: Callable[[Instant], None]) -> None:
        self._number += 1
        heapq.heappush(self._agenda, (at, self._number, deed))

    def _send(self, call: CallState, event: StepArrived, now: Instant) -> None:
        plan = call.talk.plan
        planned = plan.calls[call.index]
        head, head_tokens = self.head_of(plan)
        kept = planned.keep_tokens + planned.echo_tokens
        use = Use(
            conversation=call.talk.key,
            head=head,
            head_tokens=head_tokens,
            keep=max(0, kept - head_tokens),
            own=planned.prompt_tokens + planned.output_tokens - head_tokens,
        )
        instants, keeps = self.reference.calls.setdefault(call.talk.key, ([], []))
        instants.append(now)
        keeps.append(use.keep)
        if head:
            self.reference.heads.setdefault(head, []).append(now)
        is_counted = call.talk.run.number >= self.counted_from
        moments = self.reference.moments
        moments.append(Moment(at=now, event=event, begins=use, is_counted=is_counted))
        fresh = planned.prompt_tokens - kept
        starts = after(now, seconds(_CALL_S + fresh * _PREFILL_S))
        ends = after(starts, seconds(planned.output_tokens * _DECODE_S))
        usage = Usage(
            prompt_tokens=planned.prompt_tokens,
            cached_tokens=kept,
            output_tokens=planned.output_tokens,
        )

        def start(at: Instant) -> None:
            moments.append(Moment(at=at, event=StepStarted(step=call.step)))

        def finish(at: Instant) -> None:
            moments.append(Moment(at=at, event=self.clients.finished(call, usage=usage), ends=use))
            self.clients.answered(call, now=at)

        self._later(starts, start)
        self._later(ends, finish)

    def head_of(self, plan: PlannedConversation) -> tuple[str, int]:
        """The name and length of what it shares with other conversations; programs of one agent
        share one head, of which each uses the beginning."""
        found = self._heads.get(plan.conversation)
        if found is None:
            pieces, _ = split(plan.calls[0].pieces, plan.system_tokens)
            tokens = sum(piece.tokens for piece in pieces)
            is_own = not pieces or pieces[0].stream.startswith("own/")
            name = pieces[0].stream if len(pieces) == 1 else repr(pieces)
            found = self._heads[plan.conversation] = ("", 0) if is_own else (name, tokens)
        return found


def make_reference(
    learnt: Sequence[PlannedProgram],
    judged: Sequence[PlannedProgram],
    *,
    rate: float,
    rng: Random,
) -> Reference:
    """The course of Poisson arrivals, `rate` programs a second: first `learnt`, then `judged`."""
    course = _Course()
    course.counted_from = len(learnt)
    at = 0.0
    for number, plan in enumerate((*learnt, *judged)):
        agent = course.head_of(plan.main)[0] or "agent"
        course.clients.start(
            Start(plan=plan, agent=agent, copy=str(number), at=Instant(seconds(at)))
        )
        at += rng.expovariate(rate)
    reference = course.play()
    _measure(reference)
    return reference


def _measure(reference: Reference) -> None:
    """How much memory calls and pauses take, over time."""
    running: dict[ConversationId, int] = {}
    paused: dict[ConversationId, int] = {}
    busy: list[tuple[int, int]] = []
    area, before = 0.0, reference.moments[0].at
    begun = before
    running_now = paused_now = 0
    for moment in reference.moments:
        area += paused_now * (moment.at - before)
        busy.append((running_now, moment.at - before))
        before = moment.at
        use = moment.begins or moment.ends
        if use is None:
            continue
        key = use.conversation
        running_now -= running.pop(key, 0)
        paused_now -= paused.pop(key, 0)
        if moment.begins is not None:
            running[key] = use.own
            running_now += use.own
        elif (call := reference.next_call(key, now=moment.at)) is not None:
            paused[key] = call[1]
            paused_now += call[1]
    reference.paused_tokens = area / max(1, before - begun)
    left = 0.05 * (before - begun)
    for tokens, span in sorted(busy, reverse=True):
        left -= span
        if left <= 0:
            reference.running_tokens = tokens
            return
