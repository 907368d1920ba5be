"""A synthetic host on virtual time: many programs, few engines, and everything that can go wrong.

It makes journals that cover every event and exercises the scheduler's promises; it models no engine
and measures nothing. One seed, one course of events.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import assert_never

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    MILLISECOND,
    SECOND,
    CallId,
    Cancel,
    CancelReason,
    Capabilities,
    Choice,
    Command,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    EngineUnanswered,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Lineage,
    PeerReported,
    Pin,
    PinId,
    Prefetch,
    Prefix,
    PrefixId,
    ProgramClosed,
    ProgramId,
    ProgramOpened,
    Reconfigured,
    Reject,
    ServedElsewhere,
    StepArrived,
    StepCancelled,
    StepClass,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    StepState,
    TenantConfigured,
    TenantId,
    TimerFired,
    ToolCall,
    ToolFinished,
    ToolName,
    ToolStarted,
    Unpin,
    Usage,
    WorkflowDeclared,
)

TOOLS = ("bash", "edit", "search")
_WORKFLOW = """{"name": "fix", "start": "look", "steps": {
    "look": {"tools": ["search"], "next": {"look": 0.5, "edit": 0.5}},
    "edit": {"tools": ["edit"], "next": ["done"]}, "done": {}}}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmShape:
    """How large and how rough a swarm is. Rates are chances for each occasion."""

    programs: int = 12
    steps_per_program: int = 6
    engines: int = 2
    tenants: int = 3
    arrival_ms_max: int = 20_000
    fault_rate: float = 0.05
    #: KV tokens of each engine: small ones are under pressure.
    kv_tokens: int = 20_000
    #: Changes from outside the programs: other policies, what other replicas do, workflows.
    meddling: int = 0


@dataclass(slots=True, kw_only=True)
class _Agent:
    """One program's script."""

    program: ProgramId
    tenant: TenantId
    steps_left: int
    context_tokens: int
    conversations: int = 1
    answers: tuple[CallId, ...] = ()
    active: int = 0
    #: Where another replica served it last.
    home: EngineId | None = None


@dataclass(slots=True, kw_only=True)
class SwarmOutcome:
    """What became of a swarm. Keys are step ids, each counted once for an ending."""

    arrived: dict[StepId, Instant] = field(default_factory=dict)
    answered: dict[StepId, Instant] = field(default_factory=dict)
    dispatches: int = 0
    rejects: int = 0
    pinned: dict[PinId, int] = field(default_factory=dict)
    unpinned: dict[PinId, int] = field(default_factory=dict)
    waits: list[int] = field(default_factory=list)


