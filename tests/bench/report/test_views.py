"""What is drawn: kept and lost pauses, who holds the cache, shares, limits on what is embedded."""

from __future__ import annotations

import pytest

from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.results import Call, CompareResult, Machine
from agentsched_bench.report.views import SHARED, occupancy, shares, view_of


def _call(program: str, sent_s: float, cached: int, *, tenant: str = "", step: int = 0) -> Call:
    return Call(
        program=program,
        conversation=program,
        step=step,
        sent_s=sent_s,
        ttft_s=1.0,
        latency_s=2.0,
        prompt_tokens=1_000,
        cached_tokens=cached,
        output_tokens=100,
        tenant=tenant,
    )


def _at(values: list[float], times: list[float], second: float) -> float:
    return values[min(range(len(times)), key=lambda index: abs(times[index] - second))]


def test_a_running_call_holds_its_prompt_and_a_pause_what_was_kept() -> None:
    kept = occupancy([_call("p", 0, 0), _call("p", 10, 900, step=1)])

    assert kept is not None
    assert kept.names == ["p"]
    row = kept.values[0]
    assert _at(row, kept.times, 0.5) == 0  # queued: nothing yet
    assert _at(row, kept.times, 1.5) == 1_100
    assert _at(row, kept.times, 6.0) == 900
    assert _at(row, kept.times, 11.5) == 1_100


def test_a_pause_whose_kv_was_lost_holds_nothing() -> None:
    lost = occupancy([_call("p", 0, 0), _call("p", 10, 0, step=1)])

    assert lost is not None
    assert _at(lost.values[0], lost.times, 6.0) == 0


def test_what_programs_share_counts_once() -> None:
    both = occupancy([_call("a", 0, 0), _call("b", 0, 600), _call("c", 0, 600)])

    assert both is not None
    assert both.names[0] == SHARED
    at = {
        name: _at(row, both.times, 1.5) for name, row in zip(both.names, both.values, strict=True)
    }
    assert at == {SHARED: 600, "a": 1_100, "b": 500, "c": 500}


def test_without_counts_nothing_is_claimed() -> None:
    call = _call("p", 0, 0)
    call.prompt_tokens = None

    assert occupancy([call]) is None


def test_shares_are_of_what_was_served_then() -> None:
    layers = shares([_call("p", 0, 0, tenant="a"), _call("q", 0, 600, tenant="b")])

    assert layers is not None
    last = {name: row[-1] for name, row in zip(layers.names, layers.values, strict=True)}
    # 1000 + 2 x 100 against 400 + 2 x 100.
    assert last["a"] == pytest.approx(1200 / 1800, abs=0.001)
    assert shares([_call("p", 0, 0, tenant="a")]) is None


def test_timelines_have_lanes_for_sub_agents_and_pins(comparison: CompareResult) -> None:
    view = view_of(comparison)

    ours = next(run for run in view.runs if run.arm == "agentsched")
    bar = ours.programs[0]
    assert bar.name == "p1"
    assert [lane.name for lane in bar.lanes] == ["p1", "p1/sub"]
    assert bar.lanes[0].pins == [(2.0, 3.0, "resumed")]
    assert bar.lanes[0].calls[1].held > bar.lanes[0].calls[1].sent
    assert view.capacity == 100 * 32


def test_what_was_turned_away_is_no_engines_queue(comparison: CompareResult) -> None:
    """Of ten seconds until a first token the client spent seven coming back."""
    run = comparison.runs[1]
    run.calls = [_call("p1", 1.0, 0)]
    run.calls[0].ttft_s, run.calls[0].latency_s = 10.0, 12.0
    run.calls[0].refused_s, run.calls[0].held_s = 7.0, 2.0

    ours = next(run for run in view_of(comparison).runs if run.arm == "agentsched")

    (call,) = ours.programs[0].lanes[0].calls
    assert (call.sent, call.tried, call.held, call.first, call.end) == (1, 8, 10, 11, 13)


def test_distributions_are_of_the_runs_that_the_figures_are_of(comparison: CompareResult) -> None:
    """A run in which the machine stood still is in no figure, and so in no curve."""
    comparison.runs[0].machine = Machine(watched_s=60, kernel_stalls=1)
    comparison.runs[0].programs[0].jct_s = 500.0
    comparison.runs[0].calls[0].ttft_s = 400.0
    comparison.summary = summarise(comparison)

    view = view_of(comparison)

    for curve, figures in zip(view.jct, comparison.summary, strict=True):
        assert max(curve.values) == figures.jct_s.max
    for curve, figures in zip(view.ttft, comparison.summary, strict=True):
        assert max(curve.values) == figures.ttft_s.max


def test_large_results_show_one_repeat_and_the_first_programs(comparison: CompareResult) -> None:
    run = comparison.runs[0]
    program = run.programs[0]
    template = run.calls[0]
    for number in range(7_000):
        call = Call(**{n: getattr(template, n) for n in template.__struct_fields__})
        call.program = call.conversation = f"x{number % 100}"
        run.calls.append(call)
    for number in range(100):
        row = type(program)(program=f"x{number}", started_s=9.0, jct_s=1.0, outcome="completed")
        run.programs.append(row)

    view = view_of(comparison)

    assert [(r.arm, r.repeat) for r in view.runs] == [("direct", 0), ("agentsched", 0)]
    assert len(view.runs[0].programs) == 60
    assert view.runs[0].left_out == 42
    assert view.runs[0].occupancy is not None
    assert view.runs[0].occupancy.names[-1].endswith("others")


@pytest.mark.parametrize(
    ("engine", "tokens"),
    [
        ({"preset": "h100-8b", "blocks": 12_000}, 11_999 * 16),
        ({"fleet": ["2xcpu-2core,blocks=300"], "blocks": 420}, 2 * 299 * 32),
        ({"preset": "gone.json", "blocks": 301, "block_size": 8, "count": 2}, 2 * 300 * 8),
        ({"preset": "gone.json", "blocks": 301}, None),
        ({"of": "another version", "blocks": 301}, None),
        ({"preset": "h100-8b"}, None),
    ],
)
def test_room_is_what_the_engines_had(
    comparison: CompareResult, engine: dict[str, object], tokens: int | None
) -> None:
    comparison.spec = {"engine": {"kind": "sim", "count": 1} | engine}

    assert view_of(comparison).capacity == tokens
