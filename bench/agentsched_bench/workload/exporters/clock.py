"""When the calls of a program begin and end, for formats that say it by instants."""

from __future__ import annotations

from math import inf
from typing import Final

from agentsched_bench.workload.shape import ShapeOptions, offset_in_parent, pause_after_s
from agentsched_bench.workload.trace import RecordedProgram, Recording

#: How a recording is planned that is neither smaller nor faster.
TRUE_SIZE: Final = ShapeOptions(scale_tokens=1.0, scale_time=1.0, gap_cap_s=1e12)


class Clock:
    """The calls of a program, in seconds after it began.

    A recorded instant goes before all else. Where there is none, a call begins when the pause after
    the one before it is over; one that awaits sub-agents by its number (`join_step`), that long
    after their end. An answer whose time was not recorded comes at `tokens_per_s`. `between_s` is
    added after each call, so that calls without any time have an order.
    """

    def __init__(
        self, program: RecordedProgram, *, tokens_per_s: float = inf, between_s: float = 0.0
    ) -> None:
        self._main = program.main
        self._rows = {row.session_id: row for row in (program.main, *program.children)}
        self._tokens_per_s = tokens_per_s
        self._between_s = between_s
        self._begun: dict[str, float] = {}
        self._calls: dict[str, list[tuple[float, float]]] = {}
        self._joined: dict[tuple[str | None, int], list[Recording]] = {}
        for row in program.children:
            first, last = row.parent_step, row.join_step
            if first is not None and last is not None and last >= first:
                self._joined.setdefault((row.parent, last), []).append(row)

    def begun_s(self, row: Recording) -> float:
        """When a recording began. A sub-agent that tells neither, with its parent."""
        self.calls(row)
        return self._begun[row.session_id]

    def calls(self, row: Recording) -> list[tuple[float, float]]:
        """When each call of a recording begins and ends."""
        known = self._calls.get(row.session_id)
        if known is not None:
            # Also those so far: a sub-agent begins behind a call of its parent that was placed.
            return known
        found = self._calls[row.session_id] = []
        self._begun[row.session_id] = 0.0
        begun = clock = self._begun[row.session_id] = self._beginning_s(row)
        for index, step in enumerate(row.steps):
            if step.t_s is not None:
                clock = max(clock, begun + step.t_s)
            ended = clock + self._took_s(row, index)
            found.append((clock, ended))
            waited = [
                last[1]
                for child in self._joined.get((row.session_id, index), ())
                for last in self.calls(child)[-1:]
            ]
            pause_s = pause_after_s(step, TRUE_SIZE)
            clock = max([ended, *waited]) + pause_s + self._between_s
        return found

    def _beginning_s(self, row: Recording) -> float:
        if row is self._main:
            return 0.0
        parent = self._rows.get(row.parent or "", self._main)
        calls = self.calls(parent)
        if row.parent_step is not None and calls:
            return calls[min(row.parent_step, len(calls) - 1)][1]
        return self.begun_s(parent) + (offset_in_parent(row, parent) or 0.0)

    def _took_s(self, row: Recording, index: int) -> float:
        step = row.steps[index]
        if step.llm_s is not None:
            return step.llm_s
        following = row.steps[index + 1].t_s if index + 1 < len(row.steps) else None
        if following is not None and step.t_s is not None and step.gap_s is not None:
            return max(0.0, following - step.t_s - step.gap_s)
        if step.cycle_s is not None and step.gap_s is None:
            # A cycle is a call and the pause behind it: what the plan takes for the pause is none.
            return max(0.0, step.cycle_s - pause_after_s(step, TRUE_SIZE))
        return (step.output_tokens + step.reasoning_tokens) / self._tokens_per_s
