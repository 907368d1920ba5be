"""How long until a paused conversation comes back to the engine, as a distribution.

Theory. What counts is the gap from an answer to the next request, not the tool's own time. Many
gaps are never seen to end (the program was closed, forgotten, or is still away): they are censored,
and leaving them out would make every forecast too short. So gaps are counted in quarter-octave bins
and the Kaplan-Meier estimate is kept as one hazard a bin: of those still away when the bin began,
how many came back in it. Hazards of a special key (tool with its first command word at an age of
the program, the same at any age, tool, agent type) are drawn towards the next more general one's as
if that had been seen a few times, which is the back-off. Old counts fade. A contest on past gaps,
censored ones included, decides for each agent type how special a key is listened to; where none
beats the constant (all gaps alike), the constant is the forecast.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, log2
from typing import Final

from agentsched.model import Nanos, ToolName
from agentsched_graphs.contest import Contest

#: The first bin ends here; further ones grow so that so many of them make an octave.
_FIRST_NS: Final = 10_000_000
_PER_OCTAVE: Final = 4.0
_BINS: Final = 82  # the last one begins at some three hours and has no end
_PRIOR_HAZARD: Final = 0.05
_STEP: Final = log(2.0) / _PER_OCTAVE
_PRIOR: Final = [_PRIOR_HAZARD] * _BINS
#: The share of the more general key's forecast in each, so that the unheard-of stays thinkable.
_BROAD: Final = 0.05
#: How often the more general key's hazard is taken to have been seen.
_WEIGHT: Final = 8.0
#: When a key has been seen so often, its counts are halved.
_FULL: Final = 512.0
#: Levels of keys, from the constant to the most special one.
LEVELS: Final = ("all", "agent", "tool", "tool and word", "age")
_AGE_MAX: Final = 9


def bin_of(gap: int) -> int:
    """The bin that a gap of so many nanoseconds falls in."""
    if gap < _FIRST_NS:
        return 0
    return min(_BINS - 1, 1 + int(_PER_OCTAVE * log2(gap / _FIRST_NS)))


def age_of(steps_done: int) -> int:
    """The age of a program as a key: octaves of its steps. Older ones pause longer, and end."""
    return min(_AGE_MAX, max(0, steps_done).bit_length())


def _ends_at(index: int) -> float:
    """The end of a bin, in nanoseconds."""
    return _FIRST_NS * exp(index * _STEP)


class _Counts:
    """Gaps of one key. Hazards are made anew when enough has come in since."""

    __slots__ = (
        "_fresh_at",
        "_seen",
        "censored",
        "chances",
        "hazards",
        "logs",
        "middle",
        "parent",
        "returned",
        "stills",
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
        #: The probability of each bin, and its logarithm.
        self.chances: list[float] = []
        self.logs: list[float] = []
        #: Logarithm of the probability to be still away when each bin begins.
        self.stills: list[float] = []
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

    def take_back(self, index: int) -> None:
        """One that was counted as censored there came back after all."""
        self.censored[index] = max(0.0, self.censored[index] - 1.0)
        self.total = max(0.0, self.total - 1.0)

    def _refresh(self) -> None:
        # Rarer and rarer while it grows, often enough to follow a change: a fixed mean cost.
        self._fresh_at = self._seen + min(128, max(1, self._seen // 8))
        parent = self.parent
        prior = parent.hazards if parent is not None else _PRIOR
        broad = parent.chances if parent is not None else None
        weight = _WEIGHT if parent is not None else 1.0
        hazards, logs, chances, stills = [], [], [], []
        still = 0.0
        away, own, mixed, self.middle = self.total, 1.0, 1.0, 0
        for index in range(_BINS):
            returned, censored = self.returned[index], self.censored[index]
            at_risk = max(returned, away - 0.5 * censored)
            chance = own * (returned + weight * prior[index]) / (at_risk + weight)
            away -= returned + censored
            own -= chance
            if broad is not None:
                chance += _BROAD * (broad[index] - chance)
            self.middle += mixed > 0.5
            hazard = min(chance / mixed, 1.0 - 1e-9) if mixed > 1e-12 else prior[index]
            mixed = max(0.0, mixed - chance)
            stills.append(still)
            still += log(1.0 - hazard)
            hazards.append(hazard)
            logs.append(log(max(chance, 1e-12)))
            chances.append(chance)
        # Lists that are out in forecasts are never changed, only replaced.
        self.hazards, self.logs, self.chances, self.stills = hazards, logs, chances, stills


@dataclass(frozen=True, slots=True)
class ReturnForecast:
    """When a conversation comes back that has been away for `elapsed`, counted from now.

    `level` is how special the key is that it rests on: "all" is the constant.
    """

    level: str
    elapsed: Nanos
    _hazards: Sequence[float]
    _stills: Sequence[float]

    @property
    def has_skill(self) -> bool:
        """Whether it has shown to tell more than the constant."""
        return self.level != LEVELS[0]

    def probability_within(self, span: Nanos) -> float:
        """The probability that it comes back within so much time from now."""
        still = self._still_away(self.elapsed)
        return 1.0 - exp(self._still_away(self.elapsed + max(0, span)) - still)

    def chances(self, spans: Sequence[Nanos]) -> list[float]:
        """The probability that it comes back within each of these spans from now."""
        still, away = self._still_away(self.elapsed), self._still_away
        return [1.0 - exp(away(self.elapsed + span) - still) for span in spans]

    def log_probability(self, gap: Nanos) -> float:
        """Logarithm of the probability that the whole gap falls where this one does, by bins."""
        index = bin_of(gap)
        return sum(log(1.0 - h) for h in self._hazards[:index]) + log(self._hazards[index])

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
        still = self._stills[index]
        begins = _ends_at(index - 1) if index else 0.0
        part = min(1.0, max(0.0, (gap - begins) / (_ends_at(index) - begins)))
        return still + part * log(1.0 - self._hazards[index])


class Gaps:
    """Learns gaps, and forecasts them. Bounded by `keys_max` keys; those unused longest go."""

    def __init__(self, *, keys_max: int = 1_024) -> None:
        self._keys_max = keys_max
        self._all = _Counts(None)
        self._keys: dict[tuple[str, ...], _Counts] = {}
        #: The counts of each agent type, tool and age, those unused longest first.
        self._chains: OrderedDict[tuple[str, ToolName, int], tuple[_Counts, ...]] = OrderedDict()
        #: Of agent types that have keys.
        self._contests: dict[str, Contest] = {}

    def returned(
        self,
        *,
        agent: str,
        tool: ToolName,
        gap: Nanos,
        age: int = 0,
        given_up_after: Nanos | None = None,
    ) -> None:
        """A conversation came back after so long; `tool` is what it paused for.

        `given_up_after` takes back that it was given up then.
        """
        index = bin_of(gap)
        levels = self._levels(agent, tool, age)
        if given_up_after is not None:
            for level in dict.fromkeys(levels):
                level.take_back(bin_of(given_up_after))
        self._contest(agent).score([level.logs[index] for level in levels])
        self._add(levels, index, is_censored=False)

    def gave_up(self, *, agent: str, tool: ToolName, gap: Nanos, age: int = 0) -> None:
        """After so long it had not come back, and nobody counts on it any more."""
        index = bin_of(gap)
        levels = self._levels(agent, tool, age)
        self._contest(agent).score([level.stills[index] for level in levels])
        self._add(levels, index, is_censored=True)

    def forecast(
        self,
        *,
        agent: str,
        tool: ToolName,
        elapsed: Nanos,
        age: int = 0,
        level: int | None = None,
    ) -> ReturnForecast:
        """When it comes back, for one that paused so long ago for this tool. Changes nothing.

        `level` picks one of `LEVELS`; None leaves that to the contest.
        """
        if level is None:
            contest = self._contests.get(agent)
            level = contest.best() if contest is not None else 0
        known: list[_Counts] = [self._all]
        for key in _keys(agent, tool, age):
            known.append(self._keys.get(key, known[-1]))
        counts = known[level]
        away = Nanos(max(0, elapsed))
        return ReturnForecast(LEVELS[level], away, counts.hazards, counts.stills)

    def skill(self, agent: str) -> dict[str, float]:
        """Lead of each level over the constant for an agent type, in nats a gap."""
        contest = self._contests.get(agent)
        return dict(zip(LEVELS, contest.skill(), strict=True)) if contest is not None else {}

    def middle(self, *, agent: str, tool: ToolName) -> int:
        """The bin by which half have come back from this tool; 0 for one that is not known."""
        name = tool.partition(" ")[0]
        counts = self._keys.get((agent, name, tool)) or self._keys.get((agent, name))
        return counts.middle if counts is not None else 0

    def _add(self, levels: tuple[_Counts, ...], index: int, *, is_censored: bool) -> None:
        last = None
        for level in levels:
            if level is not last:  # a tool without a word is its own most special key
                level.add(index, is_censored=is_censored)
            last = level

    def _contest(self, agent: str) -> Contest:
        contest = self._contests.get(agent)
        if contest is None:
            contest = self._contests[agent] = Contest(len(LEVELS))
        return contest

    def _levels(self, agent: str, tool: ToolName, age: int) -> tuple[_Counts, ...]:
        """Counts of every level, made where they are new."""
        levels = self._chains.get((agent, tool, age))
        if levels is None:
            levels = self._chain(agent, tool, age)
        else:
            self._chains.move_to_end((agent, tool, age))
        return levels

    def _chain(self, agent: str, tool: ToolName, age: int) -> tuple[_Counts, ...]:
        levels = [self._all]
        for key in _keys(agent, tool, age):
            counts = self._keys.get(key)
            if counts is None:
                counts = self._keys[key] = _Counts(levels[-1])
            levels.append(counts)
        chain = self._chains[agent, tool, age] = tuple(levels)
        if len(self._keys) > self._keys_max:
            self._forget()
        return chain

    def _forget(self) -> None:
        """Keep the keys of the chains that were used last, as many as leave some room."""
        kept: dict[tuple[str, ...], None] = {}
        while self._chains and len(kept) < self._keys_max * 7 // 8 - len(LEVELS):
            (agent, tool, age), _ = self._chains.popitem()
            kept |= dict.fromkeys(_keys(agent, tool, age))
        self._keys = {key: self._keys[key] for key in kept}
        self._chains.clear()
        agents = {key[0] for key in kept}
        self._contests = {agent: c for agent, c in self._contests.items() if agent in agents}


def _keys(agent: str, tool: ToolName, age: int) -> tuple[tuple[str, ...], ...]:
    """Keys of the levels after the first. A tool's counts are one agent type's own."""
    name = tool.partition(" ")[0]
    word = (agent, name, tool) if tool != name else (agent, name)
    return ((agent,), (agent, name), word, (agent, name, tool, str(age)) if age else word)
