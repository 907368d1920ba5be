"""How long until a paused conversation comes back to the engine, as a distribution.

Theory. What counts is the gap from an answer to the next request, not the tool's own time. Many
gaps are never seen to end (the program was closed, forgotten, or is still away): they are censored,
and leaving them out would make every forecast too short. So gaps are counted in half-octave bins
and the Kaplan-Meier estimate is kept as one hazard a bin: of those still away when the bin began,
how many came back in it. Hazards of a special key (tool with its first command word, tool, agent
type) are drawn towards the next more general one's as if that had been seen a few times, which is
the back-off. Old counts fade. A contest on past gaps decides, for each agent type, how special a
key is listened to; where none beats the constant (all gaps alike), the constant is the forecast.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import exp, log, log2
from typing import Final

from agentsched.model import Nanos, ToolName
from agentsched_graphs.contest import Contest

#: The first bin ends here; each further one is longer by the factor of half an octave.
_FIRST_NS: Final = 10_000_000
_BINS: Final = 42  # the last one begins at some three hours and has no end
_PRIOR_HAZARD: Final = 0.1
_HALF: Final = log(0.5)
_HALF_OCTAVE: Final = 0.5 * log(2.0)
#: How often the more general key's hazard is taken to have been seen.
_WEIGHT: Final = 3.0
#: When a key has been seen so often, its counts are halved.
_FULL: Final = 512.0
#: Levels of keys, from the constant to the most special one.
LEVELS: Final = ("all", "agent", "tool", "tool and word")


def bin_of(gap: int) -> int:
    """The bin that a gap of so many nanoseconds falls in."""
    if gap < _FIRST_NS:
        return 0
    return min(_BINS - 1, 1 + int(2.0 * log2(gap / _FIRST_NS)))


def _ends_at(index: int) -> float:
    """The end of a bin, in nanoseconds."""
    return _FIRST_NS * exp(index * _HALF_OCTAVE)


class _Counts:
    """Gaps of one key. Hazards are made anew when enough has come in since."""

    __slots__ = (
        "_fresh_at",
        "_seen",
        "censored",
        "hazards",
        "logs",
        "middle",
        "parent",
        "returned",
        "total",
    )

    def __init__(self, parent: _Counts | None) -> None:
        self.parent = parent
        self.returned = [0.0] * _BINS
        self.censored = [0.0] * _BINS
        self.total = 0.0
        self._seen = 0
        self._fresh_at = 0
        self.hazards: list[float] = []
        #: Logarithm of the probability of each bin.
        self.logs: list[float] = []
        #: The bin by which half have come back.
        self.middle = 0
        self._refresh()

    def add(self, index: int, *, is_censored: bool) -> None:
        (self.censored if is_censored else self.returned)[index] += 1.0
        self.total += 1.0
        self._seen += 1
        if self.total > _FULL:
            self.returned = [count * 0.5 for count in self.returned]
            self.censored = [count * 0.5 for count in self.censored]
            self.total *= 0.5
        if self._seen >= self._fresh_at:
            self._refresh()

    def _refresh(self) -> None:
        # Rarer and rarer while it grows, often enough to follow a change: a fixed mean cost.
        self._fresh_at = self._seen + min(64, max(1, self._seen // 8))
        parent = self.parent
        prior = parent.hazards if parent is not None else [_PRIOR_HAZARD] * _BINS
        hazards, logs, away, still, middle = [], [], self.total, 0.0, 0
        for returned, censored, before in zip(self.returned, self.censored, prior, strict=True):
            at_risk = max(returned, away - 0.5 * censored)
            hazard = (returned + _WEIGHT * before) / (at_risk + _WEIGHT)
            hazard = min(hazard, 1.0 - 1e-9)
            hazards.append(hazard)
            logs.append(still + log(hazard))
            middle += still > _HALF
            still += log(1.0 - hazard)
            away -= returned + censored
        self.hazards, self.logs, self.middle = hazards, logs, middle


@dataclass(frozen=True, slots=True)
class ReturnForecast:
    """When a conversation comes back that has been away for `elapsed`, counted from now.

    `level` is how special the key is that it rests on: "all" is the constant.
    """

    level: str
    elapsed: Nanos
    _hazards: tuple[float, ...]

    @property
    def has_skill(self) -> bool:
        """Whether it has shown to tell more than the constant."""
        return self.level != LEVELS[0]

    def probability_within(self, span: Nanos) -> float:
        """The probability that it comes back within so much time from now."""
        still = self._still_away(self.elapsed)
        return 1.0 - exp(self._still_away(self.elapsed + max(0, span)) - still)

    def quantile(self, share: float) -> Nanos | None:
        """The time from now within which it comes back with this probability.

        None where even three hours do not suffice: it may never come back.
        """
        assert 0.0 <= share < 1.0
        wanted = self._still_away(self.elapsed) + log(1.0 - share)
        still, begins = 0.0, 0.0
        for index, hazard in enumerate(self._hazards[:-1]):
            ends, after = _ends_at(index), still + log(1.0 - hazard)
            if after <= wanted and ends > self.elapsed:
                part = (still - wanted) / (still - after) if after < still else 1.0
                reached = begins + (ends - begins) * min(1.0, max(0.0, part))
                return Nanos(max(0, round(reached) - self.elapsed))
            still, begins = after, ends
        return None

    def _still_away(self, gap: int) -> float:
        """Logarithm of the probability that a gap is longer than this."""
        index = bin_of(gap)
        still = sum(log(1.0 - hazard) for hazard in self._hazards[:index])
        begins = _ends_at(index - 1) if index else 0.0
        part = min(1.0, max(0.0, (gap - begins) / (_ends_at(index) - begins)))
        return still + part * log(1.0 - self._hazards[index])


class Gaps:
    """Learns gaps, and forecasts them. Bounded by `keys_max` keys; the one unused longest goes."""

    def __init__(self, *, keys_max: int = 1_024) -> None:
        self._keys_max = keys_max
        self._all = _Counts(None)
        self._keys: OrderedDict[tuple[str, ...], _Counts] = OrderedDict()
        self._contests: OrderedDict[str, Contest] = OrderedDict()

    def returned(self, *, agent: str, tool: ToolName, gap: Nanos) -> None:
        """A conversation came back after so long; `tool` is what it paused for."""
        index = bin_of(gap)
        levels = self._levels(agent, tool)
        self._contest(agent).score([level.logs[index] for level in levels])
        self._add(levels, index, is_censored=False)

    def gave_up(self, *, agent: str, tool: ToolName, gap: Nanos) -> None:
        """After so long it had not come back, and will not be watched any more."""
        self._add(self._levels(agent, tool), bin_of(gap), is_censored=True)

    def forecast(self, *, agent: str, tool: ToolName, elapsed: Nanos) -> ReturnForecast:
        """When it comes back, for one that paused so long ago for this tool. Changes nothing."""
        contest = self._contests.get(agent)
        best = contest.best() if contest is not None else 0
        known: list[_Counts] = [self._all]
        for key in _keys(agent, tool):
            known.append(self._keys.get(key, known[-1]))
        return ReturnForecast(LEVELS[best], Nanos(max(0, elapsed)), tuple(known[best].hazards))

    def skill(self, agent: str) -> dict[str, float]:
        """Lead of each level over the constant for an agent type, in nats a gap."""
        contest = self._contests.get(agent)
        return dict(zip(LEVELS, contest.skill(), strict=True)) if contest is not None else {}

    def middle(self, *, agent: str, tool: ToolName) -> int:
        """The bin by which half have come back from this tool; 0 for one that is not known."""
        name = tool.partition(" ")[0]
        counts = self._keys.get((agent, name, tool)) or self._keys.get((agent, name))
        return counts.middle if counts is not None else 0

    def _add(self, levels: list[_Counts], index: int, *, is_censored: bool) -> None:
        last = None
        for level in levels:
            if level is not last:  # a tool without a word is its own most special key
                level.add(index, is_censored=is_censored)
            last = level

    def _levels(self, agent: str, tool: ToolName) -> list[_Counts]:
        levels = [self._all]
        for key in _keys(agent, tool):
            counts = self._keys.get(key)
            if counts is None:
                counts = self._keys[key] = _Counts(levels[-1])
                if len(self._keys) > self._keys_max:
                    self._keys.popitem(last=False)
            else:
                self._keys.move_to_end(key)
            levels.append(counts)
        return levels

    def _contest(self, agent: str) -> Contest:
        contest = self._contests.get(agent)
        if contest is None:
            contest = self._contests[agent] = Contest(len(LEVELS))
            if len(self._contests) > self._keys_max:
                self._contests.popitem(last=False)
        else:
            self._contests.move_to_end(agent)
        return contest


def _keys(agent: str, tool: ToolName) -> tuple[tuple[str, ...], ...]:
    """Keys of the levels after the first. A tool's counts are one agent type's own."""
    name = tool.partition(" ")[0]
    return ((agent,), (agent, name), (agent, name, tool) if tool != name else (agent, name))
