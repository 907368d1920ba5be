"""The scheduler: events in, commands out. No clock, no I/O, no task, no logger.

One event is one turn. A turn (1) applies the event to the books, (2) lets the policies and the
graph learn from it, (3) decides: pins and warm-ups for whoever paused, engines for whoever waits,
and (4) enters the whole into the journal. Nothing can come between these four, so nobody ever sees
half a decision, and the same events give the same commands again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from agentsched.kernel.books import Books, GraphBuilder
from agentsched.kernel.bounds import sensible_wait
from agentsched.kernel.charging import charge_unfinished, take_back
from agentsched.kernel.doors import refusal, turn_away
from agentsched.kernel.endings import account, completed, learn_cost
from agentsched.kernel.filling import Filler
from agentsched.kernel.guard import GuardedPolicies
from agentsched.kernel.joins import children_done
from agentsched.kernel.journal import JournalEntry
from agentsched.kernel.moves import let_go, take_over
from agentsched.kernel.records import ConversationRecord, EngineRecord, ProgramRecord, StepRecord
from agentsched.kernel.rehearsal import Plan, rehearse
from agentsched.kernel.resumption import believes
from agentsched.kernel.retention import Retention
from agentsched.kernel.shares import TenantAccount
from agentsched.kernel.silence import ends, hear, look_unanswered
from agentsched.kernel.slow_start import drain
from agentsched.kernel.stories import ClosedProgram, Stories
from agentsched.kernel.transitions import next_state
from agentsched.kernel.warming import WarmAccount
from agentsched.model import (
    Choice,
    Command,
    ContinuedElsewhere,
    EngineDrained,
    EngineId,
    EngineLost,
    EngineReported,
    EngineUnanswered,
    Event,
    HintAnswered,
    Instant,
    Limits,
    Lineage,
    Nanos,
    PeerReported,
    PolicyError,
    ProgramClosed,
    ProgramId,
    ProgramOpened,
    Reconfigured,
    Reject,
    RejectReason,
    ServedElsewhere,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    StepState,
    TenantConfigured,
    TenantId,
    TimerFired,
    ToolFinished,
    ToolStarted,
    UnpinReason,
    WorkflowDeclared,
)
from agentsched.model.events import FOR_ROOM
from agentsched.policy import PolicySet, World

#: Makes the policies of a profile and its choices; takes over those of the old set that stay.
Remake = Callable[[PolicySet, str, Mapping[str, Choice]], PolicySet]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """Counts since the start (`*_total`) and at this moment."""

    events_total: int
    ignored_total: int
    steps_total: int
    rejected_total: int
    retried_total: int
    yielded_total: int
    policy_errors_total: int
    programs: int
    waiting_steps: int
    running_steps: int
    pins: int


class Scheduler:
    """The state machine. `handle` is the only door; everything else is a query."""

    def __init__(
        self,
        *,
        policies: PolicySet,
        limits: Limits,
        graph: GraphBuilder | None = None,
        remake: Remake | None = None,
    ) -> None:
        """`remake` makes other policies at run time; without it they are what they are."""
        self._policies = policies
        self._remake = remake
        self._books = Books(limits=limits, graph=graph)
        self._guarded = guarded = GuardedPolicies(policies, books=self._books)
        self._stories = Stories(self._books)
        self._retention = Retention(books=self._books, policies=guarded)
        self._filler = Filler(books=self._books, policies=guarded, retention=self._retention)
        self._now = Instant(0)
        self._seq = 0
        self._latest: JournalEntry | None = None
        #: Whether programs' stories are told on; a dry run's are not.
        self._tells = True
        #: The conversation that this turn's event brought to a pause; None between turns.
        self._paused: ConversationRecord | None = None
        self._ignored = 0
        self._steps_total = 0
        self._rejected = 0
        self._retried = 0
        self._yielded = 0

    def handle(self, event: Event, *, now: Instant) -> tuple[Command, ...]:
        """Take in one event and say what is to be done.

        `now` is the host's monotonic clock; should it ever step back, time stands still here.
        Late and duplicate events (a second end of a step, a tool of a forgotten program) are
        counted and change nothing. A policy that fails is counted too (`policy_errors`).
        """
        self._now = self._books.now = now = max(self._now, now)
        if self._books.began_at is None:
            self._books.began_at = now
        subject = self._stories.subject(event)
        self._books.ended.clear()
        commands = self._apply(event, now=now)
        self._guarded.observe(event, now=now)
        commands += self._after(event, now=now)
        commands += self._filler.fill(now=now)
        commands += self._finish_closing()
        commands += self._expire_programs(now=now)
        self._rejected += sum(isinstance(c, Reject) for c in commands)
        self._guarded.decided(commands, now=now)
        entry = JournalEntry(seq=self._seq, now=now, event=event, commands=tuple(commands))
        self._seq += 1
        self._latest = entry
        if self._tells:
            self._stories.tell(entry, subject)
        return entry.commands

    def stop_telling(self) -> None:
        """From now on leave the programs' stories alone: for a dry run, which shares them."""
        self._tells = False

    def skip_to(self, seq: int) -> None:
        """Number the next entry `seq`: what lies between it and the latest is not at hand."""
        self._seq = seq

    @property
    def now(self) -> Instant:
        """The instant of the latest event: time here never steps back behind it."""
        return self._now

    @property
    def next_seq(self) -> int:
        """The number that the next entry will have."""
        return self._seq

    def plan(self, event: StepArrived, *, now: Instant) -> Plan:
        """What would happen to this step if it came now. Changes nothing."""
        return rehearse(self, event, now=max(self._now, now))

    def believes(self, *, now: Instant) -> bool:
        """Whether `goes_on` may be set in events: soon after the first turn, so not for ever."""
        return believes(self._books, now=max(self._now, now))

    def next_deadline(self) -> Instant | None:
        """When the host should feed a `TimerFired`; None while time alone changes nothing."""
        candidates = (self._filler.next_deadline(), self._retention.next_deadline())
        return min((i for i in candidates if i is not None), default=None)

    @property
    def latest(self) -> JournalEntry | None:
        """The journal entry of the turn that was handled last."""
        return self._latest

    @property
    def policies(self) -> PolicySet:
        """The policies in force."""
        return self._policies

    @property
    def policy_errors(self) -> Mapping[str, int]:
        """How often each policy failed to answer, by `point.method`. Read only."""
        return self._guarded.errors

    @property
    def latest_policy_error(self) -> Exception | None:
        """What a policy raised last, for the host's log."""
        return self._guarded.latest_error

    @property
    def limits(self) -> Limits:
        """The ceilings in force."""
        return self._books.limits

    @property
    def programs(self) -> Mapping[ProgramId, ProgramRecord]:
        """Live programs, the one idle for longest first. Read only."""
        return self._books.programs

    @property
    def steps(self) -> Mapping[StepId, StepRecord]:
        """Live steps. Read only."""
        return self._books.steps

    @property
    def engines(self) -> Mapping[EngineId, EngineRecord]:
        """Every engine that ever reported. Read only."""
        return self._books.engines

    @property
    def tenants(self) -> Mapping[TenantId, TenantAccount]:
        """Tenants that were served or configured. Read only."""
        return self._books.shares.accounts()

    @property
    def world(self) -> World:
        """What policies see: for hosts that ask a policy themselves. Valid until the next turn."""
        return self._books

    @property
    def warm_accounts(self) -> Mapping[EngineId, WarmAccount]:
        """What came of each engine's warm-ups. Read only."""
        return self._retention.warm_ups.accounts

    @property
    def graphs(self) -> GraphBuilder | None:
        """The execution graphs, where they are built. Read only."""
        return self._books.graph_builder

    def story(self, key: ProgramId | StepId) -> tuple[JournalEntry, ...]:
        """The latest entries about a program that is live or closed lately, oldest first.

        A live step stands for its program. Arrivals are told without their prefixes.
        """
        return self._stories.of(key)

    @property
    def closed(self) -> Mapping[ProgramId, ClosedProgram]:
        """Programs that closed lately, of which a story is kept. Read only."""
        return self._stories.closed

    def sensible_wait(self) -> Nanos | None:
        """The least `wait_ns_max` that this load allows; None while too little is known."""
        return sensible_wait(self._books)

    def statistics(self) -> SchedulerStatistics:
        """An immutable record of counts."""
        books = self._books
        return SchedulerStatistics(
            events_total=self._seq,
            ignored_total=self._ignored,
            steps_total=self._steps_total,
            rejected_total=self._rejected,
            retried_total=self._retried,
            yielded_total=self._yielded,
            policy_errors_total=sum(self._guarded.errors.values()),
            programs=len(books.programs),
            waiting_steps=len(books.ready),
            running_steps=sum(e.running_steps for e in books.engines.values()),
            pins=len(books.pins),
        )

    def check(self) -> None:
        """Assert every invariant; cheap enough for tests, too dear for every turn in production."""
        self._books.check()
        self._retention.check()
        self._stories.check()

    # 1. Apply the event to the books.

    def _apply(self, event: Event, *, now: Instant) -> list[Command]:
        match event:
            case ProgramOpened():
                return self._open(event, now=now)
            case StepArrived():
                return self._arrive(event, now=now)
            case StepStarted():
                return self._start(event, now=now)
            case StepFinished() | StepFailed() | StepCancelled():
                return self._end(event, now=now)
            case ToolStarted() | ToolFinished():
                return self._tool(event, now=now)
            case ProgramClosed():
                return self._close(event.program)
            case EngineReported():
                return self._report(event, now=now)
            case EngineUnanswered():
                look_unanswered(self._books.engine(event.engine), event, now=now)
            case EngineLost():
                return self._lose(event)
            case EngineDrained():
                peers = self._books.engines.values()
                drain(self._books.engine(event.engine), event, peers=peers, now=now)
            case HintAnswered():
                return self._retention.answer(event, now=now)
            case TenantConfigured():
                is_set = self._books.shares.configure(
                    event.tenant, weight=event.weight, limits=event.limits, now=now
                )
                self._ignored += not is_set
            case Reconfigured():
                return self._reconfigure(event, now=now)
            case PeerReported():
                return self._hear(event)
            case ServedElsewhere():
                self._books.shares.charge_elsewhere(event, now=now)
            case ContinuedElsewhere():
                commands = let_go(self._books, self._retention, event)
                self._ignored += commands is None
                return commands or []
            case WorkflowDeclared() | TimerFired():
                pass  # the graphs' matter; what time brings about is done in every turn
            case _:
                assert_never(event)
        return []

    def _reconfigure(self, event: Reconfigured, *, now: Instant) -> list[Command]:
        """Other policies and limits from this turn on. What waits and runs stays where it is."""
        try:
            if self._remake is None:
                raise PolicyError("this scheduler was made with fixed policies")
            policies = self._remake(self._policies, event.profile, event.choices)
        except PolicyError:
            self._ignored += 1
            return []
        if event.limits is not None:
            self._books.set_limits(event.limits)
            self._guarded.set_limits(event.limits)
        if policies.prefetch is not self._policies.prefetch:
            self._retention.forget_plans()
        self._policies = policies
        self._guarded.adopt(policies, now=now)
        return self._retention.keep_to_budgets()

    def _open(self, event: ProgramOpened, *, now: Instant) -> list[Command]:
        commands = self._make_room(event.program)
        if commands is None:
            self._ignored += 1
            return []
        self._books.open_program(
            event.program,
            tenant=event.tenant,
            parent=event.parent,
            agent=event.agent,
            deadline=event.deadline,
            now=now,
        )
        return commands

    def _arrive(self, event: StepArrived, *, now: Instant) -> list[Command]:
        books = self._books
        if event.step in books.steps:
            self._ignored += 1
            return []
        self._steps_total += 1
        arrived_at, bypassed = books.place_of(event, now=now)
        commands = self._let_in(event)
        if isinstance(commands, Reject):
            books.leave(event, arrived_at=arrived_at, bypassed=bypassed, now=now)
            return [commands]
        program = books.open_program(
            event.program,
            tenant=event.tenant,
            parent=event.parent,
            agent=event.agent,
            deadline=event.deadline,
            now=now,
        )
        conversation, forgotten = books.open_conversation(program, event, now=now)
        for gone in forgotten:
            commands += self._retention.forget(gone.conversation, UnpinReason.SUPERSEDED)
        take_over(books, conversation, event)
        old = event.parent_conversation
        if event.lineage is Lineage.COMPACTS and old in program.conversations:
            # The old prefix will not be extended again: whatever is kept for it is wasted.
            commands += self._retention.supersede(program.conversations[old])
        for child in children_done(books, program, conversation):
            commands += self._retention.forget(child.conversation, UnpinReason.SUPERSEDED)
            books.evict(child)
        self._retention.resume(event.conversation)
        conversation.go_on(event)
        record = StepRecord(
            arrived=event,
            tenant=program.tenant,
            arrived_at=arrived_at,
            waiting_since=now,
            bypassed=bypassed,
            priority=books.tenant(program.tenant).limits.priority(event.priority),
            deadline=program.deadline,
        )
        books.begin_step(record, program, now=now)
        if event.is_last:
            books.close_when_idle(program, by=event.step)
        return commands

    def _let_in(self, event: StepArrived) -> list[Command] | Reject:
        """Make room for a step that arrives, or say why there is none."""
        no = refusal(event, self._books)
        if no is not None:
            return no
        commands = self._make_room(event.program)
        if commands is None:
            return turn_away(event, RejectReason.PROGRAMS_FULL, "every program is busy")
        return commands

    def _start(self, event: StepStarted, *, now: Instant) -> list[Command]:
        step = self._books.steps.get(event.step)
        state = next_state(step.state, StepStarted) if step else None
        if step is None or state is None:
            self._ignored += 1
            return []
        step.state = state
        assert step.engine is not None
        engine = self._books.engines[step.engine]
        engine.start(step)
        hear(engine, now=now)
        step.started_at = now
        return self._retention.taken_up(step)

    def _end(
        self, event: StepFinished | StepFailed | StepCancelled, *, now: Instant
    ) -> list[Command]:
        books = self._books
        step = books.steps.get(event.step)
        state = next_state(step.state, type(event)) if step else None
        if step is None or state is None:
            self._ignored += 1
            return []
        if step.state is StepState.WAITING:
            books.end_wait(step)
        else:
            assert step.engine is not None
            engine = books.engines[step.engine]
            engine.give_back(step)
            (hear if isinstance(event, StepFinished) else ends)(engine, now=now)
            books.runs_no_more(step)
            take_back(books.shares, step)
        step.state = state
        if isinstance(event, StepFailed) and event.is_retryable:
            return self._put_back(step, now=now)
        if not isinstance(event, StepFinished) and step.engine is not None:
            charge_unfinished(books.shares, step, books.engines[step.engine], now=now)
        if isinstance(event, StepFinished):
            learn_cost(books, step, event.usage, now=now)
        conversation = books.end_step(step, now=now)
        is_in_use = conversation.steps_done or conversation.running_steps
        if not step.step_class.is_work and not is_in_use:
            books.evict(conversation)  # a title or a probe: nothing will extend it
        if not isinstance(event, StepFinished):
            return []
        usage = completed(books, step, event.usage)
        account(books, step, event, usage, conversation, now=now)
        self._retention.finished(step, usage)
        if step.step_class.is_work and not conversation.active_steps:
            self._paused = conversation
            books.keep(conversation)
        return self._retention.taken_up(step)

    def _put_back(self, step: StepRecord, *, now: Instant) -> list[Command]:
        """No byte reached the client: the same step may be tried again, elsewhere first."""
        assert step.engine is not None
        if step.is_yielding:  # it made way, and nothing is wrong with its engine
            step.is_yielding = False
            step.attempts -= 1
            self._yielded += 1
            self._retried -= 1
        else:
            step.failed_on = (*step.failed_on, step.engine)
        step.engine = step.dispatched_at = step.started_at = None
        if step.attempts > self._books.limits.retries_max:
            self._books.end_step(step, now=now)
            detail = f"tried {step.attempts} times"
            return [turn_away(step.arrived, RejectReason.ENGINE_FAILED, detail)]
        self._retried += 1
        step.state = StepState.WAITING
        step.waiting_since = now
        self._books.let_wait(step)
        return []

    def _tool(self, event: ToolStarted | ToolFinished, *, now: Instant) -> list[Command]:
        program = self._books.programs.get(event.program)
        if program is None:
            self._ignored += 1
            return []
        self._books.touch(program, now=now)
        return []

    def _close(self, key: ProgramId) -> list[Command]:
        program = self._books.programs.get(key)
        if program is None:
            self._ignored += 1
            return []
        commands = self._retention.forget_program(program, UnpinReason.CLOSED)
        if program.active_steps:
            self._books.close_when_idle(program)
        else:
            self._drop(program)
        return commands

    def _report(self, event: EngineReported, *, now: Instant) -> list[Command]:
        commands = self._make_room_for(event.engine)
        self._books.report_engine(event, now=now)
        return commands + self._retention.not_cached(event.engine, event.load.gone, now=now)

    def _hear(self, event: PeerReported) -> list[Command]:
        commands = self._make_room_for(event.engine)
        self._books.engine(event.engine).hear(event)
        return commands

    def _make_room_for(self, engine: EngineId) -> list[Command]:
        """Where an engine is new, whoever names it first, one that is gone may be too many."""
        return [] if engine in self._books.engines else self._retention.forget_gone_engine()

    def _lose(self, event: EngineLost) -> list[Command]:
        engine = self._books.engine(event.engine)
        engine.is_alive, engine.lost_at = False, self._now
        engine.lost_reason = event.reason
        engine.silent_since = None
        return self._retention.lose_engine(event.engine)

    # 2. Decide what follows besides filling the engines.

    def _after(self, event: Event, *, now: Instant) -> list[Command]:
        commands = self._retention.tick(now=now)
        if self._paused is not None:
            conversation, self._paused = self._paused, None
            program = self._books.programs[conversation.program]
            if not self._books.is_closing(program.program):
                commands += self._retention.pause(program, conversation, now=now)
        if isinstance(event, ToolFinished):
            commands += self._tool_is_done(event, now=now)
        elif isinstance(event, ToolStarted):
            commands += self._retention.tool_told(event, now=now)
        commands += self._finish_closing()
        return commands

    def _tool_is_done(self, event: ToolFinished, *, now: Instant) -> list[Command]:
        """A tool's end makes its program's return certain: ask for the warm-up again."""
        program = self._books.programs.get(event.program)
        if program is None:
            return []
        commands: list[Command] = []
        for conversation in program.conversations.values():
            if event.call_id in conversation.tools and conversation.paused_at is not None:
                commands += self._retention.plan_warm_up(program, conversation, now=now)
        return commands

    def _finish_closing(self) -> list[Command]:
        commands: list[Command] = []
        for program in self._books.closable():
            commands += self._forget(program, "closed")
        return commands

    def _make_room(self, program: ProgramId) -> list[Command] | None:
        """Forget the idlest program if a new one would be one too many; None when all are busy."""
        books = self._books
        commands: list[Command] = []
        for number in range(2):  # two where there are more, for the limit was lowered
            if program in books.programs or len(books.programs) < books.limits.programs_max:
                break
            idlest = books.idlest()
            if idlest is None:
                return commands if number else None
            commands += self._forget(idlest, FOR_ROOM)
        return commands

    def _expire_programs(self, *, now: Instant) -> list[Command]:
        limit = self._books.limits.program_idle_ns_max
        idle = self._books.idle_since(Instant(now - limit))
        return [c for program in idle for c in self._forget(program, "idle")]

    def _forget(self, program: ProgramRecord, reason: str) -> list[Command]:
        commands = self._retention.forget_program(program, UnpinReason.CLOSED)
        self._drop(program)
        self._guarded.observe(ProgramClosed(program=program.program, reason=reason), now=self._now)
        return commands

    def _drop(self, program: ProgramRecord) -> None:
        self._books.drop_program(program.program)
        if self._tells:
            self._stories.close(program)
