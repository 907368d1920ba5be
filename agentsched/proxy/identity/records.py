"""What the index remembers: turns, conversations, programs, and one book of them per tenant."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from agentsched.model import ConversationId, Instant, ProgramId, StepClass, TenantId
from agentsched.proxy.identity.needles import KeptNeedle, NeedleKind, Needles

if TYPE_CHECKING:
    from agentsched.proxy.identity.prompt import Prefill

#: Ids that engines count up (`call_1`, `functions.get:0`) say nothing without their history.
_WEAK_ID: Final = re.compile(r"[^0-9]*\d{0,4}")
_SHARED_MAX: Final = 4_096
_QUOTES_PER_NEEDLE: Final = 4


def is_weak(call_id: str) -> bool:
    """Whether another program's engine could hand out the same id."""
    return _WEAK_ID.fullmatch(call_id) is not None


class TurnState(IntEnum):
    """How far a request has come."""

    OPEN = 0  # no answer yet
    ANSWERED = 1
    ABANDONED = 2  # no complete answer reached the client: it may ask again


class Turn:
    """One request and its answer. `answer` is the chain behind the answer, empty while unknown."""

    __slots__ = (
        "answer",
        "at",
        "begun",
        "beside",
        "calls",
        "conversation",
        "handle",
        "has_tools",
        "head",
        "is_continued",
        "is_first",
        "is_handed",
        "is_solid",
        "origin",
        "others",
        "prefill",
        "prompt",
        "response_id",
        "retaken",
        "said",
        "size",
        "state",
        "step",
        "step_class",
        "text",
        "traces",
    )

    def __init__(
        self, *, conversation: Conversation, prompt: bytes, head: bytes, at: Instant
    ) -> None:
        self.conversation = conversation
        #: What `Identity.turn` says of it.
        self.handle = 0
        #: The first of the turns with this prompt that had no answer yet when it came, or 0.
        self.beside = 0
        self.prompt = prompt
        self.head = head
        self.at = at
        self.answer = b""
        #: Where else its answer may end, as some clients send it back.
        self.others: tuple[bytes, ...] = ()
        #: Short hashes of the beginnings of its answer, where that is text alone; empty with
        #: `prompt`, behind which they are looked for.
        self.begun = b""
        #: What its prompt begins of the answer, until that is there.
        self.prefill: Prefill | None = None
        self.calls: tuple[str, ...] = ()
        self.said = b""
        self.response_id = ""
        self.state = TurnState.OPEN
        self.step = 0
        self.step_class = StepClass.STEP
        #: Bytes of its prompt, and of its answer once that is known.
        self.size = 0
        self.has_tools = False
        #: The turn that this one goes on from, until this one is answered.
        self.origin: Turn | None = None
        #: Another request of the program went on from here, with the same system prompt and tools.
        self.is_continued = False
        #: Likewise, with another system prompt or other tools.
        self.is_handed = False
        #: No assistant answers in the prompt: equal prompts may be different programs.
        self.is_first = True
        #: The prompt holds a tool-call id that we handed out, and only we can have.
        self.is_solid = False
        #: A retry of this turn has come.
        self.retaken = False
        #: For completions: where the texts of prompt and answer end.
        self.text: TextEnd | None = None
        #: What is kept of its needles, where anything is.
        self.traces: tuple[KeptNeedle, ...] = ()

    @property
    def group(self) -> int:
        """The same for turns with one prompt that were asked for at once."""
        return self.beside or self.handle

    def abandon(self, *, now: Instant) -> None:
        """Note that no complete answer reached the client."""
        self.state = TurnState.ABANDONED
        self.at = now
        self.prefill = None
        self.free_origin()

    def free_origin(self) -> None:
        """If something else is asked instead of this turn, it goes on from where this one did."""
        if self.origin is not None:
            self.origin.is_continued = False


class TextEnd:
    """The open end of a completion's prompt, and the places in `Book.lengths` that it took.

    `is_ids` means that it is of token ids, packed, and not of text.
    """

    __slots__ = ("boundary", "chains", "is_ids", "length", "places", "tail")

    def __init__(self, *, boundary: bytes, length: int, tail: bytes, is_ids: bool = False) -> None:
        self.is_ids = is_ids
        self.boundary = boundary
        self.length = length
        self.tail = tail
        self.chains: list[bytes] = []
        self.places: list[tuple[bytes, int]] = []


class Conversation:
    """One KV lineage. `thread` is the client's name for it, empty where we found it ourselves."""

    __slots__ = ("agent", "first", "head", "id", "is_subagent", "program", "thread")

    def __init__(
        self, *, program: Program, conversation: ConversationId, thread: str, head: bytes
    ) -> None:
        self.program = program
        self.id = conversation
        self.thread = thread
        self.head = head
        self.is_subagent = False
        self.agent = ""
        #: The chain of its first message.
        self.first = b""


