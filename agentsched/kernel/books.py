"""The scheduler's state: programs, steps, engines, waiting steps, shares and pins, in one place.

`Books` is also the `World` that policies see. Its methods keep the records consistent with each
other; they decide nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from agentsched.kernel.charging import start_keeping, stop_keeping
from agentsched.kernel.closing import Closing
from agentsched.kernel.invariants import check
from agentsched.kernel.pace import Pace
from agentsched.kernel.pins import PinLedger
from agentsched.kernel.places import LeftPlaces
from agentsched.kernel.ready import ReadySteps
from agentsched.kernel.records import ConversationRecord, EngineRecord, ProgramRecord, StepRecord
from agentsched.kernel.residency import Residency
from agentsched.kernel.shares import ShareLedger, TenantAccount
from agentsched.kernel.silence import look_answered
from agentsched.model import (
    ConversationId,
    EngineId,
    EngineReported,
    Event,
    Instant,
    Limits,
    Lineage,
    ProgramId,
    StepArrived,
    StepClass,
    StepId,
    StepState,
    TenantId,
    after,
)
from agentsched.policy import GraphView, StepView

#: Engines that are gone and known still: where they come and go by themselves, each has a new name.
_GONE_MAX: Final = 256


class GraphBuilder(Protocol):
    """Folds events into execution graphs (the room `agentsched_graphs` has one).

    One that has a method `decided(commands, *, now)` is also told what each turn decided, one that
    has `set_limits(limits)` the ceilings that are set anew at run time.
    """

    def observe(self, event: Event, *, now: Instant) -> None: ...

    def view(self, program: ProgramId) -> GraphView | None: ...


class Books:
    """Everything that the scheduler remembers."""

    def __init__(self, *, limits: Limits, graph: GraphBuilder | None) -> None:
        self.limits = limits
        self.graph_builder = graph
        #: The instant of the turn that is under way.
        self.now = Instant(0)
        #: That of the first turn; None before it.
        self.began_at: Instant | None = None
        #: Live programs, the one idle for longest first.
        self._programs: OrderedDict[ProgramId, ProgramRecord] = OrderedDict()
        #: Those of them that were never served and have no active step, by when they last had one.
        #: They make room first, so that a flood of newcomers costs nobody who pauses its place.
        self._unserved: OrderedDict[ProgramId, None] = OrderedDict()
        #: All and only steps that are not in a final state.
        self.steps: dict[StepId, StepRecord] = {}
        #: Engines by id, in the order in which they first reported; lost ones stay known.
        self._engines: dict[EngineId, EngineRecord] = {}
        self.ready = ReadySteps(wait_ns_max=limits.wait_ns_max, bypasses_max=limits.bypasses_max)
        self.places = LeftPlaces(
            wait_ns_max=limits.wait_ns_max,
            bypasses_max=limits.bypasses_max,
            patience=min(limits.engine_wait_ns_max, limits.wait_ns_max),
        )
        self.shares = ShareLedger(tenants_max=limits.tenants_max)
        self.pins = PinLedger(
            pins_per_engine_max=limits.pins_per_engine_max,
            tokens_per_engine_max=limits.pinned_tokens_per_engine_max,
            tokens_per_tenant_max=limits.pinned_tokens_per_tenant_max,
        )
        #: What lies in each engine's cache, as far as we know.
        self.residency = Residency()
        self.pace = Pace()
        #: Conversations of all live programs; an id belongs to one program.
        self.conversations: dict[ConversationId, ConversationRecord] = {}
        #: Programs that go when their last active step ends.
        self._closing = Closing()
        #: Steps that ended in this turn, for the story of their programs.
        self.ended: dict[StepId, ProgramId] = {}
        self.programs_opened = 0

    def set_limits(self, limits: Limits) -> None:
        """Other ceilings from now on; what is above a lower one goes as it would have come.

        But pins: those that have no room any more are to be ended at once (`keep_to_budgets`).
        """
        self.limits = limits
        self.ready.set_bounds(wait_ns_max=limits.wait_ns_max, bypasses_max=limits.bypasses_max)
        self.places.set_bounds(
            wait_ns_max=limits.wait_ns_max,
            bypasses_max=limits.bypasses_max,
            patience=min(limits.engine_wait_ns_max, limits.wait_ns_max),
        )
        self.shares.set_bound(tenants_max=limits.tenants_max)
        self.pins.set_bounds(
            pins_per_engine_max=limits.pins_per_engine_max,
            tokens_per_engine_max=limits.pinned_tokens_per_engine_max,
            tokens_per_tenant_max=limits.pinned_tokens_per_tenant_max,
        )

    # The World that policies see.

    @property
    def programs(self) -> Mapping[ProgramId, ProgramRecord]:
        return self._programs

    @property
    def engines(self) -> Mapping[EngineId, EngineRecord]:
        return self._engines

    @property
    def waiting_steps(self) -> int:
        return len(self.ready)

    @property
    def wait_ns_max(self) -> int:
        return self.limits.wait_ns_max

    @property
    def bypasses_max(self) -> int:
        return self.limits.bypasses_max

    def served(self, tenant: TenantId) -> float:
        return self.shares.served(tenant)

    def tenant(self, tenant: TenantId) -> TenantAccount:
        return self.shares.view(tenant)

    def least_service(self, *, now: Instant) -> float:
        return self.shares.least_service(now=now)

    def conversation(self, step: StepView) -> ConversationRecord:
        return self._programs[step.program].conversations[step.conversation]

    def graph(self, program: ProgramId) -> GraphView | None:
        return self.graph_builder.view(program) if self.graph_builder else None

    def resident(self, engine: EngineId) -> Iterator[ConversationRecord]:
        return (self.conversations[key] for key in self.residency.conversations(engine))

    def resident_tokens(self, engine: EngineId) -> int:
        peers = self._engines[engine].peer_tokens if engine in self._engines else 0
        return self.residency.tokens(engine) + peers

    def own_tokens(self, conversation: ConversationId) -> int:
        return self.residency.own_tokens(conversation)

    def missing_tokens(self, step: StepView, engine: EngineId) -> int:
        conversation = self.conversation(step)
        is_home = conversation.is_resident and conversation.engine == engine
        if is_home and step.lineage is not Lineage.COMPACTS:
            return max(0, step.prompt_tokens - conversation.context_tokens)
        return self.residency.missing_tokens(
            engine, prefixes=step.prefixes, prompt_tokens=step.prompt_tokens
        )

    # Programs and conversations.

    def open_program(
        self,
        program: ProgramId,
        *,
        tenant: TenantId,
        parent: ProgramId | None,
        agent: str,
        deadline: Instant | None,
        now: Instant,
    ) -> ProgramRecord:
        """The program's record; made if it is new, touched if it is known.

        A program stays its first tenant's, a child is its parent's tenant's. Room for a new one is
        made beforehand (`idlest`).
        """
        record = self._programs.get(program)
        if record is None:
            elder = self._programs.get(parent) if parent is not None else None
            if elder is not None:
                # A child does its parent's work: for the same tenant, by the same deadline, and
                # with the same place in the order of arrival.
                tenant = elder.tenant
                deadline = deadline if deadline is not None else elder.deadline
            if deadline is None:
                deadline = self.shares.deadline(tenant, now=now)
            record = ProgramRecord(
                program=program,
                tenant=tenant,
                ordinal=self.programs_opened if elder is None else elder.ordinal,
                opened_at=now,
                last_at=now,
                parent=parent,
            )
            self.programs_opened += 1
            self._programs[program] = record
            self._unserved[program] = None
            self.shares.open_program(tenant, program, is_child=elder is not None)
            if elder is not None:
                elder.children[program] = None
        record.agent = agent or record.agent
        record.deadline = deadline if deadline is not None else record.deadline
        # Whoever closed it was too early: it may wake, as a parent does for a background child.
        self._closing.wake(program)
        self.touch(record, now=now)
        return record

    def touch(self, record: ProgramRecord, *, now: Instant) -> None:
        """The program gave a sign of life."""
        record.last_at = now
        self._programs.move_to_end(record.program)

    def open_conversation(
        self, program: ProgramRecord, event: StepArrived, *, now: Instant
    ) -> tuple[ConversationRecord, list[ConversationRecord]]:
        """The step's conversation, and idle ones that were forgotten to make room for it."""
        conversations = program.conversations
        forgotten: list[ConversationRecord] = []
        record = conversations.get(event.conversation)
        if record is None:
            forgotten = self._forget_idle_conversations(program)
            record = conversations[event.conversation] = ConversationRecord(
                conversation=event.conversation,
                program=program.program,
                parent=event.parent_conversation,
                last_at=now,
                is_spawned=event.lineage is Lineage.SPAWNED,
            )
            self.conversations[event.conversation] = record
        record.last_at = now
        return record, forgotten

    def _forget_idle_conversations(self, program: ProgramRecord) -> list[ConversationRecord]:
        surplus = len(program.conversations) + 1 - self.limits.conversations_per_program_max
        if surplus <= 0:
            return []
        # Busy ones stay. Their number is bounded by the steps that are active, and those are; when
        # they calm down, the next newcomer takes the program back to its limit.
        idle = [c for c in program.conversations.values() if not c.active_steps]
        idle.sort(key=lambda c: (c.last_at, c.conversation))
        for conversation in idle[:surplus]:
            self.evict(conversation)
            del self.conversations[conversation.conversation]
            del program.conversations[conversation.conversation]
        return idle[:surplus]

    def drop_program(self, program: ProgramId) -> None:
        """Forget a program that has no active step; its pins must have ended."""
        record = self._programs[program]
        assert not record.active_steps
        for conversation in record.conversations.values():
            self.evict(conversation)
            del self.conversations[conversation.conversation]
        del self._programs[program]
        self._unserved.pop(program, None)
        self._closing.wake(program)
        self.shares.drop_program(record.tenant, program)
        elder = self._programs.get(record.parent) if record.parent is not None else None
        if elder is not None:
            elder.children.pop(program, None)

    def close_when_idle(self, record: ProgramRecord, *, by: StepId | None = None) -> None:
        """Let a program go as soon as no step of it is active, unless it wakes again.

        `by`: the step that is said to be its last one.
        """
        self._closing.close(record, by)

    def is_closing(self, program: ProgramId) -> bool:
        """Whether the program goes as soon as no step of it is active."""
        return program in self._closing

    def closable(self) -> list[ProgramRecord]:
        """Programs that were closed and whose last step has ended."""
        return [self._programs[key] for key in self._closing.idle()]

    def serve(self, program: ProgramRecord) -> None:
        """A step of what it is for was answered: neither it nor a child is a newcomer any more."""
        if not program.was_served:
            program.was_served = True
            self._unserved.pop(program.program, None)
            for child in program.children:
                self.ready.begin(child)

    def idlest(self) -> ProgramRecord | None:
        """The program without active steps that is idle for longest, of those that were never
        served where there are any."""
        for key in self._unserved:
            return self._programs[key]
        for record in self._programs.values():
            if not record.active_steps:
                return record
        return None

    def idle_since(self, at: Instant) -> Iterator[ProgramRecord]:
        """Programs without active steps whose last sign of life is not after `at`."""
        found = []
        for record in self._programs.values():
            if record.last_at > at:
                break
            if not record.active_steps:
                found.append(record)
        return iter(found)

    # The engines' caches.

    def settle(self, step: StepRecord, engine: EngineRecord, *, now: Instant) -> None:
        """A step is sent: its conversation's KV is computed here from now on."""
        conversation = self.conversation(step)
        step.missing_tokens = self.missing_tokens(step, engine.engine)
        step.ahead_tokens = engine.cold_tokens(now=now)
        step.given_up_tokens = min(step.missing_tokens, self._given_up(step, engine))
        step.cold_until = after(now, engine.cost.patience(step.missing_tokens))
        conversation.engine = engine.engine
        conversation.is_resident = True
        self.residency.place(
            conversation.conversation,
            engine.engine,
            prefixes=step.prefixes,
            context_tokens=max(step.prompt_tokens, conversation.context_tokens),
        )
        conversation.running_steps += 1
        self._follow_eviction(engine)

    def runs_no_more(self, step: StepRecord) -> None:
        """A step that was sent has ended, or will be sent again."""
        conversation = self.conversation(step)
        conversation.running_steps -= 1
        if not conversation.running_steps:
            self.residency.rest(conversation.conversation)

    def _given_up(self, step: StepRecord, engine: EngineRecord) -> int:
        """Tokens of a prompt that its conversation had here, and has no more as far as we know."""
        conversation = self.conversation(step)
        if conversation.is_resident or conversation.engine != engine.engine:
            return 0
        return 0 if step.lineage is Lineage.COMPACTS else conversation.context_tokens

    def grow(self, conversation: ConversationRecord) -> None:
        """A step ended: its answer is part of the conversation's KV."""
        if conversation.is_resident and conversation.engine is not None:
            self.residency.place(
                conversation.conversation,
                conversation.engine,
                prefixes=conversation.prefixes,
                context_tokens=conversation.context_tokens,
                rests=not conversation.running_steps,
            )
            self._follow_eviction(self._engines[conversation.engine])

    def _follow_eviction(self, engine: EngineRecord) -> None:
        """More than the cache holds cannot be resident: the engine evicts what was used longest ago
        of what does not run, so that is what is gone for us, too."""
        capacity = engine.capabilities.kv_tokens
        while capacity is not None and self.residency.tokens(engine.engine) > capacity:
            # The oldest use comes first. The rest, perhaps thousands, is not looked at: a full
            # cache evicts at every step.
            rests = self.residency.resting(engine.engine)
            oldest = next((key for key in rests if self.pins.of_conversation(key) is None), None)
            if oldest is None:
                return
            self.evict(self.conversations[oldest])

    def warm(self, conversation: ConversationRecord, engine: EngineId) -> None:
        """A conversation's context was computed again ahead of its next step."""
        if conversation.engine != engine:
            return  # it went on elsewhere meanwhile
        was_resident, conversation.is_resident = conversation.is_resident, True
        self.residency.place(
            conversation.conversation,
            engine,
            prefixes=conversation.prefixes,
            context_tokens=conversation.context_tokens,
            rests=not conversation.running_steps,
        )
        if not was_resident and conversation.paused_at is not None:
            self.keep(conversation)
        self._follow_eviction(self._engines[engine])

    def evict(self, conversation: ConversationRecord) -> None:
        """Stop counting a conversation's KV as held."""
        self._stop_keeping(conversation)
        conversation.is_resident = False
        self.residency.remove(conversation.conversation)

    def keep(self, conversation: ConversationRecord) -> None:
        """A conversation pauses: its tenant pays for the KV that it keeps."""
        tenant = self._programs[conversation.program].tenant
        start_keeping(self.shares, self.residency, conversation, tenant, now=self.now)

    def _stop_keeping(self, conversation: ConversationRecord) -> None:
        tenant = self._programs[conversation.program].tenant
        stop_keeping(self.shares, conversation, tenant, now=self.now)

    # Engines.

    def engine(self, engine: EngineId) -> EngineRecord:
        """The engine's record, made when it is new."""
        record = self._engines.get(engine)
        if record is None:
            record = self._engines[engine] = EngineRecord(engine=engine)
        return record

    def engine_to_forget(self) -> EngineId | None:
        """Of too many engines that are gone, the one that went first."""
        gone = [e for e in self._engines.values() if not (e.is_alive or e.running or e.peers)]
        if len(gone) <= _GONE_MAX:
            return None
        return min(gone, key=lambda e: (e.lost_at, e.engine)).engine

    def forget_engine(self, engine: EngineId) -> None:
        """An engine that holds nothing any more is as if it had never been."""
        for conversation in self.conversations.values():
            if conversation.engine == engine:
                conversation.engine = None
        self.residency.lose(engine)
        self.pins.forget_engine(engine)
        del self._engines[engine]

    def report_engine(self, event: EngineReported, *, now: Instant) -> None:
        """Take in an engine's report; one that was away takes its turn with the others again."""
        record = self._engines.get(event.engine)
        if record is None or not record.is_alive:
            turn = max((e.dispatched_total for e in self._engines.values()), default=0)
            record = self.engine(event.engine)
            record.dispatched_total = max(record.dispatched_total, turn)
            if record.lost_reason:
                record.returned_at = now
            record.is_unanswered = True  # whatever it says now is news
        look_answered(record, event, self.limits, now=now)
        record.capabilities, record.load, record.is_alive = event.capabilities, event.load, True
        record.cost.has_tier = event.capabilities.tier

    def gives_up_at(self, step: StepRecord) -> Instant:
        """When a step that finds no engine up is told so."""
        patience = after(step.waiting_since, self.limits.engine_wait_ns_max)
        return min(patience, self.ready.due_at(step))

    # Steps.

    def program_of(self, step: StepId) -> ProgramId | None:
        """The program of a step that is live or ended in this turn."""
        record = self.steps.get(step)
        return record.program if record else self.ended.get(step)

    def leave(self, step: StepArrived, *, arrived_at: Instant, bypassed: int, now: Instant) -> None:
        """Keep the place of a step that gets no answer, should its client ask again."""
        self.places.leave(
            step.step, step.program, arrived_at=arrived_at, bypassed=bypassed, now=now
        )

    def place_of(self, event: StepArrived, *, now: Instant) -> tuple[Instant, int]:
        """Since when a step counts as waiting, and how many went before it: also of its retries."""
        if event.retries is None:
            return now, 0
        live = self.steps.get(event.retries)
        if live is not None and live.program == event.program:
            return self.places.resume(live.arrived_at, live.bypassed, now=now)
        return self.places.take(event.retries, event.program, now=now)

    def begin_step(self, step: StepRecord, program: ProgramRecord, *, now: Instant) -> None:
        """Count a step as active and let it wait."""
        conversation = program.conversations[step.conversation]
        self.steps[step.step] = step
        self._unserved.pop(program.program, None)
        program.active_steps += 1
        conversation.active_steps += 1
        conversation.paused_at = None
        conversation.is_warmed = conversation.is_replaced = False
        self._stop_keeping(conversation)
        if program.active_steps > 1:
            self.ready.begin(program.program)
        self.let_wait(step)

    def let_wait(self, step: StepRecord) -> None:
        """A step waits from now on, for the first time or again."""
        is_batch = step.step_class is StepClass.BATCH
        self.shares.wait(step.tenant, is_batch=is_batch, now=self.now)
        self.ready.add(step, is_newcomer=self._is_newcomer(step))

    def _is_newcomer(self, step: StepRecord) -> bool:
        """Whether its program was sent nothing so far, and has nothing else under way.

        A child does the work of its parent, which was begun when that was served.
        """
        program = self._programs[step.program]
        if program.was_served or program.active_steps > 1 or step.attempts:
            return False
        elder = self._programs.get(program.parent) if program.parent is not None else None
        if elder is not None and elder.was_served and program.program in elder.children:
            return False
        return program.conversations[step.conversation].engine is None

    def end_wait(self, step: StepRecord) -> None:
        """A waiting step goes, one way or the other."""
        self.ready.remove(step)
        is_batch = step.step_class is StepClass.BATCH
        self.shares.leave(step.tenant, is_batch=is_batch, now=self.now)

    def end_step(self, step: StepRecord, *, now: Instant) -> ConversationRecord:
        """Forget a step that reached a final state; its conversation may pause with it."""
        assert step.state.is_final
        del self.steps[step.step]
        self.ended[step.step] = step.program
        program = self._programs[step.program]
        conversation = program.conversations[step.conversation]
        if step.state is not StepState.FINISHED:
            self.leave(step.arrived, arrived_at=step.arrived_at, bypassed=step.bypassed, now=now)
        program.active_steps -= 1
        if not (program.active_steps or program.was_served):
            self._unserved[program.program] = None
        conversation.active_steps -= 1
        if not conversation.active_steps:
            conversation.paused_at = now
            if not (step.state is StepState.FINISHED and step.step_class.is_work):
                self.keep(conversation)  # no answer adds to what it keeps
        conversation.last_at = now
        self.touch(program, now=now)
        self._closing.ended(step, program)
        return conversation

    def check(self) -> None:
        """Assert every invariant that ties the records together."""
        check(self)
