"""Pins and warm-ups: when a conversation pauses, what to keep for it and what to prepare."""

from __future__ import annotations

from agentsched.kernel.alarms import Alarms
from agentsched.kernel.books import Books
from agentsched.kernel.guard import GuardedPolicies
from agentsched.kernel.records import ConversationRecord, EngineRecord, Pause, ProgramRecord
from agentsched.model import (
    Command,
    ConversationId,
    EngineId,
    HintAnswered,
    HintOutcome,
    Instant,
    Pin,
    PinId,
    Prefetch,
    Prefix,
    Unpin,
    UnpinReason,
    after,
)


class Retention:
    """Asks the pin and the prefetch policy, and keeps what they said to its end."""

    def __init__(self, *, books: Books, policies: GuardedPolicies) -> None:
        self._books = books
        self._policies = policies
        self._minted = 0
        #: Warm-ups to come, of conversations that pause.
        self._warm: Alarms[ConversationId] = Alarms()

    def pause(
        self, program: ProgramRecord, conversation: ConversationRecord, *, now: Instant
    ) -> list[Command]:
        """A conversation has no active step any more: keep its KV, plan its warm-up."""
        commands: list[Command] = []
        pause = self._pause_of(program, conversation)
        if pause is None:
            return commands
        engine = self._books.engines[pause.engine]
        retention = None
        if engine.capabilities.pins and engine.is_up:
            retention = self._policies.retain(pause, now=now)
        if retention is not None and retention.ttl > 0:
            ttl = min(retention.ttl, self._books.limits.pin_ttl_ns_max)
            pin = Pin(
                pin=self._mint("pin"),
                program=pause.program,
                conversation=pause.conversation,
                engine=pause.engine,
                prefix=pause.prefix,
                expires_at=after(now, ttl),
                value=retention.value,
            )
            commands += self._hold(pin, engine)
        commands += self.plan_warm_up(program, conversation, now=now)
        return commands

    def plan_warm_up(
        self, program: ProgramRecord, conversation: ConversationRecord, *, now: Instant
    ) -> list[Command]:
        """Ask when to warm a paused conversation; asked again when one of its tools ends."""
        pause = self._pause_of(program, conversation)
        if pause is None or conversation.is_warmed:
            return []
        self._warm.cancel(pause.conversation)
        at = self._policies.warm_at(pause, now=now)
        if at is None:
            return []
        if at <= now:
            return self._warm_up(pause, conversation, now=now)
        self._warm.set(pause.conversation, at)
        return []

    def resume(self, conversation: ConversationId) -> None:
        """A conversation's next step is here: a warm-up would come too late."""
        self._warm.cancel(conversation)

    def release(self, conversation: ConversationId, reason: UnpinReason) -> list[Command]:
        """End the pin that a conversation holds, where it holds one."""
        pin = self._books.pins.of_conversation(conversation)
        return [self._end(pin, reason)] if pin else []

    def forget(self, conversation: ConversationId, reason: UnpinReason) -> list[Command]:
        """Nobody will come back to a conversation: end its pin, plan nothing for it."""
        self._warm.cancel(conversation)
        return self.release(conversation, reason)

    def forget_program(self, program: ProgramRecord, reason: UnpinReason) -> list[Command]:
        """The same for all conversations of a program."""
        return [c for key in program.conversations for c in self.forget(key, reason)]

    def lose_engine(self, engine: EngineId) -> list[Command]:
        """The engine's cache is gone: its pins end, its conversations live nowhere."""
        ended: list[Command] = [
            self._end(pin, UnpinReason.ENGINE_LOST) for pin in self._books.pins.on_engine(engine)
        ]
        for program in self._books.programs.values():
            for conversation in program.conversations.values():
                if conversation.engine == engine:
                    self._books.evict(conversation)
        return ended

    def answer(self, event: HintAnswered, *, now: Instant) -> list[Command]:
        """An engine answered a hint: a refused pin ends, a clipped one ends earlier."""
        pin = self._books.pins.get(event.pin)
        if pin is None or event.outcome is HintOutcome.ACCEPTED:
            return []
        if event.outcome is HintOutcome.CLIPPED and event.until is not None and event.until > now:
            self._books.pins.reschedule(pin.pin, expires_at=min(event.until, pin.expires_at))
            return []
        return [self._end(pin, UnpinReason.REFUSED)]

    def tick(self, *, now: Instant) -> list[Command]:
        """Whatever time alone brings about: expiries and planned warm-ups."""
        commands: list[Command] = [
            self._end(pin, UnpinReason.EXPIRED) for pin in self._books.pins.expired(now=now)
        ]
        for key in self._warm.ring(now=now):
            conversation = self._books.conversations[key]
            pause = self._pause_of(self._books.programs[conversation.program], conversation)
            if pause is not None and not conversation.is_warmed:
                commands += self._warm_up(pause, conversation, now=now)
        return commands

    def next_deadline(self) -> Instant | None:
        """When `tick` will have something to do."""
        instants = (self._books.pins.earliest(), self._warm.earliest())
        return min((i for i in instants if i is not None), default=None)

    def _hold(self, pin: Pin, engine: EngineRecord) -> list[Command]:
        ended = self.release(pin.conversation, UnpinReason.SUPERSEDED)
        victims = self._books.pins.room_for(pin)
        if victims is None:
            return ended
        ended += [self._end(victim, UnpinReason.BUDGET) for victim in victims]
        self._books.pins.hold(pin)
        engine.pinned_tokens = self._books.pins.tokens(engine.engine)
        return [*ended, pin]

    def _end(self, pin: Pin, reason: UnpinReason) -> Unpin:
        released = self._books.pins.release(pin.pin)
        assert released is pin
        engine = self._books.engine(pin.engine)
        engine.pinned_tokens = self._books.pins.tokens(pin.engine)
        return Unpin(pin=pin.pin, engine=pin.engine, reason=reason)

    def _warm_up(
        self, pause: Pause, conversation: ConversationRecord, *, now: Instant
    ) -> list[Command]:
        engine = self._books.engines[pause.engine]
        if not engine.is_up or not engine.capabilities.warm:
            return []
        conversation.is_warmed = True
        return [
            Prefetch(
                pin=self._mint("warm"),
                program=pause.program,
                conversation=pause.conversation,
                engine=pause.engine,
                prefix=pause.prefix,
                wanted_by=now,
            )
        ]

    def _pause_of(self, program: ProgramRecord, conversation: ConversationRecord) -> Pause | None:
        if conversation.paused_at is None or conversation.engine is None:
            return None
        if not conversation.prefixes:
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
