"""The agents: which call comes when, and what comes of it.

A conversation sends its calls one after the other; after an answer its tools take their time, and
sub-agents start beside them. Where a sub-agent is waited for, the rest of the pause begins when the
last of them has ended. Clients try again when they are turned away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final

from agentsched.model import (
    SECOND,
    CallId,
    ConversationId,
    Instant,
    Lineage,
    Nanos,
    ProgramId,
    StepArrived,
    StepClass,
    StepFinished,
    StepId,
    TenantId,
    ToolCall,
    ToolName,
    Usage,
    after,
    seconds,
)
from agentsched_bench.engine.cost import CostModel
from agentsched_bench.engine.requests import Generation
from agentsched_bench.engine.tokens import RunChain
from agentsched_bench.oracles.bound import call_s
from agentsched_bench.sim.prompts import SimPrompts
from agentsched_bench.workload.shape import PlannedCall, PlannedConversation, PlannedProgram

#: Tries of one call, as a client library that gives up at some point.
ATTEMPTS_MAX: Final = 20
_TENANT: Final = TenantId("sim")
_NO_TIME: Final = Nanos(0)


class Endings(StrEnum):
    """How anyone can tell that a program is over."""

    SPOKEN = "spoken"  # its last answer asks for no tool
    DECLARED = "declared"  # its last call says so
    RECORDED = "recorded"  # its last answer asks for what it asked for: `submit`, and no return
    SILENT = "silent"  # nothing tells


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A program that begins at an instant; `copy` keeps its content apart from its twins'.

    `deadline_s` is what it says of when it is wanted, in seconds from its beginning. One that
    `is_silent` does not declare that it is over where others do.
    """

    plan: PlannedProgram
    at: Instant
    agent: str = ""
    copy: str = ""
    tenant: str = ""
    model: str = ""
    #: The closed loop that it waits for; empty: it starts then, whoever else runs.
    pool: str = ""
    deadline_s: float | None = None
    is_silent: bool = False


@dataclass(slots=True, kw_only=True)
class CallState:
    """One call in flight, under the id of its current try."""

    step: StepId
    talk: Talk
    index: int
    sent_at: Instant
    tries: int = 1
    #: The id of its try before, of which this one is the retry.
    retries: StepId | None = None
    started_at: Instant | None = None
    #: How often it was sent to an engine, over all of its tries.
    sendings: int = 0
    #: Where the host has noted how long it was held, and how long it waited for a first token.
    held_place: int | None = None
    waited_place: int | None = None


@dataclass(slots=True, kw_only=True)
class Talk:
    """One conversation of a running program."""

    plan: PlannedConversation
    run: ProgramRun
    key: ConversationId
    prompts: SimPrompts
    next_call: int = 0
    #: Sub-agents that its next call waits for.
    awaited: int = 0
    #: It was called, or is about to be.
    is_begun: bool = False
    #: When it calls again, while it pauses; None where that hangs on sub-agents, or on its answer.
    returns_at: Instant | None = None
    is_over: bool = False
    #: Its latest call is not answered yet.
    is_waiting: bool = False

    @property
    def is_main(self) -> bool:
        return self.plan.parent is None


@dataclass(slots=True, kw_only=True)
class ProgramRun:
    """One program, from its start to the end of its last call."""

    number: int
    plan: PlannedProgram
    program: ProgramId
    agent: str
    started_at: Instant
    talks: dict[str, Talk] = field(default_factory=dict)
    ended_at: Instant | None = None
    is_failed: bool = False
    calls: int = 0
    first_token_wait_max: Nanos = _NO_TIME
    tenant: TenantId = _TENANT
    model: str = ""
    #: The closed loop it is in; empty: none.
    pool: str = ""
    deadline_s: float | None = None
    is_silent: bool = False
    #: When it is wanted; known once it has begun.
    deadline: Instant | None = None


Later = Callable[[Instant, Callable[[Instant], None]], None]


