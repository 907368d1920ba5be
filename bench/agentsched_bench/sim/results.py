"""What simulations came to: a row for each arm and seed, a summary for each arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from agentsched.model import Nanos, between, in_seconds
from agentsched_bench.live.results import TraceRow
from agentsched_bench.sim.arms import Outcome
from agentsched_bench.workload.statistics import Spread, spread

SCHEMA: Final = "agentsched.simulation/1"
#: A program is in time when it takes at most so many times what it takes alone.
SLOWDOWN_MAX: Final = 2.0
_WIDTH_MAX: Final = 1_000


class TenantRow(msgspec.Struct, kw_only=True):
    """One tenant's programs."""

    programs: int
    jct_mean_s: float
    slowdown: Spread
    in_time: float = 0.0


class SimRow(msgspec.Struct, kw_only=True):
    """One arm under one seed.

    `slowdown` is a program's completion time over that of the same program alone on an idle engine.
    `in_time` is the share of programs, failed ones included, whose slowdown is at most 2.
    `again_tokens` were computed though an earlier call of the conversation had computed them.
    `forced` counts steps that went only because their wait bound was reached.
    """

    arm: str
    seed: int
    programs: int
    failed: int
    calls: int
    jct_s: Spread
    slowdown: Spread
    first_token_wait_s: Spread
    held_s: Spread
    prompt_tokens: int
    cached_share: float
    again_tokens: int
    output_tokens: int
    busy_share: float
    makespan_s: float
    forced: int
    rejected: int
    #: Of programs under the oracle's lower bound, of the least time for all, and of tokens computed
    #: against those that had to be (`agentsched_bench.oracles.bound`); 1 cannot be beaten. The
    #: latter two are 0 where programs gave up: the bounds are of all of them.
    jct_of_bound: float = 0.0
    makespan_of_bound: float = 0.0
    computed_of_bound: float = 0.0
    in_time: float = 0.0
    #: As `first_token_wait_s`, of calls that continue a conversation. None in files of before.
    continuing_wait_s: Spread | None = None
    #: By tenant, where there are several: programs, mean completion time, slowdown.
    tenants: dict[str, TenantRow] = {}


class SimSummary(msgspec.Struct, kw_only=True):
    """One arm over all its seeds: means of the rows, and the worst wait of any.

    Times are of the seeds under which a program completed, `cached_share` of those under which any
    call did, `computed_of_bound` of those under which all programs did; 0 where there is none.
    """

    arm: str
    jct_mean_s: float
    jct_p50_s: float
    jct_p95_s: float
    jct_mean_range_s: tuple[float, float]
    slowdown_p95: float
    slowdown_p95_range: tuple[float, float]
    first_token_wait_max_s: float
    cached_share: float
    again_tokens: float
    busy_share: float
    forced: float
    failed: int
    jct_of_bound: float = 0.0
    computed_of_bound: float = 0.0


class SimResult(msgspec.Struct, kw_only=True):
    """The whole of one invocation, as it lies in the file."""

    schema: str
    command: list[str]
    versions: dict[str, str]
    trace: TraceRow
    options: dict[str, object]
    seeds: list[int]
    rows: list[SimRow] = []
    summary: list[SimSummary] = []


def _in_time(slowdowns: Sequence[float], programs: int) -> float:
    return sum(slowdown <= SLOWDOWN_MAX for slowdown in slowdowns) / max(1, programs)


def row_of(arm: str, seed: int, outcome: Outcome, *, alone_s: Mapping[str, float]) -> SimRow:
    """What one simulation came to."""
    done = [run for run in outcome.runs if run.ended_at is not None and not run.is_failed]
    jct: list[float] = []
    slow: list[float] = []
    # A tenant whose programs all gave up has a row, too.
    tenants: dict[str, list[tuple[float, float]]] = {run.tenant: [] for run in outcome.runs}
    for run in done:
        assert run.ended_at is not None
        jct.append(in_seconds(between(run.started_at, run.ended_at)))
        slow.append(jct[-1] / alone_s[run.plan.program])
        tenants[run.tenant].append((jct[-1], slow[-1]))
    tally = outcome.tally
    bound = outcome.bound
    is_whole = len(done) == len(outcome.runs)
    least = sum(bound.programs_s[run.plan.program] for run in done)
    return SimRow(
        arm=arm,
        seed=seed,
        programs=len(done),
        failed=len(outcome.runs) - len(done),
        calls=tally.calls,
        jct_s=spread(jct),
        slowdown=spread(slow),
        first_token_wait_s=_seconds(tally.first_token_waits),
        held_s=_seconds(tally.held),
        prompt_tokens=tally.prompt_tokens,
        cached_share=tally.cached_tokens / max(1, tally.prompt_tokens),
        again_tokens=tally.again_tokens,
        output_tokens=tally.output_tokens,
        busy_share=outcome.busy_ns / max(1, outcome.makespan_ns * outcome.engines),
        makespan_s=in_seconds(outcome.makespan_ns),
        forced=tally.forced,
        rejected=tally.rejected,
        jct_of_bound=sum(jct) / max(1e-9, least),
        # These bounds are of all programs: who gives up on some does less than has to be done.
        makespan_of_bound=is_whole * in_seconds(outcome.makespan_ns) / max(1e-9, bound.makespan_s),
        computed_of_bound=is_whole
        * (tally.prompt_tokens - tally.cached_tokens)
        / max(1, bound.computed_tokens),
        in_time=_in_time(slow, len(outcome.runs)),
        continuing_wait_s=_seconds(
            wait
            for place, wait in enumerate(tally.first_token_waits)
            if place not in tally.first_calls
        ),
        tenants={
            tenant: TenantRow(
                programs=len(rows),
                jct_mean_s=_mean(row[0] for row in rows),
                slowdown=spread(row[1] for row in rows),
                in_time=_in_time(
                    [row[1] for row in rows], sum(run.tenant == tenant for run in outcome.runs)
                ),
            )
            for tenant, rows in sorted(tenants.items())
            if len(tenants) > 1
        },
    )


