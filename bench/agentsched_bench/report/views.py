"""What the page draws, worked out of a comparison: distributions, timelines, occupancy, shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from pydantic import ValidationError

from agentsched.model import AgentschedError
from agentsched_bench.compare.figures import service
from agentsched_bench.compare.fleet import engines_of
from agentsched_bench.compare.machine import sound
from agentsched_bench.compare.results import (
    ArmFigures,
    Call,
    CompareResult,
    Pinned,
    Reading,
    Run,
    finished_runs,
)
from agentsched_bench.compare.scenario import EngineSpec
from agentsched_bench.workload.statistics import Spread, quantile

#: More points than a screen has columns are of no use.
_CURVE_POINTS: Final = 160
_TIME_POINTS: Final = 200
_SHARE_BINS: Final = 60
_PROGRAMS_MAX: Final = 60
_LAYERS_MAX: Final = 14
_DECISIONS_MAX: Final = 150
#: With fewer calls in all, every repeat is on the page; else the first of each arm.
_CALLS_MAX: Final = 6_000
#: The layer of what programs have in common.
SHARED: Final = "shared by several"
#: Of what a conversation had in the cache before a pause, this much back means that it was kept.
KEPT_SHARE: Final = 0.8


class Segment(msgspec.Struct, array_like=True):
    """One call on a timeline; times in seconds. It was turned away until `tried`, then held until
    `held`, then with an engine.
    """

    sent: float
    held: float
    first: float
    end: float
    prompt: int
    cached: int
    output: int
    known: int
    step: int
    engine: str
    error: str
    tools: str
    tried: float


class Lane(msgspec.Struct):
    """One conversation of a program."""

    name: str
    calls: list[Segment]
    pins: list[tuple[float, float, str]]


class Bar(msgspec.Struct):
    """One program on a timeline."""

    name: str
    tenant: str
    outcome: str
    start: float
    end: float
    lanes: list[Lane]


class Layers(msgspec.Struct):
    """A stack over time: `times` and one row of values for each name, the largest first."""

    times: list[float]
    names: list[str]
    values: list[list[float]]


class RunView(msgspec.Struct):
    """What is drawn of one run."""

    arm: str
    repeat: int
    length: float
    programs: list[Bar]
    left_out: int
    occupancy: Layers | None
    shares: Layers | None
    readings: list[tuple[float, float, float, float]]
    decisions: list[tuple[float, str, str, str]]
    totals: dict[str, int]


class Curve(msgspec.Struct):
    """A distribution: `values` are its quantiles at `shares`."""

    arm: str
    shares: list[float]
    values: list[float]


class View(msgspec.Struct):
    """Everything that is drawn of one result."""

    name: str
    arms: list[str]
    jct: list[Curve]
    ttft: list[Curve]
    slowdown: list[Curve]
    runs: list[RunView]
    capacity: float | None


def view_of(result: CompareResult) -> View:
    """Work out what is drawn."""
    runs = [run for run in result.runs if run.calls and run.is_complete]
    if sum(len(run.calls) for run in runs) > _CALLS_MAX:
        seen: set[str] = set()
        runs = [run for run in runs if run.arm not in seen and not seen.add(run.arm)]  # type: ignore[func-returns-value]
    _, tokens = engines(result)
    return View(
        name=result.name,
        arms=[arm.arm for arm in result.summary],
        jct=[_curve(a, _jct(result, a.arm), a.jct_s) for a in result.summary],
        ttft=[_curve(a, _ttft(result, a.arm), a.ttft_s) for a in result.summary],
        slowdown=[
            _curve(a, _slowdown(result, a.arm), a.slowdown)
            for a in result.summary
            if a.slowdown is not None
        ],
        runs=[_run(run) for run in runs],
        capacity=None if tokens is None else float(tokens),
    )


def engines(result: CompareResult) -> tuple[int, int | None]:
    """How many engines, and what the caches of all of them hold in tokens, where that is known."""
    table = result.spec.get("engine")
    if not isinstance(table, dict):
        return 1, None
    fleet, blocks, size = table.get("fleet"), table.get("blocks"), table.get("block_size")
    count = len(table.get("urls") or ()) or int(table.get("count", 1))
    if not fleet and blocks and size:
        return count, (blocks - 1) * size * count
    try:
        found = engines_of(EngineSpec.model_validate(table))
    except (AgentschedError, ValidationError):
        # A file that it names is not here, or it is of another version.
        return count, None
    tokens = sum((one.blocks - 1) * one.block_size for one in found)
    return len(found), tokens if fleet or blocks else None


def _runs(result: CompareResult, arm: str) -> Sequence[Run]:
    """The runs that the arm's figures are of."""
    finished = finished_runs(result, arm)
    return sound(finished) or finished


