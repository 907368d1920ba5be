"""Programs that outlive the process: turns as bytes without any text, and an index made of them.

A turn is told when it begins and when it ends, and again when a later one changes it. Kept are the
keyed hashes by which `match` knows a prompt again, ids that we handed out, and counts. Of texts
that were given out and are looked for in later prompts (`needles`) their `traces` are kept.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from agentsched.model import ConversationId, Instant, Prefix, ProgramId, StepClass, StepId, TenantId
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity.index import BYTES_PER_TOKEN, IdentityIndex
from agentsched.proxy.identity.model import Identity
from agentsched.proxy.identity.needles import KeptNeedle, Needle
from agentsched.proxy.identity.records import (
    Book,
    Conversation,
    Program,
    TextEnd,
    Turn,
    TurnState,
)
from agentsched.proxy.request import ParsedRequest

#: Handles count microseconds, a thousand each: these are a quarter of an hour.
_APART_BITS: Final = 40
_FLAGS: Final = (
    "has_tools",
    "is_continued",
    "is_handed",
    "is_first",
    "is_solid",
    "retaken",
)


class KeptTurn(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One turn, with what it takes to make its conversation and its program again."""

    handle: int
    at: int
    tenant: str
    program: str
    is_declared: bool
    program_agent: str
    parent: str | None
    program_steps: int
    branches: int
    heads: int
    conversation: str
    thread: str
    is_exact: bool
    conversation_head: bytes
    is_subagent: bool
    agent: str
    first: bytes
    prompt: bytes
    head: bytes
    answer: bytes
    calls: tuple[str, ...]
    said: bytes
    response_id: str
    state: int
    step: int
    step_class: str
    size: int
    flags: int
    boundary: bytes
    length: int
    chains: tuple[bytes, ...]
    places: tuple[tuple[bytes, int], ...]
    step_id: str
    needles: tuple[KeptNeedle, ...] = ()
    #: The turn that this one goes on from, as `Turn.origin` is.
    origin: int = 0
    others: tuple[bytes, ...] = ()
    begun: bytes = b""
    beside: int = 0


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(KeptTurn).decode


def decode_turn(data: bytes) -> KeptTurn | None:
    """The turn that `encode_turn` wrote; None: another version did."""
    try:
        told = _DECODE(data)
        StepClass(told.step_class)
        TurnState(told.state)
    except (msgspec.DecodeError, ValueError):
        return None
    return told


def read_turn(told: KeptTurn, conversation: Conversation) -> Turn:
    """The turn that it was, in a conversation that was made anew; nothing knows of it yet."""
    turn = Turn(conversation=conversation, prompt=told.prompt, head=told.head, at=Instant(told.at))
    turn.handle = told.handle
    turn.step_class = StepClass(told.step_class)
    turn.step, turn.size = told.step, told.size
    turn.state = TurnState(told.state)
    turn.calls = tuple(sys.intern(call) for call in told.calls)
    turn.answer, turn.said, turn.response_id = told.answer, told.said, told.response_id
    turn.others, turn.begun, turn.beside = told.others, told.begun, told.beside
    for bit, name in enumerate(_FLAGS):
        setattr(turn, name, bool(told.flags >> bit & 1))
    if told.boundary:
        end = turn.text = TextEnd(boundary=told.boundary, length=told.length, tail=b"")
        end.chains, end.places = list(told.chains), list(told.places)
    return turn


