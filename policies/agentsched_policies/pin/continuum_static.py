"""What Continuum's public code does: two seconds for tools that are quick on average, else nothing.

Paper: arXiv 2511.02230; the code differs from it (a fixed threshold on the running mean of the
tool's gaps, no distribution, no queueing delay). An independent run found it the best of those it
tried: mean completion 32 min against 64 min of FCFS.

    TTL = 2 s  if the mean gap of the tool is at most 2 s (unknown tools count as 0 s), else none

When it fails: one slow call among many quick ones moves the mean over the threshold for good, and
a gap of 2.1 s loses its KV although computing it again may take ten.
"""

from __future__ import annotations

from agentsched.model import SECOND, Event, Instant, after, between, seconds
from agentsched.policy import PauseView, Retention, World
from agentsched_policies.pauses import PauseWatch, tool_of
from agentsched_policies.samples import SamplesByKey


class ContinuumStatic:
    """A pin of `ttl_s` seconds where the tool's mean gap is not longer than that."""

    def __init__(self, *, ttl_s: float = 2.0, samples_max: int = 1_000) -> None:
        if ttl_s <= 0 or samples_max < 1:
            raise ValueError("ttl_s is positive and samples_max at least 1")
        self._ttl_s = ttl_s
        self._ttl = seconds(ttl_s)
        self._watch = PauseWatch()
        self._gaps = SamplesByKey(samples_max=samples_max)

    def observe(self, event: Event, *, now: Instant) -> None:
        gap = self._watch.observe(event, now=now)
        if gap is not None:
            self._gaps.add(gap.tool, gap.span / SECOND)

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        if not pause.tools:
            return None
        gaps = self._gaps.get(tool_of(tuple(pause.tools.values())))
        if gaps is not None and gaps.mean > self._ttl_s:
            return None
        left = between(now, after(pause.since, self._ttl))
        program = world.programs.get(pause.program)
        value = -float(program.ordinal) if program is not None else 0.0
        return Retention(ttl=left, value=value) if left > 0 else None
