"""Figures of a trace: how long, how large, how much is shared. Also the one quantile we use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from agentsched_bench.workload.trace import Recording


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution in a few numbers; all zero when `count` is."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class TraceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a trace.

    `reused_share` is prefix tokens over prompt tokens on the steps that record both;
    `shared_first_share` the same on first steps alone: what programs have in common.
    `tool_share` is pauses over pauses and LLM time, where both were recorded. `tools` counts calls
    by tool and command, busiest first; `parallel_share` is the share of steps with tools that asked
    for several at once. `texts` counts recordings with their messages.
    """

    recordings: int
    programs: int
    calls: int
    synthetic: int
    sources: dict[str, int]
    agents: dict[str, int]
    steps: Spread
    prompt_tokens: Spread
    output_tokens: Spread
    pause_s: Spread
    tool_s: dict[str, Spread]
    tools: dict[str, int]
    parallel_share: float
    compactions: int
    texts: int
    reused_share: float | None
    shared_first_share: float | None
    tool_share: float | None
    cut_share: float
    hashed_share: float


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, with linear interpolation; 0 for no values."""
    assert 0.0 <= q <= 1.0
    if not ordered:
        return 0.0
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    value = ordered[low] + (ordered[high] - ordered[low]) * (at - low)
    return min(max(value, ordered[low]), ordered[high])


def spread(values: Iterable[float]) -> Spread:
    """The distribution of `values`."""
    ordered = sorted(values)
    count = len(ordered)
    return Spread(
        count=count,
        mean=sum(ordered) / count if count else 0.0,
        p50=quantile(ordered, 0.5),
        p90=quantile(ordered, 0.9),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
        max=ordered[-1] if ordered else 0.0,
    )


def trace_statistics(recordings: Iterable[Recording], *, tools_max: int = 8) -> TraceStatistics:
    """The figures of `recordings`; `tools_max` bounds how many tools are listed, busiest first."""
    figures = _Figures()
    for recording in recordings:
        figures.add(recording)
    return figures.result(tools_max=tools_max)


class _Figures:
    """Running sums over recordings."""

    def __init__(self) -> None:
        self.recordings = self.programs = self.synthetic = self.cut = self.hashed = 0
        self.sources: Counter[str] = Counter()
        self.agents: Counter[str] = Counter()
        self.steps: list[float] = []
        self.prompts: list[float] = []
        self.outputs: list[float] = []
        self.pauses: list[float] = []
        self.tools: dict[str, list[float]] = {}
        self.tool_calls: Counter[str] = Counter()
        self.with_tools = self.parallel = self.compactions = self.texts = 0
        self.reused = [0, 0]
        self.first = [0, 0]
        self.paused_s = self.llm_s = 0.0

    def add(self, recording: Recording) -> None:
        self.recordings += 1
        self.programs += recording.parent is None
        self.synthetic += recording.synthetic
        self.sources[recording.source] += 1
        self.agents[recording.agent or "-"] += 1
        self.texts += bool(recording.messages)
        self.steps.append(len(recording.steps))
        for index, step in enumerate(recording.steps):
            self.prompts.append(step.input_tokens)
            self.outputs.append(step.output_tokens)
            self.cut += index > 0 and step.new_input_tokens is None
            self.hashed += step.hash_ids is not None
            if step.prefix_tokens is not None:
                for sums in (self.reused, self.first) if index == 0 else (self.reused,):
                    sums[0] += step.prefix_tokens
                    sums[1] += step.input_tokens
            if step.gap_s is not None:
                self.pauses.append(step.gap_s)
                if step.llm_s is not None:
                    self.paused_s += step.gap_s
                    self.llm_s += step.llm_s
            self.with_tools += bool(step.tools)
            self.parallel += len(step.tools) > 1
            self.compactions += step.is_compaction
            for tool in step.tools:
                self.tool_calls[
                    tool.name if tool.command is None else f"{tool.name} {tool.command}"
                ] += 1
                if tool.duration_s is not None:
                    self.tools.setdefault(tool.name, []).append(tool.duration_s)

    def result(self, *, tools_max: int) -> TraceStatistics:
        busiest = sorted(self.tools.items(), key=lambda item: (-len(item[1]), item[0]))[:tools_max]
        calls = len(self.prompts)
        return TraceStatistics(
            recordings=self.recordings,
            programs=self.programs,
            calls=calls,
            synthetic=self.synthetic,
            sources=dict(self.sources),
            agents=dict(self.agents),
            steps=spread(self.steps),
            prompt_tokens=spread(self.prompts),
            output_tokens=spread(self.outputs),
            pause_s=spread(self.pauses),
            tool_s={name: spread(values) for name, values in busiest},
            tools=dict(sorted(self.tool_calls.items(), key=lambda item: (-item[1], item[0]))),
            parallel_share=self.parallel / self.with_tools if self.with_tools else 0.0,
            compactions=self.compactions,
            texts=self.texts,
            reused_share=_share(self.reused),
            shared_first_share=_share(self.first),
            tool_share=_share([self.paused_s, self.paused_s + self.llm_s]),
            cut_share=self.cut / calls if calls else 0.0,
            hashed_share=self.hashed / calls if calls else 0.0,
        )


def _share(sums: Sequence[float]) -> float | None:
    return sums[0] / sums[1] if sums[1] else None