def encode_turn(turn: Any, *, step_id: str = "") -> tuple[int, int, bytes]:
    """A turn as (handle, instant, bytes). It may change meanwhile: then it is told again."""
    conversation: Conversation = turn.conversation
    program = conversation.program
    end: TextEnd | None = turn.text
    kept = KeptTurn(
        handle=turn.handle,
        at=turn.at,
        tenant=program.book.name,
        program=program.id,
        is_declared=program.is_declared,
        program_agent=program.agent,
        parent=program.parent,
        program_steps=program.steps,
        branches=program.branches,
        heads=program.heads,
        conversation=conversation.id,
        thread=conversation.thread,
        is_exact=program.book.threads.get(conversation.thread) == program.id,
        conversation_head=conversation.head,
        is_subagent=conversation.is_subagent,
        agent=conversation.agent,
        first=conversation.first,
        prompt=turn.prompt,
        head=turn.head,
        answer=turn.answer,
        calls=turn.calls,
        said=turn.said,
        response_id=turn.response_id,
        state=int(turn.state),
        step=turn.step,
        step_class=turn.step_class.value,
        size=turn.size,
        flags=sum(getattr(turn, name) << bit for bit, name in enumerate(_FLAGS)),
        boundary=end.boundary if end is not None else b"",
        length=end.length if end is not None else 0,
        chains=tuple(end.chains) if end is not None else (),
        places=tuple(end.places) if end is not None else (),
        step_id=step_id,
        needles=turn.traces,
        origin=turn.origin.handle if turn.origin is not None else 0,
        others=turn.others,
        begun=turn.begun,
        beside=turn.beside,
    )
    return turn.handle, turn.at, _ENCODE(kept)


