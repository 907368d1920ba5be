"""Continuum (CacheTTL): keep for as long as the expected saving exceeds the memory's time.

Paper: "Continuum: Efficient and Robust Multi-Turn LLM Agent Scheduling with KV Cache Time-to-Live",
arXiv 2511.02230 (v6), section 4. For a pause for tool f with reload time R, mean queueing delay T
of returns, and memoryfulness eta:

    tau* = argmax over tau of  P(tau, f) x (T x eta + R) - tau          (seconds)
    eta  = - Corr(k, N - k)      k turns done, N turns in all, over past programs

P(tau, f) is the share of past gaps of f within tau. Gaps run from an answer to the same program's
next request. Published is T of returns that had lost their KV; here it is taken over all returns,
as what their first token took beyond a full reload. Up to K = 100 gaps in all: tau = ln B where
B = T x eta + R exceeds 1 s (gaps are then taken to be exponential with mean 1 s), else none. Up to
K gaps of f: all tools' gaps together.

The value is the program's place in the order of arrival: the latest gives way first.

When it fails: gaps of one tool vary by an order of magnitude, so P(tau, f) says little; the price
of a second of memory is a second of saving, however full or empty the cache is; and a hard pin of a
program that waits for others' memory helps nobody (the published engine unpins then).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from math import log, sqrt
from typing import Final

from agentsched.model import (
    SECOND,
    Event,
    Instant,
    Nanos,
    ProgramClosed,
    ProgramId,
    StepFinished,
    StepId,
    StepStarted,
    after,
    between,
)
from agentsched.policy import PauseView, Retention, World
from agentsched_policies.pauses import PauseWatch, tool_of
from agentsched_policies.samples import Samples, SamplesByKey

_STARTING_MAX: Final = 10_000


class Turns:
    """Correlation of turns done with turns to come, over programs that ended."""

    def __init__(self) -> None:
        self._n = self._k = self._r = self._kk = self._rr = self._kr = 0.0

    def ended(self, turns: int) -> None:
        """A program ended after so many: its pairs (1, turns - 1), ..., (turns, 0)."""
        n = float(turns)
        self._n += n
        self._k += n * (n + 1) / 2
        self._r += n * (n - 1) / 2
        self._kk += n * (n + 1) * (2 * n + 1) / 6
        self._rr += (n - 1) * n * (2 * n - 1) / 6
        self._kr += n * n * (n + 1) / 2 - n * (n + 1) * (2 * n + 1) / 6

    @property
    def memoryfulness(self) -> float:
        """1 for programs of one length, 0 for geometric lengths; 1 before any has ended."""
        if self._n < 2:
            return 1.0
        mean_k, mean_r = self._k / self._n, self._r / self._n
        spread_k = self._kk / self._n - mean_k * mean_k
        spread_r = self._rr / self._n - mean_r * mean_r
        if spread_k <= 1e-12 or spread_r <= 1e-12:
            return 1.0
        return -(self._kr / self._n - mean_k * mean_r) / sqrt(spread_k * spread_r)


class Continuum:
    """The published TTL. `samples_min` is the paper's K; windows keep `samples_max` gaps each."""

    def __init__(
        self, *, samples_min: int = 100, samples_max: int = 1_000, delays_max: int = 100
    ) -> None:
        if min(samples_min, samples_max, delays_max) < 1:
            raise ValueError("samples_min, samples_max and delays_max are at least 1")
        self._samples_min = samples_min
        self._watch = PauseWatch()
        self._all = Samples(samples_max=samples_max)
        self._tools = SamplesByKey(samples_max=samples_max)
        self._turns = Turns()
        self._turns_of: OrderedDict[ProgramId, int] = OrderedDict()
        self._program_of: OrderedDict[StepId, tuple[Instant, int]] = OrderedDict()
        #: Seconds to the first token and context of returns, the latest ones.
        self._delays: deque[tuple[float, int]] = deque(maxlen=delays_max)

    def observe(self, event: Event, *, now: Instant) -> None:
        gap = self._watch.observe(event, now=now)
        if gap is not None:
            span = gap.span / SECOND
            self._all.add(span)
            self._tools.add(gap.tool, span)
            turns = self._turns_of.get(gap.program, 1) + 1
            self._turns_of[gap.program] = turns
            self._turns_of.move_to_end(gap.program)
            if len(self._turns_of) > _STARTING_MAX:
                self._turns_of.popitem(last=False)
            self._program_of[gap.step] = (now, gap.context_tokens)
            if len(self._program_of) > _STARTING_MAX:
                self._program_of.popitem(last=False)
        match event:
            case StepStarted():
                arrived = self._program_of.pop(event.step, None)
                if arrived is not None:
                    self._delays.append((between(arrived[0], now) / SECOND, arrived[1]))
            case StepFinished():
                self._program_of.pop(event.step, None)
            case ProgramClosed():
                turns_done = self._turns_of.pop(event.program, None)
                if turns_done is not None:
                    self._turns.ended(turns_done)
            case _:
                pass

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        if not pause.tools:
            return None
        reload_s = pause.prefix.tokens * world.engines[pause.engine].reload_ns / SECOND
        benefit = self._delay(world.engines[pause.engine].reload_ns) + reload_s
        ttl = Nanos(round(self._best(tool_of(tuple(pause.tools.values())), benefit) * SECOND))
        left = between(now, after(pause.since, ttl))
        program = world.programs.get(pause.program)
        value = -float(program.ordinal) if program is not None else 0.0
        return Retention(ttl=left, value=value) if left > 0 else None

    def _delay(self, reload_ns: float) -> float:
        """T x eta: what returns waited beyond their own reload, in seconds."""
        if not self._delays:
            return 0.0
        waited = [max(0.0, s - tokens * reload_ns / SECOND) for s, tokens in self._delays]
        return sum(waited) / len(waited) * self._turns.memoryfulness

    def _best(self, tool: str, benefit: float) -> float:
        """tau*, in seconds."""
        if len(self._all) <= self._samples_min:
            return log(benefit) if benefit > 1.0 else 0.0
        own = self._tools.get(tool)
        gaps = own if own is not None and len(own) > self._samples_min else self._all
        best, greatest = 0.0, 0.0
        share = benefit / len(gaps)
        for index, span in enumerate(gaps.in_order, start=1):
            if span >= benefit:
                break  # from here on the memory costs more than all that can be saved
            if index * share - span > greatest:
                best, greatest = span, index * share - span
        return best