class Program:
    """One agent run. Turns and conversations are in order of their making."""

    __slots__ = (
        "agent",
        "book",
        "branches",
        "conversations",
        "heads",
        "id",
        "is_declared",
        "last_at",
        "open",
        "parent",
        "steps",
        "turns",
    )

    def __init__(self, *, program: ProgramId, book: Book, is_declared: bool) -> None:
        self.id = program
        self.book = book
        self.is_declared = is_declared
        self.conversations: dict[ConversationId, Conversation] = {}
        self.turns: list[Turn] = []  # few: a deque would take three times the bytes
        #: Handle -> turn that has no answer yet.
        self.open: dict[int, Turn] = {}
        self.steps = 0
        self.branches = 0
        self.heads = 0
        self.agent = ""
        self.parent: ProgramId | None = None
        self.last_at = Instant(0)

    def turn(self, handle: int) -> Turn | None:
        """The turn with this handle; most are asked for shortly after they came."""
        return next((turn for turn in reversed(self.turns) if turn.handle == handle), None)

    def threads(self, thread: str) -> list[Conversation]:
        """The conversations that the client calls by this name, oldest first."""
        return [c for c in self.conversations.values() if c.thread == thread]


class Book:
    """One tenant's index. Nothing in it is ever looked up for another tenant."""

    __slots__ = (
        "calls",
        "lengths",
        "name",
        "needles",
        "points",
        "programs",
        "quotes",
        "responses",
        "said",
        "shared",
        "threads",
    )

    def __init__(self, *, name: TenantId, needles_max: int) -> None:
        self.name = name
        #: How many programs there are in it.
        self.programs = 0
        #: Chain -> the turn, or the turns, whose prompt or answer ends there.
        self.points: dict[bytes, Turn | list[Turn]] = {}
        #: Call id -> the turn that handed it out; None: more than one did.
        self.calls: dict[str, Turn | None] = {}
        #: Response id -> its turn.
        self.responses: dict[str, Turn] = {}
        #: Digest of a long answer -> its turn; None: more than one program's.
        self.said: dict[bytes, Turn | None] = {}
        #: Boundary chain -> lengths of completions' texts that end behind it.
        self.lengths: dict[bytes, dict[int, int]] = {}
        #: The client's name of a thread -> its program.
        self.threads: OrderedDict[str, ProgramId] = OrderedDict()
        #: Cache keys that many programs send, so that they name none; bounded by `share`.
        self.shared: OrderedDict[str, None] = OrderedDict()
        self.needles = Needles(size=needles_max)
        #: What was said last, for condensers tell it again.
        self.quotes = Needles(size=_QUOTES_PER_NEEDLE * needles_max)

    def looked_for(self, kind: NeedleKind) -> Needles:
        """Where texts of a kind are."""
        return self.quotes if kind is NeedleKind.QUOTE else self.needles

    def share(self, key: str) -> None:
        """Note that a cache key stands for more than one program."""
        self.shared[key] = None
        if len(self.shared) > _SHARED_MAX:
            self.shared.popitem(last=False)

    def at(self, chain: bytes) -> Sequence[Turn]:
        """The turns whose prompt or answer ends at `chain`, oldest first."""
        turns = self.points.get(chain)
        if turns is None:
            return ()
        return (turns,) if isinstance(turns, Turn) else turns

    def add_point(self, chain: bytes, turn: Turn, *, candidates_max: int) -> None:
        turns = self.points.get(chain)
        if turns is None:
            self.points[chain] = turn
        elif isinstance(turns, Turn):
            if turns is not turn:
                self.points[chain] = [turns, turn]
        elif turn not in turns:
            turns.append(turn)
            if len(turns) > candidates_max:
                del turns[0]

    def drop_point(self, chain: bytes, turn: Turn) -> None:
        turns = self.points.get(chain)
        if turns is turn:
            del self.points[chain]
        elif isinstance(turns, list) and turn in turns:
            turns.remove(turn)
            if not turns:
                del self.points[chain]

    def add_call(self, call_id: str, turn: Turn) -> bool:
        """Remember who handed an id out. False: it was another turn's already."""
        if call_id not in self.calls:
            self.calls[call_id] = turn
            return True
        known = self.calls[call_id]
        if known is turn:
            return True
        if known is not None and known.retaken and known.prompt == turn.prompt:
            self.calls[call_id] = turn
            return True
        self.calls[call_id] = None
        return False

    def add_said(self, digest: bytes, turn: Turn) -> None:
        known = self.said.get(digest, turn)
        same = known is not None and known.conversation.program is turn.conversation.program
        self.said[digest] = turn if same else None

    def forget_turn(self, turn: Turn) -> None:
        """Take a turn out of every index."""
        ends = turn.text
        for chain in (turn.prompt, turn.answer, *turn.others, *(ends.chains if ends else ())):
            self.drop_point(chain, turn)
        for call_id in turn.calls:
            if self.calls.get(call_id, turn) in (turn, None):
                self.calls.pop(call_id, None)
        for boundary, length in ends.places if ends else ():
            self._drop_length(boundary, length)
        if turn.said and self.said.get(turn.said, turn) in (turn, None):
            self.said.pop(turn.said, None)
        if turn.response_id and self.responses.get(turn.response_id) is turn:
            del self.responses[turn.response_id]

    def add_length(self, boundary: bytes, length: int) -> None:
        lengths = self.lengths.setdefault(boundary, {})
        lengths[length] = lengths.get(length, 0) + 1

    def _drop_length(self, boundary: bytes, length: int) -> None:
        lengths = self.lengths.get(boundary)
        if lengths is None:
            return
        left = lengths.get(length, 0) - 1
        if left > 0:
            lengths[length] = left
            return
        lengths.pop(length, None)
        if not lengths:
            del self.lengths[boundary]
