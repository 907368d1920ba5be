"""What a program calls next, from the tool sequences of others of its agent type.

Theory. A Markov chain over tool names of order two, backing off to one and none as Witten and Bell
do: a context that was followed by `d` different tools in `n` cases leaves `d / (n + d)` of the
probability to the next shorter one. The end of a turn (an answer that calls no tool) is a word like
another. How long a context is listened to is decided by a contest on the past, against a constant:
the frequencies of all agents' tools.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Final

from agentsched.model import ToolName
from agentsched_graphs.contest import Contest

#: Stands for an answer that calls no tool.
END: Final = ToolName("(end)")
LEVELS: Final = ("all", "agent", "one before", "two before")

_FULL: Final = 2_048.0
_FOLLOWERS_MAX: Final = 256


class _Followers:
    """How often each tool came next in one context; old counts fade."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[ToolName, float] = {}
        self.total = 0.0

    def add(self, tool: ToolName) -> None:
        counts = self.counts
        if tool not in counts and len(counts) >= _FOLLOWERS_MAX:
            rarest = min(counts, key=counts.__getitem__)
            self.total -= counts.pop(rarest)
        counts[tool] = counts.get(tool, 0.0) + 1.0
        self.total += 1.0
        if self.total > _FULL:
            self.counts = {t: n * 0.5 for t, n in counts.items() if n > 0.5}
            self.total = sum(self.counts.values())

    def probability(self, tool: ToolName, before: float) -> float:
        distinct = len(self.counts)  # never 0: who has no followers is not asked for
        return (self.counts.get(tool, 0.0) + distinct * before) / (self.total + distinct)

    def kept_back(self, before: float) -> float:
        """The probability of whatever never came next here."""
        distinct = len(self.counts)
        return distinct * before / (self.total + distinct)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextTools:
    """Tools by how likely they come next; `level` is the context used, "all" the constant.

    `END` among them stands for an answer that calls no tool.
    """

    level: str
    tools: tuple[tuple[ToolName, float], ...]
    #: The probability that is kept back for a tool that nobody has called before.
    unseen: float = 1.0

    @property
    def has_skill(self) -> bool:
        """Whether it has shown to tell more than the constant."""
        return self.level != LEVELS[0]


class ToolTemplates:
    """Learns sequences, and forecasts. Bounded by `contexts_max`; the one unused longest goes."""

    def __init__(self, *, contexts_max: int = 4_096) -> None:
        self._contexts_max = contexts_max
        self._all = _Followers()
        self._contexts: OrderedDict[tuple[str, ...], _Followers] = OrderedDict()
        self._contests: OrderedDict[str, Contest] = OrderedDict()

    def followed(self, *, agent: str, context: Sequence[ToolName], tool: ToolName) -> None:
        """After these tools (the latest last) an agent of this type called `tool`."""
        contest = self._contests.get(agent)
        if contest is None:
            contest = self._contests[agent] = Contest(len(LEVELS))
            if len(self._contests) > self._contexts_max:
                self._contests.popitem(last=False)
        probability = 1.0 / (len(self._all.counts) + 1.0)
        logs = []
        for followers in self._followers(agent, context):
            # Every step comes by here, so what `probability` and `add` do is written out.
            counts = followers.counts
            times, distinct = counts.get(tool, 0.0), len(counts)
            if distinct:
                probability = (times + distinct * probability) / (followers.total + distinct)
            logs.append(log(probability))
            if times and followers.total < _FULL:
                counts[tool] = times + 1.0
                followers.total += 1.0
            else:
                followers.add(tool)
        logs += logs[-1:] * (len(LEVELS) - len(logs))
        contest.score(logs)

    def forecast(
        self, *, agent: str, context: Sequence[ToolName], level: int | None = None
    ) -> NextTools:
        """What comes after these tools, the likeliest first; empty before anything was seen.

        `level` picks one of `LEVELS`; None leaves that to the contest.
        """
        if level is None:
            contest = self._contests.get(agent)
            level = contest.best() if contest is not None else 0
        levels = [self._all]
        for key in _keys(agent, context)[:level]:
            seen = self._contexts.get(key)
            if seen is not None:
                levels.append(seen)
        likely = []
        for tool in {tool: None for known in levels for tool in known.counts}:
            probability = self._unseen()
            for followers in levels:
                probability = followers.probability(tool, probability)
            likely.append((tool, probability))
        likely.sort(key=lambda pair: (-pair[1], pair[0]))
        unseen = self._unseen()
        for followers in levels if likely else ():
            unseen = followers.kept_back(unseen)
        return NextTools(level=LEVELS[level], tools=tuple(likely), unseen=unseen)

    def skill(self, agent: str) -> dict[str, float]:
        """Lead of each level over the constant for an agent type, in nats a step."""
        contest = self._contests.get(agent)
        return dict(zip(LEVELS, contest.skill(), strict=True)) if contest is not None else {}

    def _followers(self, agent: str, context: Sequence[ToolName]) -> list[_Followers]:
        """Of every level, made where they are new."""
        contexts, found = self._contexts, [self._all]
        for key in _keys(agent, context):
            followers = contexts.get(key)
            if followers is None:
                followers = contexts[key] = _Followers()
                if len(contexts) > self._contexts_max:
                    contexts.popitem(last=False)
            else:
                contexts.move_to_end(key)
            found.append(followers)
        return found

    def _unseen(self) -> float:
        """The probability of a tool that nobody has called before, were all as likely."""
        return 1.0 / (len(self._all.counts) + 1.0)


def _keys(agent: str, context: Sequence[ToolName]) -> tuple[tuple[str, ...], ...]:
    """Keys of the levels after the first, as far as the context is long enough."""
    if not context:
        return ((agent,),)
    last = context[-1]
    if len(context) == 1:
        return ((agent,), (agent, last))
    return ((agent,), (agent, last), (agent, context[-2], last))
