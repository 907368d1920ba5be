"""A replay's summary as a table: one column for each arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from agentsched_bench.compare.show import split_tables
from agentsched_bench.live.results import ArmSummary, Result
from agentsched_bench.workload.statistics import Spread


def _time(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def _percent(share: float | None) -> str:
    return "not reported" if share is None else f"{100 * share:.1f} %"


def _programs(arm: ArmSummary) -> str:
    done = arm.programs.get("completed", 0)
    return f"{done} of {sum(arm.programs.values())}"


def _mean(arm: ArmSummary) -> str:
    return _time(arm.jct_s.mean) if arm.jct_s.count else "-"


def _ttft(arm: ArmSummary) -> str:
    if not arm.ttft_s.count:
        return "-"
    return " / ".join(_time(v) for v in (arm.ttft_s.p50, arm.ttft_s.p99, arm.ttft_s.max))


def _run_spread(arm: ArmSummary) -> str:
    if len(arm.run_jct_s) < 2:
        return "-"
    return f"{_time(min(arm.run_jct_s))} to {_time(max(arm.run_jct_s))}"


def _ratio(arm: ArmSummary) -> str:
    return "-" if arm.jct_ratio is None else f"{arm.jct_ratio:.2f}"


def _recognised(arm: ArmSummary) -> str:
    seen = arm.attribution
    if seen is None:
        return "does not say"
    return f"{_percent(seen.right_share)} of calls"


def _recognised_mains(arm: ArmSummary) -> str:
    seen = arm.attribution
    return "-" if seen is None else f"{_percent(seen.main_right_share)} of calls"


def _precision_recall(arm: ArmSummary) -> str:
    seen = arm.attribution
    return "-" if seen is None else f"{seen.precision:.3f} / {seen.recall:.3f}"


def _merged(arm: ArmSummary) -> str:
    return "-" if arm.attribution is None else str(arm.attribution.merged)


def _tail(jct: Spread) -> str:
    return " / ".join(_time(value) for value in (jct.p50, jct.p95, jct.p99)) if jct.count else "-"


_ROWS: Final[Sequence[tuple[str, Callable[[ArmSummary], str]]]] = (
    ("programs completed", _programs),
    ("job completion, mean", _mean),
    ("  p50 / p95 / p99", lambda arm: _tail(arm.jct_s)),
    ("  means of the runs", _run_spread),
    ("  median ratio to first", _ratio),
    ("TTFT, p50 / p99 / max", _ttft),
    ("prompt tokens", lambda arm: f"{arm.prompt_tokens:,}"),
    ("  from the cache", lambda arm: _percent(arm.cached_share)),
    ("output tokens", lambda arm: f"{arm.output_tokens:,}"),
    ("calls, errors, retries", lambda arm: f"{arm.calls:,} / {arm.errors} / {arm.retries}"),
    ("programs recognised", _recognised),
    ("  without sub-agents", _recognised_mains),
    ("  precision / recall", _precision_recall),
    ("  merged by mistake", _merged),
)


def summary_tables(result: Result, *, width: int) -> list[Table]:
    """`result.summary`, one column for each arm.

    As many tables as it takes for nothing to be cut off within `width` characters.
    """
    kind = ", synthetic" if result.trace.is_synthetic else ""
    title = (
        f"{result.trace.name}{kind}: {result.trace.programs} programs, {result.trace.calls} calls"
    )
    rows = [(name, [show(arm) for arm in result.summary]) for name, show in _ROWS]
    return split_tables(title, [arm.arm for arm in result.summary], rows, width=width)


def print_summary(result: Result, *, console: Console) -> None:
    """Print the tables, and what a reader must know about them."""
    for table in summary_tables(result, width=console.width):
        console.print(table)
    if not result.is_complete:
        console.print("Interrupted: the figures cover what was measured until then.")
    errors: dict[str, int] = {}
    for row in result.calls:
        if row.error and row.error != "interrupted":
            key = f"{row.arm}: {row.error[:160]}"
            errors[key] = errors.get(key, 0) + 1
    for text, count in sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:5]:
        console.print(f"{count} x {text}", highlight=False, markup=False)
