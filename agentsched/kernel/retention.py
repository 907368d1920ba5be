"""Pins and warm-ups: when a conversation pauses, what to keep for it and what to prepare."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from agentsched.kernel.alarms import Alarms
from agentsched.kernel.books import Books
from agentsched.kernel.doors import may_warm
from agentsched.kernel.guard import GuardedPolicies
from agentsched.kernel.pressure import Pressure
from agentsched.kernel.records import (
    ConversationRecord,
    EngineRecord,
    Pause,
    ProgramRecord,
    StepRecord,
)
from agentsched.kernel.warming import WarmLedger, WarmUp
from agentsched.model import (
    SECOND,
    CallId,
    Command,
    ConversationId,
    EngineId,
    HintAnswered,
    HintOutcome,
    Instant,
    Nanos,
    Pin,
    PinId,
    Prefetch,
    Prefix,
    ToolStarted,
    Unpin,
    UnpinReason,
    Usage,
    after,
    between,
)

#: Further warm-ups that wait for slack are not made: the oldest is dropped.
_POSTPONED_MAX: Final = 256
#: One that has waited for so long is asked about anew: what it was planned for may be over.
_POSTPONED_NS: Final = Nanos(5 * SECOND)


class Retention:
    """Asks the pin and the prefetch policy, and keeps what they said to its end."""

    def __init__(self, *, books: Books, policies: GuardedPolicies) -> None:
        self._books = books
        self._policies = policies
        self._minted = 0
        #: Warm-ups to come, of conversations that pause.
        self._warm: Alarms[ConversationId] = Alarms()
        #: Those whose time has come, but not the engine's slack, and since when; oldest first.
        self._postponed: OrderedDict[ConversationId, Instant] = OrderedDict()
        #: Tools that a conversation waits for, and that only their runners spoke of.
        self._told: dict[ConversationId, dict[CallId, None]] = {}
        self.warm_ups = WarmLedger()
        self.pressure = Pressure()

    def pause(
        self, program: ProgramRecord, conversation: ConversationRecord, *, now: Instant
    ) -> list[Command]:
        """A conversation has no active step any more: keep its KV, plan its warm-up."""
        pause = self._pause_of(program, conversation)
        if pause is None:
            return []
        engine = self._books.engines[pause.engine]
        if conversation.is_over:
            self._unwant(pause.conversation)
        elif self._want(
            pause.conversation,
            engine,
            prefixes=conversation.prefixes,
            tokens=conversation.context_tokens,
        ):
            # Those that paused while there was room have not been asked yet, this one included.
            return self._gate_opened(engine, now=now)
        if not engine.is_contended:
            return []
        return self._retain(pause, conversation, engine, now=now) + self.plan_warm_up(
            program, conversation, now=now
        )

    def _gate_opened(self, engine: EngineRecord, *, now: Instant) -> list[Command]:
        commands: list[Command] = []
        for key in list(self._books.residency.conversations(engine.engine)):
            conversation = self._books.conversations[key]
            program = self._books.programs[conversation.program]
            pause = self._pause_of(program, conversation)
            if pause is not None and self._books.pins.of_conversation(key) is None:
                commands += self._retain(pause, conversation, engine, now=now)
                commands += self.plan_warm_up(program, conversation, now=now)
        return commands

    def _retain(
        self,
        pause: Pause,
        conversation: ConversationRecord,
        engine: EngineRecord,
        *,
        now: Instant,
    ) -> list[Command]:
        """Ask the pin policy, and hold what it wants kept."""
        if not (engine.capabilities.pins and engine.is_up):
            return []
        retention = self._policies.retain(pause, now=now)
        if retention is None or retention.ttl <= 0:
            return []
        ttl = min(retention.ttl, self._books.limits.pin_ttl_ns_max)
        pin = Pin(
            pin=self._mint("pin"),
            program=pause.program,
            conversation=pause.conversation,
            engine=pause.engine,
            prefix=retention.prefix or pause.prefix,
            expires_at=after(now, ttl),
            value=retention.value,
        )
        return self._hold(pin, engine, pause, conversation)

    def plan_warm_up(
        self, program: ProgramRecord, conversation: ConversationRecord, *, now: Instant
    ) -> list[Command]:
        """Ask when to warm a paused conversation; asked again when one of its tools ends."""
        pause = self._pause_of(program, conversation)
        if pause is None or conversation.is_warmed:
            return []
        self._unplan(pause.conversation)
        if not self._books.engines[pause.engine].is_contended:
            return []
        at = self._policies.warm_at(pause, now=now)
        if at is None:
            return []
        if at <= now:
            return self._warm_up(pause, conversation, since=now, now=now)
        self._warm.set(pause.conversation, at)
        return []

    def tool_told(self, event: ToolStarted, *, now: Instant) -> list[Command]:
        """A tool began. Where no answer was seen to call it (agents that call tools in prose, or
        models whose calls cannot be read), its conversation waits for it from now on."""
        program = self._books.programs.get(event.program)
        if program is None:
            return []
        talks = program.conversations.values()
        call = event.call_id
        # Or its answer was seen: a report that comes twice, or late, wakes nobody.
        if any(call in talk.tools or call in talk.answered for talk in talks):
            return []
        named = program.conversations.get(event.conversation) if event.conversation else None
        paused = [talk for talk in talks if talk.paused_at is not None]
        talk = named or max(paused, key=lambda t: (t.last_at, t.conversation), default=None)
        if talk is None or talk.paused_at is None:
            return []
        told = self._told.setdefault(talk.conversation, {})
        told[event.call_id], talk.tools[event.call_id] = None, event.tool
        if len(talk.tools) > self._books.limits.tools_per_program_max:
            oldest = next(iter(talk.tools))
            del talk.tools[oldest]
            told.pop(oldest, None)
        talk.is_over = False
        return self.pause(program, talk, now=now)

    def dispatched(self, step: StepRecord, engine: EngineRecord, *, now: Instant) -> list[Command]:
        """Real work goes to an engine: its warm-ups stop, and the step's memory is wanted there.

        What a warm-up has computed so far stays in the engine's cache.
        """
        commands: list[Command] = []
        context = self._books.conversation(step).context_tokens
        if step.step_class.is_work and self._want(
            step.conversation,
            engine,
            prefixes=step.prefixes,
            tokens=max(step.prompt_tokens, context),
        ):
            commands += self._gate_opened(engine, now=now)
        commands += [
            self._stop(
                warm,
                UnpinReason.RESUMED
                if warm.conversation == step.conversation
                else UnpinReason.YIELDED,
            )
            for warm in self.warm_ups.on_engine(engine.engine)
        ]
        return commands

    def finished(self, step: StepRecord, usage: Usage) -> None:
        """A step ended well: if its prompt had been warmed, this shows whether it paid."""
        if step.engine is not None:
            cached = usage.cached_tokens
            self.warm_ups.used(step.conversation, step.engine, cached=cached)
            self._books.engines[step.engine].warm_paid = self.warm_ups.account(step.engine).paid

    def resume(self, conversation: ConversationId) -> None:
        """A conversation's next step is here: a warm-up that has not begun would come too late."""
        self._unplan(conversation)
        # No request will say that it answers these.
        told = self._told.pop(conversation, {})
        talk = self._books.conversations.get(conversation)
        if talk is not None:
            for call in told:
                talk.tools.pop(call, None)

    def taken_up(self, step: StepRecord) -> list[Command]:
        """A step began, or its answer came whole: its engine's own references keep the blocks.

        An engine that it left for another one sees nothing of it and must be told to let go.
        """
        pin = self._books.pins.of_conversation(step.conversation)
        if pin is None:
            return []
        is_there = pin.engine == step.engine
        return [self._end(pin, UnpinReason.RESUMED if is_there else UnpinReason.SUPERSEDED)]

    def release(self, conversation: ConversationId, reason: UnpinReason) -> list[Command]:
        """End the pin that a conversation holds, where it holds one."""
        pin = self._books.pins.of_conversation(conversation)
        return [self._end(pin, reason)] if pin else []

    def forget(self, conversation: ConversationId, reason: UnpinReason) -> list[Command]:
        """Nobody will come back to a conversation: end its pin, plan nothing for it."""
        self._unplan(conversation)
        self._told.pop(conversation, None)
        self._unwant(conversation)
        warm = self.warm_ups.of_conversation(conversation)
        stopped = [self._stop(warm, reason)] if warm is not None else []
        self.warm_ups.forget(conversation)
        return [*self.release(conversation, reason), *stopped]

    def supersede(self, conversation: ConversationRecord) -> list[Command]:
        """It goes on under another id. Its KV counts as held still: the two share a beginning."""
        conversation.is_replaced = True
        conversation.answer(tuple(conversation.tools))
        return self.forget(conversation.conversation, UnpinReason.SUPERSEDED)

    def forget_program(self, program: ProgramRecord, reason: UnpinReason) -> list[Command]:
        """The same for all conversations of a program."""
        return [c for key in program.conversations for c in self.forget(key, reason)]

    def lose_engine(self, engine: EngineId) -> list[Command]:
        """The engine's cache is gone: its pins end, its conversations live nowhere."""
        ended: list[Command] = [
            self._end(pin, UnpinReason.ENGINE_LOST) for pin in self._books.pins.on_engine(engine)
        ]
        ended += [
            self._stop(warm, UnpinReason.ENGINE_LOST) for warm in self.warm_ups.on_engine(engine)
        ]
        self.pressure.lose(self._books.engines[engine])
        for program in self._books.programs.values():
            for conversation in program.conversations.values():
                if conversation.engine == engine:
                    self._books.evict(conversation)
        return ended

    def forget_gone_engine(self) -> list[Command]:
        """An engine is new: of too many that are gone, the one that went first is forgotten."""
        engine = self._books.engine_to_forget()
        if engine is None:
            return []
        ended = self.lose_engine(engine)
        self.warm_ups.forget_engine(engine)
        self._books.forget_engine(engine)
        return ended

    def forget_plans(self) -> None:
        """Another policy says from now on what is warmed; those under way run on."""
        self._warm = Alarms()
        self._postponed.clear()

    def keep_to_budgets(self) -> list[Command]:
        """End the pins that have no room any more: an operator lowered a budget."""
        ended: list[Command] = []
        for engine in self._books.engines:
            while (pin := self._books.pins.one_too_many(engine)) is not None:
                ended.append(self._end(pin, UnpinReason.BUDGET))
        return ended

    def answer(self, event: HintAnswered, *, now: Instant) -> list[Command]:
        """An engine answered a hint: a refused pin ends, a clipped one ends earlier."""
        if event.outcome is HintOutcome.ACCEPTED:
            self._warmed(event.pin)
        elif self.warm_ups.failed(event.pin) is not None:
            return []
        pin = self._books.pins.get(event.pin)
        if pin is None or event.outcome is HintOutcome.ACCEPTED:
            return []
        until = event.until if event.until is not None else pin.expires_at
        if event.outcome is HintOutcome.CLIPPED and until > now:
            # Where nobody says how long, less of it is kept, or it ends there by itself.
            self._books.pins.reschedule(pin.pin, expires_at=min(until, pin.expires_at))
            return []
        return [self._end(pin, UnpinReason.REFUSED)]

    def not_cached(
        self, engine: EngineId, conversations: Sequence[ConversationId], *, now: Instant
    ) -> list[Command]:
        """An engine that knows says that it has nothing of these any more: their pins gave way."""
        commands: list[Command] = []
        for key in conversations:
            conversation = self._books.conversations.get(key)
            if conversation is None or conversation.engine != engine:
                continue
            if conversation.active_steps or not conversation.is_resident:
                continue
            commands += self.release(key, UnpinReason.REFUSED)
            self._books.evict(conversation)
            program = self._books.programs[conversation.program]
            commands += self.plan_warm_up(program, conversation, now=now)
        return commands

    def tick(self, *, now: Instant) -> list[Command]:
        """Whatever time alone brings about: expiries and planned warm-ups."""
        commands: list[Command] = [
            self._expire(pin, now=now) for pin in self._books.pins.expired(now=now)
        ]
        due = dict.fromkeys(self._warm.ring(now=now), now)
        if self._postponed:
            due = {**self._postponed, **due}
            self._postponed.clear()
        for key, since in due.items():
            commands += self._due(key, since=since, now=now)
        return commands

    def _due(self, key: ConversationId, *, since: Instant, now: Instant) -> list[Command]:
        """The time of a warm-up has come, perhaps a while ago."""
        conversation = self._books.conversations[key]
        program = self._books.programs[conversation.program]
        pause = self._pause_of(program, conversation)
        if pause is None or conversation.is_warmed:
            return []
        engine = self._books.engines[pause.engine]
        if not engine.is_contended:
            return []
        if between(since, now) >= _POSTPONED_NS and self._has_slack(engine, pause, now=now):
            return self.plan_warm_up(program, conversation, now=now)
        return self._warm_up(pause, conversation, since=since, now=now)

    def _expire(self, pin: Pin, *, now: Instant) -> Command:
        """A pin's time is over; while its own next step waits, it is kept for that."""
        conversation = self._books.conversations[pin.conversation]
        if not conversation.active_steps or conversation.running_steps:
            return self._end(pin, UnpinReason.EXPIRED)
        limits = self._books.limits
        until = after(now, min(limits.wait_ns_max, limits.pin_ttl_ns_max))
        return self._books.pins.extend(pin.pin, expires_at=until)

    def next_deadline(self) -> Instant | None:
        """When `tick` will have something to do."""
        instants = (self._books.pins.earliest(), self._warm.earliest())
        return min((i for i in instants if i is not None), default=None)

    def _hold(
        self, pin: Pin, engine: EngineRecord, pause: Pause, conversation: ConversationRecord
    ) -> list[Command]:
        ended = self.release(pin.conversation, UnpinReason.SUPERSEDED)
        pins, tenant = self._books.pins, pause.tenant
        limits = self._books.shares.view(tenant).limits
        pins.cap(tenant, limits.pinned_tokens_max)
        if limits.pins_max is not None and pins.of_tenant(tenant) >= limits.pins_max:
            return ended
        prefixes = [p for p in conversation.prefixes if p.tokens <= pin.prefix.tokens]
        victims = pins.room_for(pin, tenant=tenant, prefixes=prefixes)
        if victims is None:
            return ended
        ended += [self._end(victim, UnpinReason.BUDGET) for victim in victims]
        pins.hold(pin, tenant=tenant, prefixes=prefixes)
        engine.pinned_tokens = pins.tokens(pin.engine)
        return [*ended, pin]

    def _end(self, pin: Pin, reason: UnpinReason) -> Unpin:
        released = self._books.pins.release(pin.pin)
        assert released is pin
        engine = self._books.engine(pin.engine)
        engine.pinned_tokens = self._books.pins.tokens(pin.engine)
        return Unpin(pin=pin.pin, engine=pin.engine, reason=reason)

    def _warm_up(
        self, pause: Pause, conversation: ConversationRecord, *, since: Instant, now: Instant
    ) -> list[Command]:
        engine = self._books.engines[pause.engine]
        is_able = engine.is_up and engine.silent_since is None and engine.capabilities.warm
        if not is_able or conversation.is_over:
            return []
        if not self._has_slack(engine, pause, now=now):
            self._postponed[pause.conversation] = since
            if len(self._postponed) > _POSTPONED_MAX:
                self._postponed.popitem(last=False)
            return []
        if not may_warm(pause, self._books):  # others were warmed since it was planned
            return []
        # One may still be under way where the conversation was before: it went elsewhere since.
        former = self.warm_ups.of_conversation(pause.conversation)
        stopped = [self._stop(former, UnpinReason.SUPERSEDED)] if former is not None else []
        conversation.is_warmed = True
        command = Prefetch(
            pin=self._mint("warm"),
            program=pause.program,
            conversation=pause.conversation,
            engine=pause.engine,
            prefix=pause.prefix,
            wanted_by=now,
        )
        self.warm_ups.begin(command, tenant=pause.tenant, now=now)
        return [*stopped, command]

    def _has_slack(self, engine: EngineRecord, pause: Pause, *, now: Instant) -> bool:
        """Nobody waits, nobody's prompt is being computed there, and the bounds allow one more."""
        limits, warm_ups = self._books.limits, self.warm_ups
        own = self._books.shares.view(pause.tenant).limits.warm_max
        most = limits.warm_ups_per_tenant_max
        tokens = warm_ups.begun_tokens(pause.tenant, now=now) + pause.prefix.tokens
        return (
            not len(self._books.ready)
            and not engine.cold_tokens(now=now)
            and len(warm_ups.on_engine(engine.engine)) < limits.warm_ups_per_engine_max
            and warm_ups.of_tenant(pause.tenant) < (most if own is None else min(own, most))
            and tokens <= limits.warm_tokens_per_tenant_a_minute_max
        )

    def _warmed(self, pin: PinId) -> None:
        """An engine has computed a prefix: it lies in its cache, as the latest used."""
        warm = self.warm_ups.done(pin)
        if warm is not None:
            self._books.warm(self._books.conversations[warm.conversation], warm.engine)

    def _stop(self, warm: WarmUp, reason: UnpinReason) -> Unpin:
        self.warm_ups.stop(warm)
        return Unpin(pin=warm.pin, engine=warm.engine, reason=reason)

    def _want(
        self,
        conversation: ConversationId,
        engine: EngineRecord,
        *,
        prefixes: Sequence[Prefix],
        tokens: int,
    ) -> bool:
        """Its context is wanted here, and where it was no more; whether this opened the gate."""
        home = self.pressure.home(conversation)
        has_opened = self.pressure.want(conversation, engine, prefixes=prefixes, tokens=tokens)
        if home is not None and home != engine.engine:
            # The gate there is looked at when somebody next pauses or is sent there.
            self._books.engines[home].wanted_tokens = self.pressure.tokens(home)
        return has_opened

    def _unwant(self, conversation: ConversationId) -> None:
        home = self.pressure.forget(conversation)
        if home is not None:
            self.pressure.look(self._books.engines[home])

    def is_planned(self, conversation: ConversationId) -> bool:
        """Whether it is to be warmed, now or later."""
        return conversation in self._warm or conversation in self._postponed

    def _unplan(self, conversation: ConversationId) -> None:
        self._warm.cancel(conversation)
        self._postponed.pop(conversation, None)

    def check(self) -> None:
        """Assert that what is planned and under way adds up."""
        self.pressure.check()
        self.warm_ups.check()
        assert len(self._postponed) <= _POSTPONED_MAX
        assert set(self._told) <= set(self._books.conversations)
        assert set(self.warm_ups.accounts) <= set(self._books.engines)
        for warm in self.warm_ups.under_way():
            assert warm.conversation in self._books.conversations

    def _pause_of(self, program: ProgramRecord, conversation: ConversationRecord) -> Pause | None:
        if conversation.paused_at is None or conversation.engine is None:
            return None
        if not conversation.prefixes:
            return None
        # Nobody comes back to what was rewritten, or to a program that only waits for its end.
        if conversation.is_replaced or self._books.is_closing(program.program):
            return None
        whole = conversation.prefixes[-1]
        return Pause(
            program=program.program,
            conversation=conversation.conversation,
            tenant=program.tenant,
            tools=conversation.tools,
            since=conversation.paused_at,
            engine=conversation.engine,
            prefix=Prefix(prefix=whole.prefix, tokens=conversation.context_tokens or whole.tokens),
        )

    def _mint(self, kind: str) -> PinId:
        self._minted += 1
        return PinId(f"{kind}-{self._minted}")
