"""Programs that several replicas serve: an index that learns the turns of the others.

Each replica tells its turns, as the bytes of `keeping`, and learns those of the others; so whoever
meets the next request knows the conversation, with ids and without. Replicas must share the secret
that keys the hashes. What arrives twice, late or out of order changes nothing that is known better.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
import xxhash

from agentsched.model import Instant, ProgramId, TenantId
from agentsched.proxy.identity.atoms import Atom, Kind
from agentsched.proxy.identity.keeping import KeptIndex, KeptTurn, decode_turn, read_turn
from agentsched.proxy.identity.match import Asked, Relation
from agentsched.proxy.identity.naming import without_shared
from agentsched.proxy.identity.prompt import Prompt
from agentsched.proxy.identity.records import Turn, TurnState
from agentsched.proxy.request import ParsedRequest

#: Requests that run at other replicas; of more, those that came first are forgotten.
_OPEN_MAX: Final = 20_000
_MERGED: Final = ("is_continued", "is_handed", "retaken", "is_solid", "has_tools")


class SharedIndex(KeptIndex):
    """A kept index that can tell and learn."""

    def __init__(self, *, keep: Callable[[Turn], None], **given: Any) -> None:
        super().__init__(keep=self._kept, **given)
        self._store = keep
        self._tell: Callable[[Turn], None] | None = None
        #: Turns that another replica serves at the moment, and which one.
        self._elsewhere: OrderedDict[int, tuple[str, Turn]] = OrderedDict()

    @property
    def secret_mark(self) -> bytes:
        """Tells whether another index uses the same secret, without telling the secret."""
        return xxhash.xxh3_64_digest(b"agentsched: do our hashes agree?", seed=self._secret)

    def tell_with(self, tell: Callable[[Turn], None]) -> None:
        """Call `tell` for every turn that is new or has changed, as `keep` is."""
        self._tell = tell

    def _kept(self, turn: Turn) -> None:
        self._store(turn)
        if self._tell is not None:
            self._tell(turn)

    def is_orphan(
        self,
        request: ParsedRequest,
        headers: Mapping[str, str],
        *,
        tenant: TenantId,
        now: Instant,
    ) -> bool:
        """Whether this request goes on from something that is not known here. Changes nothing.

        What looks like a branch off a turn that went on already may be one whose last answer was
        given elsewhere a moment ago, and so may what holds further answers: both are waited for.

        Only exact means are asked: this stands before every request of a cluster.
        """
        book = self._books.get(tenant)
        claim = self._reader.read(request, headers)
        if claim is not None and book is not None:
            claim = without_shared(claim, book)
        if claim is not None and claim.is_naming:
            return False  # its client says whose it is
        prompt = self._digester.digest(request)
        if prompt.is_first:
            return False
        if book is None:
            return True
        asked = Asked(
            prompt=prompt,
            book=book,
            program=None,
            thread="",
            is_single=False,
            is_resent=False,
            is_auxiliary=False,
            now=now,
        )
        match = self._exactly(asked, request, self._previous(book, request))
        if match is None or match.relation is Relation.FORKS:
            return True
        return match.relation is Relation.EXTENDS and _holds_more(prompt, match.turn)

    def learn(self, data: bytes, *, at: Instant, now: Instant, replica: str = "") -> Turn | None:
        """Take in a turn of another replica, as `encode_turn` wrote it; `at` is in our own time.

        Returns the turn; None where it is of another version.
        """
        told = decode_turn(data)
        if told is None:
            return None
        told = msgspec.structs.replace(told, at=at)
        program = self._programs.get(ProgramId(told.program))
        turn = program.turn(told.handle) if program is not None else None
        if turn is None:
            turn = self._turn(told)
            self._look_for(turn, told.needles, now=now)
        else:
            self._merge(turn, told, now=now)
        program = turn.conversation.program
        self._touch(program, max(program.last_at, at))
        self._note_unserved(program)
        self._cookies.issue(program.book.name, program.id, turn.conversation.id)
        self._note_open(turn, replica)
        return turn

    def gone(self, replica: str, *, now: Instant) -> int:
        """A replica died: what it served has no answer, so it may be asked for again."""
        lost = [h for h, (owner, _) in self._elsewhere.items() if owner == replica]
        for handle in lost:
            _, turn = self._elsewhere.pop(handle)
            if turn.state is TurnState.OPEN:
                self._abandon(turn, now=now)
        return len(lost)

    def _note_open(self, turn: Turn, replica: str) -> None:
        is_ours = turn.handle in turn.conversation.program.open
        if turn.state is not TurnState.OPEN or is_ours or not replica:
            self._elsewhere.pop(turn.handle, None)
            return
        self._elsewhere[turn.handle] = replica, turn
        if len(self._elsewhere) > _OPEN_MAX:
            self._elsewhere.popitem(last=False)

    def _merge(self, turn: Turn, told: KeptTurn, *, now: Instant) -> None:
        """Learn more about a turn that is known already."""
        new = read_turn(told, turn.conversation)
        for name in _MERGED:
            setattr(turn, name, getattr(turn, name) or getattr(new, name))
        book = turn.conversation.program.book
        if turn.prompt and not told.prompt:
            # It went on from its answer: its prompt will not be asked for again.
            book.drop_point(turn.prompt, turn)
            turn.prompt = turn.begun = b""
        is_ours = turn.handle in turn.conversation.program.open
        if is_ours or turn.state is TurnState.ANSWERED or new.state is turn.state:
            return
        book.forget_turn(turn)
        turn.state, turn.at = new.state, Instant(told.at)
        turn.answer, turn.said, turn.calls = new.answer, new.said, new.calls
        turn.others, turn.begun = new.others, new.begun
        turn.response_id, turn.text = new.response_id, new.text
        if turn.origin is not None:
            # Only by this turn's end is it known that what it goes on from may be gone on from.
            turn.origin.is_continued = turn.state is not TurnState.ABANDONED
        if turn.state is TurnState.ANSWERED:
            turn.origin = None
        self._enter(turn, book)
        self._look_for(turn, told.needles, now=now)


def _holds_more(prompt: Prompt, turn: Turn) -> bool:
    """Whether a prompt that extends a turn holds answers that were given after that turn's."""
    for point in reversed(prompt.points):
        if turn.answer and point.chain == turn.answer:
            return _answers(prompt.atoms[point.atom :]) > 0
        if turn.prompt and point.chain == turn.prompt:
            return _answers(prompt.atoms[point.atom :]) > 1
    return False


def _answers(atoms: Sequence[Atom]) -> int:
    """How often an assistant takes the word."""
    spoken = [atom.kind in (Kind.ASSISTANT, Kind.CALL) for atom in atoms]
    return sum(now and not before for before, now in pairwise([False, *spoken]))