def _jct(result: CompareResult, arm: str) -> list[float]:
    runs = _runs(result, arm)
    return [p.jct_s for run in runs for p in run.programs if p.jct_s is not None]


def _ttft(result: CompareResult, arm: str) -> list[float]:
    runs = _runs(result, arm)
    return [c.ttft_s for run in runs for c in run.calls if c.ttft_s is not None and not c.error]


def _slowdown(result: CompareResult, arm: str) -> list[float]:
    found = []
    for run in _runs(result, arm):
        for program in run.programs:
            alone = result.alone_s.get(program.program)
            if alone and program.jct_s is not None:
                found.append(program.jct_s / alone)
    return found


def _curve(arm: ArmFigures, values: Sequence[float], figures: Spread | None) -> Curve:
    if not values:
        return _curve_of_figures(arm.arm, figures)
    ordered = sorted(values)
    count = min(_CURVE_POINTS, max(2, len(ordered)))
    shares = [index / (count - 1) for index in range(count)]
    return Curve(
        arm=arm.arm,
        shares=[_short(share) for share in shares],
        values=[_short(quantile(ordered, share)) for share in shares],
    )


def _curve_of_figures(arm: str, figures: Spread | None) -> Curve:
    """The few quantiles that are known."""
    if figures is None or not figures.count:
        return Curve(arm=arm, shares=[], values=[])
    values = [figures.p50, figures.p90, figures.p95, figures.p99, figures.max]
    return Curve(
        arm=arm, shares=[0.5, 0.9, 0.95, 0.99, 1.0], values=[_short(value) for value in values]
    )


def _run(run: Run) -> RunView:
    bars = _bars(run)
    return RunView(
        arm=run.arm,
        repeat=run.repeat,
        length=_short(max([run.duration_s, *(bar.end for bar in bars)])),
        programs=bars[:_PROGRAMS_MAX],
        left_out=max(0, len(bars) - _PROGRAMS_MAX),
        occupancy=occupancy(run.calls),
        shares=shares(run.calls),
        readings=[
            (_short(r.at_s), r.running or 0.0, r.waiting or 0.0, _short(r.kv_usage or 0.0))
            for r in _thin(run.readings, _TIME_POINTS)
        ],
        decisions=[
            (_short(d.at_s), d.kind, d.text, d.program) for d in run.decisions[-_DECISIONS_MAX:]
        ],
        totals=run.decisions_total,
    )