class Clients:
    """All agents. `later` plans a deed, `send` hands a call to the proxy; `ended` hears of each
    conversation that is over.

    Answers name the tools of the pause that follows unless nothing tells that a program is over;
    `tells_tools` says otherwise. A call is tried `attempts_max` times.
    """

    def __init__(
        self,
        *,
        block_size: int,
        later: Later,
        send: Callable[[CallState, StepArrived, Instant], None],
        endings: Endings = Endings.SPOKEN,
        token_error: float = 0.0,
        cost: CostModel | None = None,
        ended: Callable[[ConversationId], None] | None = None,
        tells_tools: bool | None = None,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> None:
        self._cost = cost
        self._ended = ended
        #: Seconds of the calls of a conversation from each on, for those who may know.
        self._tails: dict[str, list[float]] = {}
        self._block_size = block_size
        self._later = later
        self._send = send
        self._endings = endings
        self._tells_tools = endings is not Endings.SILENT if tells_tools is None else tells_tools
        self._attempts_max = attempts_max
        self._token_error = token_error
        self.runs: list[ProgramRun] = []
        self.unfinished = 0
        self._calls = 0
        #: How many programs each closed loop has room for, and who waits for it, first come first.
        self.rooms: dict[str, int] = {}
        self._outside: dict[str, deque[tuple[ProgramRun, str]]] = {}
        #: Conversations of running programs.
        self._talks: dict[ConversationId, Talk] = {}

    def start(self, start: Start) -> None:
        """Let a program begin then; in a closed loop when it has room, in the order of starts."""
        number = len(self.runs)
        run = ProgramRun(
            number=number,
            plan=start.plan,
            program=ProgramId(f"p{number}"),
            agent=start.agent,
            started_at=start.at,
            tenant=TenantId(start.tenant) if start.tenant else _TENANT,
            model=start.model,
            pool=start.pool,
            deadline_s=start.deadline_s,
            is_silent=start.is_silent,
        )
        self.runs.append(run)
        self.unfinished += 1
        begin = self._arrive if start.pool else self._begin
        self._later(start.at, partial(begin, run, start.copy))

    def _arrive(self, run: ProgramRun, copy: str, now: Instant) -> None:
        if not self.rooms[run.pool]:
            self._outside.setdefault(run.pool, deque()).append((run, copy))
            return
        self.rooms[run.pool] -= 1
        run.started_at = now
        self._begin(run, copy, now)

    def _leave(self, pool: str, *, now: Instant) -> None:
        """A program of a closed loop is over: the next one of those who wait begins."""
        self.rooms[pool] += 1
        waiting = self._outside.get(pool)
        if waiting:
            self._later(now, partial(self._arrive, *waiting.popleft()))

    def _begin(self, run: ProgramRun, copy: str, now: Instant) -> None:
        """What a program says is kept only while it runs."""
        if run.deadline_s is not None:
            run.deadline = after(now, seconds(run.deadline_s))
        for index, conversation in enumerate(run.plan.conversations):
            run.talks[conversation.conversation] = Talk(
                plan=conversation,
                run=run,
                key=ConversationId(f"{run.program}/{index}"),
                prompts=SimPrompts(
                    conversation,
                    copy=copy,
                    block_size=self._block_size,
                    token_error=self._token_error,
                ),
            )
            self._talks[run.talks[conversation.conversation].key] = run.talks[
                conversation.conversation
            ]
        main = run.talks[run.plan.main.conversation]
        main.is_begun = True
        self._call(main, now)

    def prefix_of(self, conversation: ConversationId) -> tuple[RunChain, int] | None:
        """All of a conversation so far, prompt and answer of its latest call; None before one."""
        talk = self._talks.get(conversation)
        if talk is None or not talk.next_call:
            return None
        planned = talk.plan.calls[talk.next_call - 1]
        tokens = planned.prompt_tokens + planned.output_tokens
        return talk.prompts.chain(talk.next_call - 1), tokens

    def generation(self, call: CallState, *, priority: int = 0) -> Generation:
        """What the engine is asked."""
        planned = self._planned(call)
        return Generation(
            id=call.step,
            chain=call.talk.prompts.chain(call.index),
            prompt_tokens=planned.prompt_tokens,
            output_tokens=planned.output_tokens,
            priority=priority,
        )

    def finished(self, call: CallState, *, usage: Usage) -> StepFinished:
        """The event of a complete answer."""
        talk = call.talk
        is_last = call.index == len(talk.plan.calls) - 1
        endings = self._endings_of(talk.run)
        pauses = not is_last or (endings is Endings.RECORDED and self._planned(call).tools)
        calls = self._tool_calls(call) if pauses and self._tells_tools else ()
        reason = "tool_calls" if calls else "stop"
        if endings is Endings.SILENT or (pauses and not calls):
            # An answer of an exact length, whoever is told of tools beside it.
            reason = "length"
        return StepFinished(
            step=call.step,
            usage=usage,
            tool_calls=calls,
            finish_reason=reason,
            prefix=talk.prompts.answered(call.index),
        )

    def _tool_calls(self, call: CallState) -> tuple[ToolCall, ...]:
        tools = self._planned(call).tools or ("tool",)
        return tuple(
            ToolCall(call_id=_call_id(call.talk, call.index, number), tool=ToolName(tool))
            for number, tool in enumerate(tools)
        )

    # What only an oracle may ask.

    def foresee(self, call: CallState, *, now: Instant) -> None:
        """Fix the end of the pause that an answer begins, before anyone decides on it."""
        talk, plan = call.talk, call.talk.plan
        talk.is_waiting = False
        waits = any(
            child.joins and child.parent == plan.conversation and child.parent_call == call.index
            for child in talk.run.plan.children
        )
        if not waits and call.index + 1 < len(plan.calls):
            talk.returns_at = after(now, seconds(self._planned(call).pause_s))

    def returns_at(self, conversation: ConversationId) -> Instant | None:
        """When a paused conversation calls again, where that is certain."""
        talk = self._talks.get(conversation)
        return talk.returns_at if talk is not None else None

    def steps_left(self, program: ProgramId) -> int | None:
        """Calls that a running program has not sent yet."""
        run = self.runs[int(program[1:])]
        if not run.talks:
            return None
        return sum(len(talk.plan.calls) - talk.next_call for talk in run.talks.values())

    def work_left_s(self, program: ProgramId) -> float | None:
        """Seconds that all calls which are not answered yet take alone, prefixes cached."""
        run = self.runs[int(program[1:])]
        if self._cost is None:
            return None
        return sum(
            self._tail_s(talk.plan, talk.next_call - talk.is_waiting)
            for talk in run.talks.values()
            if not talk.is_over
        )

    def _tail_s(self, plan: PlannedConversation, first: int) -> float:
        known = self._tails.get(plan.conversation)
        if known is None:
            assert self._cost is not None
            known = [0.0]
            for call in reversed(plan.calls):
                known.append(known[-1] + call_s(call, self._cost))
            known.reverse()
            self._tails[plan.conversation] = known
        return known[max(0, first)]

    def answered(self, call: CallState, *, now: Instant) -> None:
        """The client has its answer: its tools begin to run, and sub-agents with them."""
        talk = call.talk
        run = talk.run
        run.calls += 1
        for child in run.plan.children:
            if child.parent == talk.plan.conversation and child.parent_call == call.index:
                spawned = run.talks[child.conversation]
                talk.awaited += child.joins
                spawned.is_begun = True
                at = after(now, seconds(child.start_delay_s))
                self._later(at, partial(self._call, spawned))
        if not talk.awaited:
            self._pause(talk, now=now)

    def turned_away(self, call: CallState, *, wait: Nanos | None, now: Instant) -> None:
        """The client tries again later, as libraries do; in the end it gives up."""
        if call.tries >= self._attempts_max:
            call.talk.run.is_failed = True
            self._end(call.talk, now=now)
            return
        at = after(now, wait if wait is not None else SECOND)
        self._later(at, partial(self._again, call))

    def _pause(self, talk: Talk, *, now: Instant) -> None:
        planned = talk.plan.calls[talk.next_call - 1]
        if talk.next_call == len(talk.plan.calls):
            self._end(talk, now=now)
            return
        self._later(after(now, seconds(planned.pause_s)), partial(self._call, talk))

    def _end(self, talk: Talk, *, now: Instant) -> None:
        run = talk.run
        talk.is_over = True
        if self._ended is not None:
            self._ended(talk.key)
        if talk.plan.parent is not None and talk.plan.joins:
            parent = run.talks[talk.plan.parent]
            parent.awaited -= 1
            if not parent.awaited and not parent.is_over:
                # Its parent's last answer may have waited for it: then this ends the program.
                self._pause(parent, now=now)
        if run.ended_at is None and all(
            talk.is_over for talk in run.talks.values() if talk.is_begun
        ):
            run.ended_at = now
            self.unfinished -= 1
            for over in run.talks.values():
                del self._talks[over.key]
            run.talks = {}
            if run.pool:
                self._leave(run.pool, now=now)

    def _call(self, talk: Talk, now: Instant) -> None:
        talk.returns_at = None
        talk.is_waiting = True
        call = CallState(step=self._mint(), talk=talk, index=talk.next_call, sent_at=now)
        talk.next_call += 1
        self._send(call, self._arrival(call), now)

    def _again(self, call: CallState, now: Instant) -> None:
        call.retries, call.step = call.step, self._mint()
        call.tries += 1
        self._send(call, self._arrival(call), now)

    def _mint(self) -> StepId:
        self._calls += 1
        return StepId(f"s{self._calls}")

    def _arrival(self, call: CallState) -> StepArrived:
        talk = call.talk
        run = talk.run
        parent = run.talks[talk.plan.parent].key if talk.plan.parent is not None else None
        before = call.index - 1
        answers: Sequence[CallId] = ()
        if call.index and self._tells_tools:
            tools = talk.plan.calls[before].tools or ("tool",)
            answers = [_call_id(talk, before, number) for number in range(len(tools))]
        return StepArrived(
            step=call.step,
            program=run.program,
            conversation=talk.key,
            tenant=run.tenant,
            prompt_tokens=talk.prompts.prompt_tokens(call.index),
            prefixes=talk.prompts.prefixes(call.index),
            step_class=StepClass.STEP if talk.is_main else StepClass.SUBAGENT,
            lineage=_lineage(talk, call.index),
            parent_conversation=parent,
            answers=tuple(answers),
            retries=call.retries,
            model=run.model,
            agent=run.agent,
            deadline=run.deadline,
            is_last=self._endings_of(run) is Endings.DECLARED and self._is_last(call),
        )

    def _endings_of(self, run: ProgramRun) -> Endings:
        declares = self._endings is Endings.DECLARED
        return Endings.SILENT if declares and run.is_silent else self._endings

    def _is_last(self, call: CallState) -> bool:
        return call.talk.is_main and call.index == len(call.talk.plan.calls) - 1

    def _planned(self, call: CallState) -> PlannedCall:
        return call.talk.plan.calls[call.index]


def _lineage(talk: Talk, index: int) -> Lineage:
    if index:
        return Lineage.EXTENDS
    return Lineage.NEW if talk.is_main else Lineage.SPAWNED


def _call_id(talk: Talk, index: int, number: int) -> CallId:
    return CallId(f"{talk.key}/{index}/{number}")
