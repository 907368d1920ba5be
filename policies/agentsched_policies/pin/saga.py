"""SAGA: workflow-aware LRU, with a TTL by tool that shrinks under memory pressure.

Paper: "SAGA: Workflow-Atomic Scheduling for AI Agent Inference on GPU Clusters", arXiv 2605.00528
(v2), section 4 and algorithm 1. What scores highest is evicted first, all terms in [0, 1]:

    P_evict = 0.3 x idle / longest idle + 0.5 x (1 - P_reuse) + 0.2 x size / largest size
    P_reuse = context / (context + mean observation of the tool)  while a tool call is open, else 0
    TTL     = min(p95(tool) x (1 - 0.5 m), 300 s),   m = (kv usage - 0.7) / (0.9 - 0.7) in [0, 1]

The value that ranks a pin is 1 - P_evict. p95 is that of a log-normal through the middle and the
95th percentile of the tool's latest 256 run times; until there are any, of the paper's table of
tool classes (its table 1).

When it fails: the run time of a tool is not the time until its program returns (an independent
replication found p95 of 105 s in training against 331 s later, and TTLs of 6 to 10 ms for quick
tools); idle time and size weigh the same whatever a reload costs.
"""

from __future__ import annotations

import re
from math import exp, log
from typing import Final

from agentsched.model import (
    MILLISECOND,
    SECOND,
    Event,
    Instant,
    Nanos,
    ToolFinished,
    after,
    between,
    seconds,
)
from agentsched.policy import ConversationView, EngineView, PauseView, Retention, World
from agentsched_policies.pauses import PauseWatch, tool_of
from agentsched_policies.samples import SamplesByKey

_TTL_MAX: Final = Nanos(300 * SECOND)
_WINDOW: Final = 256
_SAMPLES_MIN: Final = 8
_SMOOTHING: Final = 0.1
#: Seconds within which 95 in 100 calls of a class of tools end: the paper's table 1.
_COLD_P95_S: Final = {"code": 2.4, "file": 0.32, "web": 4.5, "data": 0.89}
#: Words of the names of tools and commands, and the class that they speak of; the first that fits.
_WORDS: Final = (
    ("bash exec execute pytest python run shell terminal test tests", "code"),
    ("api browse browser curl fetch http search web webfetch websearch", "web"),
    ("database db query sql", "data"),
    ("cat edit editor file files glob grep ls read view write", "file"),
)
_CLASSES: Final = tuple((frozenset(words.split()), kind) for words, kind in _WORDS)
#: `WebSearch`, `web_search` and `mcp__site__search` are written in words; digits say nothing.
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Saga:
    """The published retention. `alpha`, `beta` and `gamma` weigh idle time, reuse and size."""

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.5,
        gamma: float = 0.2,
        pressure_from: float = 0.7,
        pressure_full: float = 0.9,
    ) -> None:
        if min(alpha, beta, gamma) < 0:
            raise ValueError("alpha, beta and gamma are 0 or more")
        if not 0 <= pressure_from < pressure_full <= 1:
            raise ValueError("0 <= pressure_from < pressure_full <= 1")
        self._alpha, self._beta, self._gamma = alpha, beta, gamma
        self._from, self._full = pressure_from, pressure_full
        self._watch = PauseWatch()
        self._latencies = SamplesByKey(samples_max=_WINDOW)
        #: Tokens that a tool's result adds, followed exponentially.
        self._observations: dict[str, float] = {}

    def observe(self, event: Event, *, now: Instant) -> None:
        gap = self._watch.observe(event, now=now)
        if gap is not None:
            mean = self._observations.get(gap.tool, float(gap.grown_tokens))
            if gap.tool in self._observations or len(self._observations) < 1_024:
                self._observations[gap.tool] = mean + _SMOOTHING * (gap.grown_tokens - mean)
            if self._latencies.get(f"told/{gap.tool}") is None:
                self._latencies.add(gap.tool, gap.span / SECOND)
        elif isinstance(event, ToolFinished) and event.took is not None:
            # Its own run time, where somebody tells it: what the paper fits.
            self._latencies.add(f"told/{event.tool}", event.took / SECOND)

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        if not pause.tools:
            return None
        engine = world.engines[pause.engine]
        ttl_s = self._p95(tool_of(tuple(pause.tools.values())))
        span = min(seconds(ttl_s * (1.0 - 0.5 * self._pressure(engine, world))), _TTL_MAX)
        left = between(now, after(pause.since, span))
        if left <= 0:
            return None
        return Retention(ttl=left, value=1.0 - self._eviction(pause, engine, world, now=now))

    def _eviction(
        self, pause: PauseView, engine: EngineView, world: World, *, now: Instant
    ) -> float:
        idle, size = between(pause.since, now), pause.prefix.tokens
        longest, largest = max(1, idle), max(1, size)
        for other in world.resident(engine.engine):
            largest = max(largest, other.context_tokens)
            longest = max(longest, _idle(other, now=now))
        tool = tool_of(tuple(pause.tools.values()))
        reuse = size / max(1.0, size + self._observations.get(tool, 300.0))
        return (
            self._alpha * idle / longest + self._beta * (1.0 - reuse) + self._gamma * size / largest
        )

    def _pressure(self, engine: EngineView, world: World) -> float:
        """m: how far the KV usage is on its way from `pressure_from` to `pressure_full`."""
        capacity = engine.capabilities.kv_tokens
        if not capacity:
            usage = engine.load.kv_usage or 0.0
        else:
            usage = world.resident_tokens(engine.engine) / capacity
        return min(1.0, max(0.0, (usage - self._from) / (self._full - self._from)))

    def _p95(self, tool: str) -> float:
        """Of the log-normal through the middle and the 95th percentile, in seconds."""
        samples = self._latencies.get(f"told/{tool}") or self._latencies.get(tool)
        if samples is None or len(samples) < _SAMPLES_MIN:
            return _COLD_P95_S[_class_of(tool)]
        floor = MILLISECOND / SECOND
        middle = max(floor, samples.quantile(0.5))
        high = max(middle, samples.quantile(0.95))
        deviation = log(high / middle) / 1.6449
        return exp(log(middle) + 1.6449 * deviation)


def _idle(conversation: ConversationView, *, now: Instant) -> int:
    since = conversation.paused_at
    return between(since, now) if since is not None else 0


def _class_of(tool: str) -> str:
    """The class of a tool by the whole words of its name: `credit_check` edits nothing."""
    words = {word.lower() for word in _WORD.findall(tool)}
    return next((kind for known, kind in _CLASSES if words & known), "code")
