"""How large programs get and how long they take, by kind: by the head that their prompts share.

Agents of one type share their system prompt and tools, so a program is of the kind of its
prompts. A chat that asks one thing of 200 tokens and an agent that grows to 50,000 are told apart
by it before either was served. Sizes and times are those of programs that went on after their first
answer: of single questions there may be any number, and they take nobody's place. Until a few of a
kind have ended it is taken to be as all are.

A kind is a tenant's own: what others ask says nothing about its programs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from agentsched.model import StepArrived, TenantId
from agentsched.policy import StepView

#: As many ends as the mean of all kinds weighs beside a kind's own.
_WEIGHT: Final = 2.0
#: Means are those of the latest so many ends, about.
_MEMORY: Final = 64
#: The chance that a program goes on after its first answer, before anything is known; its weight.
_CHANCE: Final = 0.5
_CHANCE_WEIGHT: Final = 8.0
#: Of fewer programs than this share that go on a kind consists of single questions.
_QUESTION: Final = 0.25
#: Programs of a kind before it is one.
_SEEN_MIN: Final = 2


class Kind(NamedTuple):
    """A tenant, and the head of a prompt; "" for prompts that name none."""

    tenant: TenantId
    head: str


#: Every kind of which too little is known. No prefix is called so.
_UNKNOWN: Final = Kind(TenantId(""), "?")


def kind_of(step: StepArrived | StepView) -> Kind:
    """The kind of program whose first request this is."""
    return Kind(step.tenant, step.prefixes[0].prefix if len(step.prefixes) > 1 else "")


@dataclass(frozen=True, slots=True)
class End:
    """How a program that went on ended: tokens of its own, nanoseconds without its waits."""

    tokens: int
    took_ns: int


@dataclass(slots=True)
class _Ends:
    """Means over ends, tokens and nanoseconds. Of programs that were answered once, how many then
    went on and how many were over."""

    count: int = 0
    tokens: float = 0.0
    took_ns: float = 0.0
    went_on: float = 0.0
    single: float = 0.0

    def add(self, end: End) -> None:
        self.count = min(self.count + 1, _MEMORY)
        self.tokens += (end.tokens - self.tokens) / self.count
        self.took_ns += (end.took_ns - self.took_ns) / self.count

    def take_back(self, end: End) -> None:
        if self.count <= 1:
            self.count, self.tokens, self.took_ns = 0, 0.0, 0.0
            return
        self.tokens = max(0.0, self.tokens + (self.tokens - end.tokens) / (self.count - 1))
        self.took_ns = max(0.0, self.took_ns + (self.took_ns - end.took_ns) / (self.count - 1))
        self.count -= 1

    def fade(self) -> None:
        """Old counts weigh less: kinds change."""
        if self.went_on + self.single > _MEMORY:
            self.went_on /= 2.0
            self.single /= 2.0

    @property
    def chance_of_more(self) -> float:
        seen = self.went_on + self.single
        return (self.went_on + _CHANCE_WEIGHT * _CHANCE) / (seen + _CHANCE_WEIGHT)


class UsualEnds:
    """Learns from ends. Bounded by `kinds_max`; the one that was heard of longest ago goes.

    A kind of which a single program was seen is none: prompts that all begin with something of
    their own (a date, a name) are as many kinds as programs, and teach nothing about each other.
    """

    def __init__(self, *, kinds_max: int = 4_096) -> None:
        self._kinds_max = kinds_max
        self._all = _Ends()
        self._kinds: OrderedDict[Kind, _Ends] = OrderedDict()
        self._has_forgotten = False
        #: Those of them of which enough was seen.
        self._known: dict[Kind, _Ends] = {}

    def ended(self, kind: Kind, end: End) -> None:
        """A program that had gone on ended."""
        self._all.add(end)
        self._of(kind).add(end)

    def take_back(self, kind: Kind, end: End) -> None:
        """The program that was counted so goes on."""
        self._all.take_back(end)
        self._of(kind).take_back(end)

    def went_on(self, kind: Kind) -> bool:
        """A program that was answered once asks for more. Says whether a size or name changed."""
        known = self._of(kind)
        known.went_on += 1.0
        known.fade()
        return self._note(kind, known) or self._has_forgotten

    def was_single(self, kind: Kind, *, times: float = 1.0) -> None:
        """A program asked for one thing and no more; -1 where it goes on after all."""
        known = self._of(kind)
        known.single = max(0.0, known.single + times)
        known.fade()
        self._note(kind, known)

    def name(self, kind: Kind) -> Kind:
        """The kind itself where something is known of it, else one name for all that are not."""
        return kind if kind in self._known else _UNKNOWN

    def tokens(self, kind: Kind) -> float:
        """The mean size of a kind at its end; 0 while nothing is known."""
        known = self._known.get(kind)
        if known is None or not known.count:
            return self._all.tokens
        return _drawn(known.tokens, known.count, self._all.tokens)

    def took_ns(self, kind: Kind) -> float:
        """The mean time that it takes; 0 likewise."""
        known = self._known.get(kind)
        if known is None or not known.count:
            return self._all.took_ns
        return _drawn(known.took_ns, known.count, self._all.took_ns)

    def chance_of_more(self, kind: Kind) -> float:
        """That a program of this kind goes on after its first answer."""
        known = self._known.get(kind)
        return _CHANCE if known is None else known.chance_of_more

    def is_question(self, kind: Kind) -> bool:
        """Whether this kind is mostly over with its first answer."""
        return self.chance_of_more(kind) < _QUESTION

    def asks_one(self, kinds: Collection[Kind]) -> bool:
        """Whether one of these kinds is."""
        return any(self.is_question(kind) for kind in self._among(kinds))

    def least_tokens(self, kinds: Collection[Kind]) -> float:
        """The size of the smallest of these kinds, or less."""
        least = min((self.tokens(kind) for kind in self._among(kinds)), default=self._all.tokens)
        return min(least, self._all.tokens)

    def _among(self, kinds: Collection[Kind]) -> Collection[Kind]:
        """Those of which something is known; whoever of many is unknown costs nothing."""
        if len(kinds) <= len(self._known):
            return [kind for kind in kinds if kind in self._known]
        return [kind for kind in self._known if kind in kinds]

    def _of(self, kind: Kind) -> _Ends:
        known = self._kinds.get(kind)
        self._has_forgotten = False
        if known is None:
            known = self._kinds[kind] = _Ends()
            if len(self._kinds) > self._kinds_max:
                gone, _ = self._kinds.popitem(last=False)
                self._has_forgotten = self._known.pop(gone, None) is not None
        else:
            self._kinds.move_to_end(kind)
        return known

    def _note(self, kind: Kind, known: _Ends) -> bool:
        was_known = kind in self._known
        if known.went_on + known.single >= _SEEN_MIN:
            self._known[kind] = known
        else:
            self._known.pop(kind, None)
        return was_known is not (kind in self._known)


def _drawn(own: float, count: int, to: float) -> float:
    return (own * count + to * _WEIGHT) / (count + _WEIGHT)
