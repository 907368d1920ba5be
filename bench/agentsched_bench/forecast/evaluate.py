"""Learns from some programs and is examined on others; nothing is learnt during the examination."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import log
from typing import Final

import msgspec

from agentsched.model import Nanos
from agentsched_bench.forecast.cases import Case, contexts
from agentsched_bench.forecast.remaining import Life, RemainingReport, evaluate_remaining
from agentsched_graphs import gaps, templates
from agentsched_graphs.gaps import Gaps
from agentsched_graphs.templates import ToolTemplates

QUANTILES: Final = (0.5, 0.9, 0.99)
#: What is really used: the level that the contest picks.
CHOSEN: Final = "chosen"


class ToolScore(msgspec.Struct, frozen=True, kw_only=True):
    """Next-tool forecasts: share of likeliest ones that came true, and nats lost on each."""

    accuracy: float
    log_loss: float


class GapScore(msgspec.Struct, frozen=True, kw_only=True):
    """Gap forecasts: nats lost on each (by quarter-octave bins), and how often a quantile held."""

    log_loss: float
    coverage: dict[str, float]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One trace. `learnt_us` is the mean cost of learning from one step, in microseconds."""

    trace: str
    programs_learnt: int
    programs_held_out: int
    tools_held_out: int
    distinct_tools: int
    next_tool: dict[str, ToolScore]
    gaps_held_out: int
    gaps: dict[str, GapScore]
    picked: dict[str, str]
    learnt_us: float
    #: How much of a program is still to come; None where nothing was learnt or held out.
    remaining: RemainingReport | None = None


def evaluate(
    name: str, learnt: Sequence[Case], held_out: Sequence[Case], *, lives: Sequence[Life] = ()
) -> Report:
    """Learn from the one and be examined on the other; `lives` are split in the same way."""
    model, away = ToolTemplates(), Gaps()
    began = time.perf_counter()
    for case in learnt:
        _learn(case, model, away)
    took = time.perf_counter() - began
    agents = sorted({case.agent for case in held_out})
    tools = sum(len(case.tools) for case in held_out)
    gap_count = sum(gap is not None for case in held_out for gap in case.gaps)
    picked = {f"next tool, {a}": model.forecast(agent=a, context=()).level for a in agents}
    if gap_count:
        picked |= {f"gap, {a}": _picked_gap(away, a) for a in agents}
    return Report(
        trace=name,
        programs_learnt=len({case.program for case in learnt}),
        programs_held_out=len({case.program for case in held_out}),
        tools_held_out=tools,
        distinct_tools=len({tool for case in (*learnt, *held_out) for tool in case.tools}),
        next_tool=_tool_scores(model, held_out) if tools else {},
        gaps_held_out=gap_count,
        gaps=_gap_scores(away, held_out) if gap_count else {},
        picked=picked,
        learnt_us=round(1e6 * took / max(1, sum(len(case.tools) for case in learnt)), 1),
        remaining=evaluate_remaining(lives),
    )


def _learn(case: Case, model: ToolTemplates, away: Gaps) -> None:
    for (context, tool), gap in zip(contexts(case), case.gaps, strict=True):
        model.followed(agent=case.agent, context=context, tool=tool)
        if gap is not None:
            away.returned(agent=case.agent, tool=tool, gap=gap)


def _picked_gap(away: Gaps, agent: str) -> str:
    return away.forecast(agent=agent, tool=templates.END, elapsed=Nanos(0)).level


def _tool_scores(model: ToolTemplates, held_out: Sequence[Case]) -> dict[str, ToolScore]:
    scores = {}
    levels = (*range(len(templates.LEVELS)), None)
    for level in levels:
        hits, loss, count = 0, 0.0, 0
        for case in held_out:
            for context, tool in contexts(case):
                told = model.forecast(agent=case.agent, context=context, level=level)
                hits += bool(told.tools) and told.tools[0][0] == tool
                loss -= log(dict(told.tools).get(tool, told.unseen))
                count += 1
        name = CHOSEN if level is None else templates.LEVELS[level]
        scores[name] = ToolScore(accuracy=round(hits / count, 4), log_loss=round(loss / count, 4))
    return scores


def _gap_scores(away: Gaps, held_out: Sequence[Case]) -> dict[str, GapScore]:
    scores = {}
    for level in (*range(len(gaps.LEVELS)), None):
        loss, count = 0.0, 0
        held = dict.fromkeys(QUANTILES, 0)
        for case in held_out:
            for tool, gap in zip(case.tools, case.gaps, strict=True):
                if gap is None:
                    continue
                told = away.forecast(agent=case.agent, tool=tool, elapsed=Nanos(0), level=level)
                loss -= told.log_probability(gap)
                count += 1
                for share in QUANTILES:
                    limit = told.quantile(share)
                    held[share] += limit is None or gap <= limit
        name = CHOSEN if level is None else gaps.LEVELS[level]
        scores[name] = GapScore(
            log_loss=round(loss / count, 4),
            coverage={f"{share:g}": round(hits / count, 4) for share, hits in held.items()},
        )
    return scores
