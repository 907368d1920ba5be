"""How large programs get and how long they take, by kind: by the head that their prompts share.

Agents of one type share their system prompt and tools, so a program is of the kind of its
prompts. A chat that asks one thing of 200 tokens and an agent that grows to 50,000 are told apart
by it before either was served. Until a few of a kind have ended it is taken to be as all are that
were asked for more than once: of single questions there may be any number, and agents are none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentsched.model import Prefix

#: As many ends as the mean of all kinds weighs beside a kind's own.
_WEIGHT: Final = 2.0
#: No prefix is called so.
_UNKNOWN: Final = "?"
#: Programs of a kind before it is one.
_SEEN_MIN: Final = 2
#: Means are those of the latest so many ends, about.
_MEMORY: Final = 64
#: The chance that a program goes on after its first answer, before anything is known; its weight.
_CHANCE: Final = 0.5
_CHANCE_WEIGHT: Final = 4.0


def kind_of(prefixes: Sequence[Prefix]) -> str:
    """The head of a prompt; "" for a prompt that names none."""
    return prefixes[0].prefix if len(prefixes) > 1 else ""


@dataclass(frozen=True, slots=True)
class End:
    """How a program ended: tokens of its own, and nanoseconds without its waits.

    `is_single`: it asked for one thing and no more.
    """

    tokens: int
    took_ns: int
    is_single: bool


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


class UsualEnds:
    """Learns from ends. Bounded by `kinds_max`; the one that was heard of longest ago goes.

    A kind of which a single program was seen is none: prompts that all begin with something of
    their own (a date, a name) are as many kinds as programs, and teach nothing about each other.
    """

    def __init__(self, *, kinds_max: int = 4_096) -> None:
        self._kinds_max = kinds_max
        self._all = _Ends()
        self._kinds: OrderedDict[str, _Ends] = OrderedDict()

    def ended(self, kind: str, end: End) -> None:
        """A program ended."""
        if not end.is_single:
            self._all.add(end)
        known = self._of(kind)
        known.add(end)
        if end.is_single:
            known.single += 1.0
            known.fade()

    def take_back(self, kind: str, end: End) -> None:
        """The program that was counted so goes on."""
        if not end.is_single:
            self._all.take_back(end)
        known = self._of(kind)
        known.take_back(end)
        if end.is_single:
            known.single = max(0.0, known.single - 1.0)

    def went_on(self, kind: str) -> None:
        """A program that was answered once asks for more."""
        known = self._of(kind)
        known.went_on += 1.0
        known.fade()

    def name(self, kind: str) -> str:
        """The kind itself where something is known of it, else one name for all that are not."""
        return kind if self._known(kind) is not None else _UNKNOWN

    def tokens(self, kind: str) -> float:
        """The mean size of a kind at its end; 0 while nothing is known."""
        known = self._known(kind)
        if known is None or not known.count:
            return self._all.tokens
        if not self._all.count:
            return known.tokens
        return _drawn(known.tokens, known.count, self._all.tokens)

    def took_ns(self, kind: str) -> float:
        """The mean time that it takes; 0 likewise."""
        known = self._known(kind)
        if known is None or not known.count:
            return self._all.took_ns
        if not self._all.count:
            return known.took_ns
        return _drawn(known.took_ns, known.count, self._all.took_ns)

    def chance_of_more(self, kind: str) -> float:
        """That a program of this kind goes on after its first answer."""
        known = self._known(kind)
        if known is None:
            return _CHANCE
        seen = known.went_on + known.single
        return (known.went_on + _CHANCE_WEIGHT * _CHANCE) / (seen + _CHANCE_WEIGHT)

    def _known(self, kind: str) -> _Ends | None:
        known = self._kinds.get(kind)
        if known is None or known.count + known.went_on < _SEEN_MIN:
            return None
        return known

    def _of(self, kind: str) -> _Ends:
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Ends()
            if len(self._kinds) > self._kinds_max:
                self._kinds.popitem(last=False)
        else:
            self._kinds.move_to_end(kind)
        return known


def _drawn(own: float, count: int, to: float) -> float:
    return (own * count + to * _WEIGHT) / (count + _WEIGHT)
