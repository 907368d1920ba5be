"""Pins and warm-ups: when a conversation pauses, what to keep for it and what to prepare."""

from __future__ import annotations

import heapq

from agentsched.kernel.books import Books
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
    ProgramId,
    Unpin,
    UnpinReason,
    after,
)
from agentsched.policy import PolicySet


class Retention:
    """Asks the pin and the prefetch policy, and keeps what they said to its end."""

    def __init__(self, *, books: Books, policies: PolicySet) -> None:
        self._books = books
        self._policies = policies
        self._minted = 0
        #: (instant, number, program, conversation, pause number): warm-ups to come.
        self._warm: list[tuple[Instant, int, ProgramId, ConversationId, int]] = []

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
        if engine.capabilities.pins and engine.is_alive:
            retention = self._policies.pin.retain(pause, self._books, now=now)
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
        at = self._policies.prefetch.warm_at(pause, self._books, now=now)
        if at is None:
            return []
        if at <= now:
            return self._warm_up(pause, conversation, now=now)
        self._minted += 1
        heapq.heappush(
            self._warm,
            (at, self._minted, pause.program, pause.conversation, conversation.pause_number),
        )
        return []

    def release(self, conversation: ConversationId, reason: UnpinReason) -> list[Command]:
        """End the pin that a conversation holds, where it holds one."""
        pin = self._books.pins.of_conversation(conversation)
        return [self._end(pin, reason)] if pin else []

    def release_program(self, program: ProgramRecord, reason: UnpinReason) -> list[Command]:
        """End all pins of a program."""
        return [c for key in program.conversations for c in self.release(key, reason)]

    def lose_engine(self, engine: EngineId) -> list[Command]:
        """The engine's cache is gone: its pins end, its conversations live nowhere."""
        ended: list[Command] = [
            self._end(pin, UnpinReason.ENGINE_LOST) for pin in self._books.pins.on_engine(engine)
        ]
        for program in self._books.programs.values():
            for conversation in program.conversations.values():
                if conversation.engine == engine:
                    conversation.is_resident = False
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
        while self._warm and self._warm[0][0] <= now:
            _, _, program_id, conversation_id, number = heapq.heappop(self._warm)
            program = self._books.programs.get(program_id)
            conversation = program.conversations.get(conversation_id) if program else None
            if program is None or conversation is None or conversation.pause_number != number:
                continue  # it resumed or went away meanwhile
            pause = self._pause_of(program, conversation)
            if pause is not None and not conversation.is_warmed:
                commands += self._warm_up(pause, conversation, now=now)
        return commands

    def next_deadline(self) -> Instant | None:
        """When `tick` will have something to do."""
        instants = [i for i in (self._books.pins.earliest(),) if i is not None]
        if self._warm:
            instants.append(self._warm[0][0])
        return min(instants, default=None)

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