class KeptIndex(IdentityIndex):
    """An index that tells `keep` of every turn that is new or has changed."""

    def __init__(self, *, keep: Callable[[Turn], None], first_handle: int, **given: Any) -> None:
        super().__init__(**given)
        self._keep = keep
        # Handles, and the names of programs that are made of them, are never given twice.
        self._next = first_handle
        self._learner.is_kept = True

    def identify(
        self,
        request: ParsedRequest,
        headers: Mapping[str, str],
        *,
        tenant: TenantId,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
        is_dry: bool = False,
    ) -> Identity:
        identity = super().identify(
            request,
            headers,
            tenant=tenant,
            now=now,
            bytes_per_token=bytes_per_token,
            is_dry=is_dry,
        )
        program = self._programs.get(identity.program) if identity.turn else None
        turn = program.open.get(identity.turn) if program is not None else None
        if turn is not None:
            self._keep(turn)
            if turn.origin is not None:
                self._keep(turn.origin)
            if identity.retries:
                self._keep_retaken(turn, identity.retries)
        return identity

    def _keep_retaken(self, turn: Turn, handle: int) -> None:
        earlier = turn.conversation.program.turn(handle)
        if earlier is not None:
            self._keep(earlier)

    def answered(
        self,
        identity: Identity,
        answer: Answer,
        *,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
        can_be_named: bool = True,
    ) -> Prefix | None:
        turn = self._open_turn(identity)
        origin = turn.origin if turn is not None else None
        prefix = super().answered(
            identity, answer, now=now, bytes_per_token=bytes_per_token, can_be_named=can_be_named
        )
        if turn is not None:
            self._keep(turn)
        if origin is not None and not origin.is_continued:
            self._keep(origin)  # the answer was cut short
        return prefix

    def abandoned(self, identity: Identity, *, now: Instant) -> None:
        turn = self._open_turn(identity)
        origin = turn.origin if turn is not None else None
        super().abandoned(identity, now=now)
        for changed in (turn, origin):
            if changed is not None:
                self._keep(changed)

    def _used(self, needle: Needle) -> None:
        self._keep(needle.turn)

    def _open_turn(self, identity: Identity) -> Turn | None:
        program = self._programs.get(identity.program)
        return program.open.get(identity.turn) if program is not None else None

    # After a restart.

    def bring_back(self, kept: Iterable[bytes], *, now: Instant) -> dict[int, StepId]:
        """Make the index anew of turns in the order of their coming.

        Turns without an answer count as abandoned now: whoever sends one of them again retries it.
        Returns the steps of those, by handle, where they are known.
        """
        unanswered: dict[int, StepId] = {}
        given_up: list[Turn] = []
        greatest = 0
        for data in kept:
            told = decode_turn(data)
            if told is None:
                continue  # of another version: its client is known by its other turns
            turn = self._turn(told)
            greatest = max(greatest, told.handle)
            state = turn.state
            self._look_for(turn, told.needles, now=now)
            if state is not TurnState.ANSWERED:
                if state is TurnState.OPEN:
                    turn.state, turn.at = TurnState.ABANDONED, now
                    given_up.append(turn)
                if told.step_id:
                    unanswered[turn.handle] = StepId(told.step_id)
        if greatest >= self._next:
            # Whose clock is ahead may still be counting there: go where nobody is.
            self._next = greatest + 1 + secrets.randbits(_APART_BITS)
        for turn in given_up:
            if _is_last(turn):
                turn.free_origin()
        for program in self._programs.values():
            for conversation in program.conversations.values():
                self._cookies.issue(program.book.name, program.id, conversation.id)
        ordered = sorted(self._programs.values(), key=lambda p: p.last_at)
        for program in ordered:
            self._programs.move_to_end(program.id)
            self._note_unserved(program)
        return unanswered

    def _look_for(self, turn: Turn, needles: Sequence[KeptNeedle], *, now: Instant) -> None:
        """Texts that this turn gave out may still turn up, unless that is too long ago."""
        if now - turn.at > self._limits.needle_ns_max:
            return
        known = len(turn.traces)
        if len(needles) <= known:
            return
        turn.traces = tuple(needles)
        book = turn.conversation.program.book
        for place, needle in enumerate(needles[known:], start=known):
            book.looked_for(needle.kind).add(needle.needle(turn, place))

    def _turn(self, told: KeptTurn) -> Turn:
        program = self._program(told)
        turn = read_turn(told, self._conversation(program, told))
        self._enter(turn, program.book)
        turn.origin = program.turn(told.origin) if told.origin else None
        program.turns.append(turn)
        self._turns += 1
        self._make_room(program)
        return turn

    def _enter(self, turn: Turn, book: Book) -> None:
        """Make a turn known under everything that names it."""
        room = self._limits.candidates_max
        ends = turn.text
        for chain in (turn.prompt, turn.answer, *turn.others, *(ends.chains if ends else ())):
            if chain:
                book.add_point(chain, turn, candidates_max=room)
        for boundary, length in ends.places if ends else ():
            book.add_length(boundary, length)
        for call_id in turn.calls:
            book.add_call(call_id, turn)
        if turn.said:
            book.add_said(turn.said, turn)
        if turn.response_id:
            book.responses.setdefault(turn.response_id, turn)

    def _program(self, told: KeptTurn) -> Program:
        tenant, key = TenantId(told.tenant), ProgramId(told.program)
        program = self._programs.get(key)
        if program is None:
            book = self._books.get(tenant)
            if book is None:
                book = Book(name=tenant, needles_max=self._limits.needles_per_tenant_max)
            program = self._open(book, key, now=Instant(told.at))
            program.is_declared = told.is_declared
        program.agent = told.program_agent or program.agent
        program.parent = ProgramId(told.parent) if told.parent else program.parent
        program.steps = max(program.steps, told.program_steps)
        program.branches = max(program.branches, told.branches)
        program.heads = max(program.heads, told.heads)
        program.last_at = max(program.last_at, Instant(told.at))
        return program

    def _conversation(self, program: Program, told: KeptTurn) -> Conversation:
        key = ConversationId(told.conversation)
        conversation = program.conversations.get(key)
        if conversation is None:
            conversation = program.conversations[key] = Conversation(
                program=program, conversation=key, thread=told.thread, head=told.conversation_head
            )
            conversation.first = told.first
        conversation.head = told.conversation_head
        conversation.is_subagent = told.is_subagent
        conversation.agent = told.agent or conversation.agent
        if told.is_exact and told.thread:
            program.book.threads[told.thread] = program.id
        return conversation


def _is_last(turn: Turn) -> bool:
    """Whether nothing was asked in its conversation after it: what was is asked instead of it."""
    turns = reversed(turn.conversation.program.turns)
    return next((t for t in turns if t.conversation is turn.conversation), None) is turn