def _thin(rows: Sequence[Reading], most: int) -> Sequence[Reading]:
    return rows if len(rows) <= most else rows[:: -(-len(rows) // most)]


def _bars(run: Run) -> list[Bar]:
    calls: dict[str, dict[str, list[Call]]] = {}
    for call in run.calls:
        calls.setdefault(call.program, {}).setdefault(call.conversation, []).append(call)
    pins: dict[str, list[Pinned]] = {}
    for pin in run.pins:
        pins.setdefault(pin.program, []).append(pin)
    bars = []
    for program in sorted(run.programs, key=lambda p: (p.started_s, p.program)):
        own = calls.get(program.program, {})
        rows = [call for talk in own.values() for call in talk]
        if not rows:
            continue
        lanes = [
            Lane(name=name, calls=[_segment(call) for call in talk], pins=[])
            for name, talk in own.items()
        ]
        # Pins name the proxy's conversations, rows the trace's: they belong to the program.
        lanes[0].pins = [
            (_short(pin.from_s), _short(pin.to_s), pin.end) for pin in pins.get(program.program, [])
        ]
        bars.append(
            Bar(
                name=program.program,
                tenant=program.tenant,
                outcome=program.outcome,
                start=_short(program.started_s),
                end=_short(max(call.sent_s + call.latency_s for call in rows)),
                lanes=lanes,
            )
        )
    return bars


def _segment(call: Call) -> Segment:
    end = call.sent_s + call.latency_s
    first = end if call.ttft_s is None else min(end, call.sent_s + call.ttft_s)
    tried = min(first, call.sent_s + call.refused_s)
    held = min(first, tried + (call.held_s or 0.0))
    return Segment(
        sent=_short(call.sent_s),
        held=_short(held),
        first=_short(first),
        end=_short(end),
        prompt=call.prompt_tokens or 0,
        cached=-1 if call.cached_tokens is None else call.cached_tokens,
        output=call.output_tokens or 0,
        known=call.known_tokens,
        step=call.step,
        engine=call.engine,
        error=call.error[:200],
        tools=", ".join(call.tools)[:80],
        tried=_short(tried),
    )


def occupancy(calls: Sequence[Call]) -> Layers | None:
    """Tokens of KV that each program has in the engines' caches over time, as its calls tell.

    From its first token on a call holds its prompt and its answer. Before that, and while its
    program pauses, what counts is what turned out to be there: the cached tokens of that call, or
    of the next one. What a first prompt found in the cache is shared, and counts once. What stays
    after a last call is of no use to anybody and is left out. None without such counts.
    """
    spans = list(_holdings(calls))
    if not spans:
        return None
    length = max(span.end for span in spans)
    times = [length * index / (_TIME_POINTS - 1) for index in range(_TIME_POINTS)]
    rows: dict[str, list[float]] = {}
    common = [0.0] * _TIME_POINTS
    step = length / (_TIME_POINTS - 1) or 1.0
    for span in spans:
        row = rows.setdefault(span.program, [0.0] * _TIME_POINTS)
        low = max(0, int(-(-span.start // step)))
        for index in range(low, min(_TIME_POINTS - 1, int(span.end // step)) + 1):
            row[index] += span.tokens
            common[index] = max(common[index], span.shared)
    layers = _layers(times, rows)
    if any(common):
        layers.names.insert(0, SHARED)
        layers.values.insert(0, [_short(value) for value in common])
    return layers


class _Holding(msgspec.Struct):
    """A stretch in which a program holds `tokens` of its own beside `shared` ones."""

    program: str
    start: float
    end: float
    tokens: int
    shared: int


def _holdings(calls: Sequence[Call]) -> Iterable[_Holding]:
    talks: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        if not call.error and call.prompt_tokens is not None:
            talks.setdefault((call.program, call.conversation), []).append(call)
    for (program, _), talk in talks.items():
        # What a first prompt found in the cache, somebody else had put there.
        shared = talk[0].cached_tokens or 0

        def held(
            start: float, end: float, tokens: int, program: str = program, shared: int = shared
        ) -> _Holding:
            own = max(0, tokens - shared)
            return _Holding(program=program, start=start, end=end, tokens=own, shared=shared)

        for index, call in enumerate(talk):
            end = call.sent_s + call.latency_s
            first = end if call.ttft_s is None else call.sent_s + call.ttft_s
            if call.cached_tokens:
                begun = talk[index - 1].sent_s + talk[index - 1].latency_s if index else call.sent_s
                yield held(begun, first, call.cached_tokens)
            yield held(first, end, (call.prompt_tokens or 0) + (call.output_tokens or 0))


def shares(calls: Sequence[Call]) -> Layers | None:
    """Each tenant's share of what the engines did, over time. None with fewer than two."""
    tenants = sorted({call.tenant for call in calls if call.tenant})
    if len(tenants) < 2:
        return None
    length = max(call.sent_s + call.latency_s for call in calls)
    width = length / _SHARE_BINS or 1.0
    rows = {tenant: [0.0] * _SHARE_BINS for tenant in tenants}
    for call in calls:
        if call.tenant and not call.error:
            at = call.sent_s + call.latency_s
            rows[call.tenant][min(_SHARE_BINS - 1, int(at / width))] += service(call)
    totals = [sum(column) for column in zip(*rows.values(), strict=True)]
    for row in rows.values():
        for index, total in enumerate(totals):
            row[index] = row[index] / total if total else 0.0
    return _layers([width * (index + 0.5) for index in range(_SHARE_BINS)], rows)


def _layers(times: Sequence[float], rows: dict[str, list[float]]) -> Layers:
    """The largest rows by name, the others as one."""
    order = sorted(rows, key=lambda name: (-sum(rows[name]), name))
    names, others = order[:_LAYERS_MAX], order[_LAYERS_MAX:]
    values = [[_short(value) for value in rows[name]] for name in names]
    if others:
        columns = zip(*(rows[name] for name in others), strict=True)
        names = [*names, f"{len(others)} others"]
        values.append([_short(sum(column)) for column in columns])
    return Layers(times=[_short(at) for at in times], names=names, values=values)


def _short(value: float) -> float:
    """Milliseconds are as much as anybody can see."""
    return round(value, 3)