def summarise(rows: Sequence[SimRow]) -> list[SimSummary]:
    """One summary for each arm, in the order of the rows."""
    arms: dict[str, list[SimRow]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    return [_summary(arm, own) for arm, own in arms.items()]


def _summary(arm: str, rows: Sequence[SimRow]) -> SimSummary:
    done = [row for row in rows if row.programs]
    means = [row.jct_s.mean for row in done] or [0.0]
    slow = [row.slowdown.p95 for row in done] or [0.0]
    return SimSummary(
        arm=arm,
        jct_mean_s=_mean(means),
        jct_p50_s=_mean(row.jct_s.p50 for row in done),
        jct_p95_s=_mean(row.jct_s.p95 for row in done),
        jct_mean_range_s=(min(means), max(means)),
        slowdown_p95=_mean(slow),
        slowdown_p95_range=(min(slow), max(slow)),
        first_token_wait_max_s=max(row.first_token_wait_s.max for row in rows),
        cached_share=_mean(row.cached_share for row in rows if row.prompt_tokens),
        again_tokens=_mean(row.again_tokens for row in rows),
        busy_share=_mean(row.busy_share for row in rows),
        forced=_mean(row.forced for row in rows),
        failed=sum(row.failed for row in rows),
        jct_of_bound=_mean(row.jct_of_bound for row in done),
        computed_of_bound=_mean(row.computed_of_bound for row in rows if not row.failed),
    )


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else 0.0


def _seconds(spans: Iterable[int]) -> Spread:
    return spread(in_seconds(Nanos(span)) for span in spans)


def print_simulation(result: SimResult, *, console: Console) -> None:
    """The summary as a table: one row for each arm."""
    title = f"{result.trace.name}: {result.options['programs']} programs, seeds {result.seeds}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, padding=0)
    table.add_column("arm", overflow="fold", min_width=12)
    # Short enough for a terminal of 80 columns, as a rule.
    columns: tuple[str, ...] = ("JCT s", "p50", "p95", "slow p95", "wait s", "cached")
    columns = (*columns, "x bound", "x comp", "busy", "forced")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in result.summary:
        times = (arm.jct_mean_s, arm.jct_p50_s, arm.jct_p95_s)
        table.add_row(
            Text(arm.arm),
            # An arm under which nobody completed is not the fastest.
            *(f"{time_s:.1f}" if arm.jct_mean_s else "-" for time_s in times),
            f"{arm.slowdown_p95:.2f}" if arm.jct_mean_s else "-",
            # Where no first token ever came, there was no short wait, nor an empty cache.
            f"{arm.first_token_wait_max_s:.1f}" if arm.first_token_wait_max_s else "-",
            f"{arm.cached_share:.3f}" if arm.first_token_wait_max_s else "-",
            f"{arm.jct_of_bound:.2f}" if arm.jct_mean_s else "-",
            f"{arm.computed_of_bound:.2f}" if arm.computed_of_bound else "-",
            f"{arm.busy_share:.2f}",
            f"{arm.forced:.0f}",
        )
    # Where figures are long the table is wider than the console: the last columns count, too.
    needed = Measurement.get(console, console.options.update(width=_WIDTH_MAX), table).minimum
    console.print(table, width=max(console.width, needed), crop=False)
    console.print(
        "slow: over the time alone on an idle engine; wait: longest for a first token\n"
        "x bound: JCT over the least that programs could take\n"
        "x comp: prompt tokens computed over those that had to be\n"
        "forced: steps that went at their wait bound only",
        highlight=False,
    )
    if shape := result.options.get("shape"):
        console.print(
            f"Not as recorded: {shape} (--scale-tokens, --scale-time, --gap-cap).", highlight=False
        )
    for arm in result.summary:
        if arm.failed:
            programs = sum(row.programs + row.failed for row in result.rows if row.arm == arm.arm)
            text = (
                f"{arm.arm}: {arm.failed} of {programs} programs gave up and are in no time above"
            )
            console.print(text, highlight=False, markup=False)