class Swarm:
    """Drives one scheduler to quiescence. `on_turn` sees every journal entry."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        seed: int,
        shape: SwarmShape,
        on_turn: Callable[[JournalEntry], None],
    ) -> None:
        self._scheduler = scheduler
        self._random = Random(seed)
        self._shape = shape
        self._on_turn = on_turn
        #: (instant, number, event or a deed that makes one when its time comes).
        self._agenda: list[tuple[int, int, Event | Callable[[], Event | None]]] = []
        self._number = 0
        self._now = 0
        self._agents: dict[ProgramId, _Agent] = {}
        self._owner: dict[StepId, _Agent] = {}
        self._waiting_since: dict[StepId, int] = {}
        self._tries: dict[StepId, int] = {}
        self._engines = [EngineId(f"e{number}") for number in range(shape.engines)]
        self.outcome = SwarmOutcome()

    def run(self) -> SwarmOutcome:
        """Play everything to its end: no step active, no pin, nothing planned."""
        self._set_up()
        while True:
            deadline = self._scheduler.next_deadline()
            if self._agenda and (deadline is None or self._agenda[0][0] <= deadline):
                at, _, deed = heapq.heappop(self._agenda)
                self._now = max(self._now, at)
                event = deed() if callable(deed) else deed
                if event is not None:
                    self._feed(event)
            elif deadline is not None:
                self._now = max(self._now, deadline)
                self._feed(TimerFired())
            else:
                return self.outcome

    # Making things happen.

    def _set_up(self) -> None:
        for engine in self._engines:
            self._plan(0, partial(self._report, engine))
        for number in range(self._shape.tenants):
            weight = self._random.choice((0.5, 1.0, 2.0, 0.0))
            tenant = TenantId(f"t{number}")
            self._plan(number, TenantConfigured(tenant=tenant, weight=weight))
        for number in range(self._shape.programs):
            agent = _Agent(
                program=ProgramId(f"p{number}"),
                tenant=TenantId(f"t{number % self._shape.tenants}"),
                steps_left=1 + self._random.randrange(self._shape.steps_per_program),
                context_tokens=self._random.randrange(1, 3_000),
            )
            self._agents[agent.program] = agent
            at = self._random.randrange(self._shape.arrival_ms_max) * MILLISECOND
            if self._chance(0.3):
                self._plan(at, ProgramOpened(program=agent.program, tenant=agent.tenant))
            self._plan(at, partial(self._next_step, agent))
        for number in range(self._shape.meddling):
            self._meddle(number)

    def _meddle(self, number: int) -> None:
        """One change from outside, of each kind in turn; what a peer holds it gives back again."""
        at = self._random.randrange(self._shape.arrival_ms_max) * MILLISECOND
        engine = self._random.choice(self._engines)
        match number % 5:
            case 0:
                self._plan(at, self._other_policies)
            case 1:
                held = self._random.randrange(10_000)
                for later, tokens in ((0, held), (5 * SECOND, 0)):
                    said = PeerReported(
                        engine=engine,
                        peer="peer",
                        running_steps=tokens // 2_000,
                        resident_tokens=tokens,
                    )
                    self._plan(at + later, said)
            case 2:
                tenant = TenantId(f"t{self._random.randrange(self._shape.tenants)}")
                tokens = self._random.randrange(5_000)
                self._plan(
                    at,
                    ServedElsewhere(
                        tenant=tenant, uncached_tokens=tokens, output_tokens=tokens // 9
                    ),
                )
            case 3:
                self._plan(at, partial(self._elsewhere, engine))
            case _:
                self._plan(at, WorkflowDeclared(text=_WORKFLOW))

    def _elsewhere(self, engine: EngineId) -> Event:
        """Another replica serves somebody's next step, and leaves its context on an engine."""
        number = self._random.randrange(self._shape.programs)
        agent = self._agents[ProgramId(f"p{number}")]
        agent.home = engine
        conversation = ConversationId(f"{agent.program}/{agent.conversations}")
        return ContinuedElsewhere(program=agent.program, conversation=conversation)

    def _other_policies(self) -> Event | None:
        """Another order at run time; all else stays, and goes on with what it learnt."""
        policies = self._scheduler.policies
        if not policies.choices:
            return None
        order = Choice(name=self._random.choice(("fcfs", "program-fcfs", "remaining-work")))
        choices = {**policies.choices, "order": order}
        return Reconfigured(profile=policies.profile, choices=choices)

    def _plan(self, at: int, deed: Event | Callable[[], Event | None]) -> None:
        self._number += 1
        heapq.heappush(self._agenda, (at, self._number, deed))

    def _soon(self, deed: Event | Callable[[], Event | None], *, ms_max: int) -> None:
        self._plan(self._now + self._random.randrange(ms_max + 1) * MILLISECOND, deed)

    def _chance(self, rate: float) -> bool:
        return self._random.random() < rate

    def _fault(self) -> bool:
        return self._chance(self._shape.fault_rate)

    def _report(self, engine: EngineId) -> Event:
        number = int(engine[1:])
        return EngineReported(
            engine=engine,
            capabilities=Capabilities(
                prefix_cache=True,
                pins=number % 2 == 0,
                kv_tokens=self._shape.kv_tokens,
                running_max=4,
            ),
            load=EngineLoad(running=self._random.randrange(5), kv_usage=self._random.random()),
        )

    def _next_step(self, agent: _Agent) -> Event | None:
        if not agent.steps_left:
            return None
        agent.steps_left -= 1
        agent.active += 1
        number = len(self._owner)
        step = StepId(f"s{number}")
        self._owner[step] = agent
        lineage, parent = self._lineage(agent)
        conversation = ConversationId(f"{agent.program}/{agent.conversations}")
        self.outcome.arrived[step] = Instant(self._now)
        self._waiting_since[step] = self._now
        answers, agent.answers = agent.answers, ()
        home, agent.home = agent.home, None
        if self._fault():  # the client hangs up some time later
            self._soon(partial(self._hang_up, step), ms_max=5_000)
        if self._chance(0.15):  # a second branch beside this one
            agent.steps_left += 1
            self._soon(partial(self._next_step, agent), ms_max=500)
        return StepArrived(
            step=step,
            program=agent.program,
            conversation=conversation,
            tenant=agent.tenant,
            prompt_tokens=agent.context_tokens,
            prefixes=self._prefixes(conversation, agent),
            step_class=self._random.choices(
                (StepClass.STEP, StepClass.SUBAGENT, StepClass.AUXILIARY), (8, 1, 1)
            )[0],
            lineage=lineage,
            parent_conversation=parent,
            answers=answers,
            is_last=not agent.steps_left and self._chance(0.5),
            home=home,
            home_tokens=agent.context_tokens if home is not None else 0,
        )

    def _lineage(self, agent: _Agent) -> tuple[Lineage, ConversationId | None]:
        """Now and then a new conversation: a fork, a sub-agent, a rewritten prefix."""
        if not self._chance(0.2):
            return Lineage.EXTENDS, None
        parent = ConversationId(f"{agent.program}/{agent.conversations}")
        agent.conversations += 1
        kinds = (Lineage.FORKS, Lineage.SPAWNED, Lineage.COMPACTS)
        return self._random.choice(kinds), parent

    def _prefixes(self, conversation: ConversationId, agent: _Agent) -> tuple[Prefix, ...]:
        if self._chance(0.1):
            return ()
        whole = PrefixId(f"{conversation}@{agent.context_tokens}")
        return (
            Prefix(prefix=PrefixId("system"), tokens=100),
            Prefix(prefix=whole, tokens=agent.context_tokens),
        )

    def _hang_up(self, step: StepId) -> Event | None:
        # Also when it has ended: a late event, which the scheduler must shrug off.
        self._answered(step)
        return StepCancelled(step=step, reason="client went away")

    # Performing commands.

    def _feed(self, event: Event) -> None:
        # A clock that steps back once in a while.
        now = self._now - (SECOND if self._fault() else 0)
        commands = self._scheduler.handle(event, now=Instant(max(0, now)))
        entry = self._scheduler.latest
        assert entry is not None
        self._on_turn(entry)
        for command in commands:
            self._perform(command)
        if isinstance(event, StepFinished | StepStarted | ToolStarted) and self._fault():
            self._soon(event, ms_max=1_000)  # it comes twice

    def _perform(self, command: Command) -> None:
        match command:
            case Dispatch():
                self._dispatch(command)
            case Reject(step=step):
                self.outcome.rejects += 1
                self._waited(step)
                self._answered(step)
            case Cancel(step=step, reason=CancelReason.YIELDED):
                self._soon(partial(self._give_way, step), ms_max=10)
            case Cancel(step=step):
                self._soon(StepCancelled(step=step, reason="asked for"), ms_max=10)
            case Pin(pin=pin):
                self.outcome.pinned[pin] = self.outcome.pinned.get(pin, 0) + 1
                self._answer_hint(pin)
            case Unpin(pin=pin):
                self.outcome.unpinned[pin] = self.outcome.unpinned.get(pin, 0) + 1
            case Prefetch(pin=pin):
                self._answer_hint(pin)
            case _:
                assert_never(command)

    def _answer_hint(self, pin: PinId) -> None:
        outcome = self._random.choices(list(HintOutcome), (12, 2, 1, 1, 1))[0]
        until = None
        if outcome is HintOutcome.CLIPPED:
            until = Instant(self._now + self._random.randrange(3_000) * MILLISECOND)
        # Sometimes so late that the pin is long gone.
        late = self._fault()
        answer = HintAnswered(pin=pin, outcome=outcome, until=until)
        self._soon(answer, ms_max=60_000 if late else 50)

    def _dispatch(self, command: Dispatch) -> None:
        step, engine = command.step, command.engine
        self.outcome.dispatches += 1
        self._waited(step)
        if self._fault():
            self._break(engine)
            return
        if self._fault():
            self._soon(partial(self._fail, step), ms_max=2_000)
            return
        prefill_ms = self._random.randrange(1, 400)
        whole_ms = prefill_ms + self._random.randrange(1, 2_000)
        if self._chance(0.8):
            self._plan(self._now + prefill_ms * MILLISECOND, StepStarted(step=step))
        self._plan(self._now + whole_ms * MILLISECOND, partial(self._finish, step))

    def _waited(self, step: StepId) -> None:
        since = self._waiting_since.pop(step, None)
        if since is not None:
            self.outcome.waits.append(self._now - since)

    def _fail(self, step: StepId) -> Event:
        is_retryable = self._chance(0.7)
        record = self._scheduler.steps.get(step)
        if record is not None and record.dispatched_at is not None:
            if is_retryable:
                self._waiting_since[step] = self._now
            else:
                self._answered(step)
        # Otherwise it comes too late, and must change nothing.
        return StepFailed(step=step, reason="connection reset", is_retryable=is_retryable)

    def _give_way(self, step: StepId) -> Event | None:
        record = self._scheduler.steps.get(step)
        if record is None or record.state is not StepState.DISPATCHED:
            return None  # its answer has begun meanwhile
        self._waiting_since[step] = self._now
        return StepFailed(step=step, reason="made way", is_retryable=True)

    def _break(self, engine: EngineId) -> None:
        """An engine goes away with all that runs on it, and comes back; or it is drained, or it
        answers nothing for a while."""
        if self._chance(0.3):
            drained = EngineDrained(engine=engine, is_draining=True, is_lasting=True)
            self._soon(drained, ms_max=0)
            self._soon(EngineDrained(engine=engine, is_draining=False), ms_max=20_000)
        elif self._chance(0.2):
            since = Instant(self._now)
            self._soon(EngineUnanswered(engine=engine, since=since, reason="no answer"), ms_max=5)
        else:
            self._soon(EngineLost(engine=engine, reason="crash"), ms_max=0)
        for step in self._scheduler.engines[engine].running:
            self._soon(partial(self._fail, step), ms_max=100)
        self._soon(partial(self._report, engine), ms_max=20_000)

    def _finish(self, step: StepId) -> Event | None:
        record = self._scheduler.steps.get(step)
        if record is None or record.dispatched_at is None:
            return None  # cancelled, or being tried again
        agent = self._owner[step]
        output_tokens = self._random.randrange(1, 200)
        prompt_tokens = agent.context_tokens
        agent.context_tokens += output_tokens
        calls = tuple(
            ToolCall(call_id=CallId(f"{step}-{n}"), tool=ToolName(self._random.choice(TOOLS)))
            for n in range(self._random.randrange(3))
        )
        for call in calls:
            self._tool(agent, call)
        agent.answers = tuple(call.call_id for call in calls)
        self._answered(step)
        cached = self._random.choice((None, 0, prompt_tokens // 2))
        return StepFinished(
            step=step,
            usage=Usage(
                prompt_tokens=prompt_tokens, cached_tokens=cached, output_tokens=output_tokens
            ),
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "stop",
            prefix=Prefix(prefix=PrefixId(f"{step}-answer"), tokens=prompt_tokens + output_tokens),
        )

    def _tool(self, agent: _Agent, call: ToolCall) -> None:
        if self._chance(0.3):
            return  # nobody reports it
        self._soon(
            ToolStarted(program=agent.program, call_id=call.call_id, tool=call.tool), ms_max=20
        )
        took_ms = self._random.randrange(20, 8_000)
        self._plan(
            self._now + took_ms * MILLISECOND,
            ToolFinished(
                program=agent.program,
                call_id=call.call_id,
                tool=call.tool,
                is_error=self._fault(),
            ),
        )

    def _answered(self, step: StepId) -> None:
        """The client has its answer, good or bad; its program goes on or says goodbye."""
        if step in self.outcome.answered:
            return
        self.outcome.answered[step] = Instant(self._now)
        agent = self._owner[step]
        agent.active -= 1
        if agent.steps_left and not self._fault():
            self._soon(partial(self._next_step, agent), ms_max=10_000)
        elif self._chance(0.7):
            # Sometimes while a branch is still being computed.
            gone = ProgramClosed(program=agent.program, reason="finished")
            self._soon(gone, ms_max=3_000)
