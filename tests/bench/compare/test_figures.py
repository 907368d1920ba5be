"""Figures of arms: tokens, tenants, gaps, and what unfinished runs must not do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentsched_bench.compare.figures import service, share_gap, summarise
from agentsched_bench.compare.inference import Verdict
from agentsched_bench.compare.results import Call, CompareResult, Machine

Make = Callable[..., CompareResult]


def test_arms_are_compared_program_by_program(comparison: Make) -> None:
    rows = {f"p{n}": 10.0 + n for n in range(8)}
    halves = {name: value / 2 for name, value in rows.items()}

    direct, ours = summarise(comparison({"direct": [rows, rows], "ours": [halves, halves]}))

    assert direct.jct is None
    assert direct.noise is not None
    assert direct.noise.value == pytest.approx(1.0)
    assert ours.jct is not None
    assert ours.jct.value == pytest.approx(0.5)
    assert ours.verdict is Verdict.BETTER
    assert "0.50 x direct's job completion time" in ours.sentence


def test_tokens_are_told_apart(comparison: Make) -> None:
    (direct,) = summarise(comparison({"direct": [{"a": 1.0, "b": 2.0}]}))

    assert direct.prompt_tokens == 200
    assert direct.cached_tokens == 80
    assert direct.cached_share == pytest.approx(0.4)
    assert direct.computed_tokens == 120
    # 60 of each prompt were known, 40 still cached.
    assert direct.again_tokens == 40
    assert direct.output_tokens == 20


def test_runs_that_were_interrupted_count_for_nothing(comparison: Make) -> None:
    made = comparison({"direct": [{"a": 1.0}], "ours": [{"a": 9.0}]})
    made.runs[1].is_complete = False

    assert [arm.arm for arm in summarise(made)] == ["direct"]


def test_a_call_that_was_interrupted_is_no_error(comparison: Make) -> None:
    made = comparison({"direct": [{"a": 1.0, "b": 2.0}]})
    made.runs[0].calls[0].error = "interrupted"
    made.runs[0].calls[1].error = "HTTP 500"

    assert summarise(made)[0].errors == 1


def test_repeats_that_only_one_arm_has_are_not_compared(comparison: Make) -> None:
    made = comparison({"direct": [{"a": 2.0}], "ours": [{"a": 1.0}, {"a": 100.0}]})

    ours = summarise(made)[1]

    assert ours.jct is not None
    assert (ours.jct.pairs, ours.jct.lost) == (1, 0)
    assert ours.jct.value == pytest.approx(0.5)


STALL = Machine(watched_s=60, gaps=1, gaps_s=30, longest_gap_s=30)


def test_a_repeat_in_which_the_machine_stood_still_is_left_out(comparison: Make) -> None:
    slow, fast = {"a": 2.0, "b": 4.0}, {"a": 1.0, "b": 2.0}
    made = comparison({"direct": [slow, slow, slow], "ours": [fast, fast, fast]})
    made.runs[1].machine = STALL
    made.runs[1].programs[0].jct_s = 500.0
    made.runs[5].machine = Machine(watched_s=60, others_share=0.4)

    direct, ours = summarise(made)

    assert (direct.runs, direct.stalled, direct.jct_s.max) == (2, 1, 4.0)
    assert (ours.runs, ours.stalled) == (3, 0)
    assert ours.jct is not None
    assert (ours.jct.repeats, ours.jct.pairs) == (2, 4)
    assert ours.jct.value == pytest.approx(0.5)
    assert ours.verdict is Verdict.BETTER
    assert "1 of 3 repeats left out, the machine stood still" in ours.sentence
    assert "others had the machine as well in 1 of 2 repeats" in ours.sentence


def test_nothing_is_concluded_from_stalled_runs_alone(comparison: Make) -> None:
    rows = {f"p{n}": 10.0 + n for n in range(8)}
    made = comparison({"direct": [rows, rows], "ours": [{k: v / 4 for k, v in rows.items()}] * 2})
    made.runs[0].machine = made.runs[3].machine = STALL

    direct, ours = summarise(made)

    assert ours.verdict is Verdict.UNKNOWN
    assert ours.jct is not None
    assert ours.jct.value == pytest.approx(0.25), "it is shown, and not relied on"
    assert ours.sentence.startswith("cannot be said: the machine stood still in every repeat")
    assert (direct.stalled, ours.stalled) == (1, 1)


def test_first_tokens_of_programs_that_gave_up_are_compared_with_none(comparison: Make) -> None:
    """Their first calls are quick, as everybody's are; the later ones are missing."""
    rows = {f"p{n}": 10.0 for n in range(8)}
    made = comparison({"direct": [rows] * 3, "ours": [rows] * 3})
    for run in made.runs[3:]:
        for program, call in zip(run.programs[:4], run.calls, strict=False):
            program.jct_s, program.outcome, call.ttft_s = None, "failed", 0.1

    _, ours = summarise(made)

    assert ours.ttft is not None
    assert (ours.ttft.value, ours.ttft.pairs, ours.ttft.lost) == (1.0, 12, 12)
    assert ours.ttft.verdict is Verdict.UNKNOWN


def test_slowdown_is_over_the_time_alone(comparison: Make) -> None:
    made = comparison({"direct": [{"a": 3.0, "b": 8.0}]})
    made.alone_s = {"a": 1.0, "b": 2.0}

    (direct,) = summarise(made)

    assert direct.slowdown is not None
    assert direct.slowdown.max == pytest.approx(4.0)
    assert direct.slowdown.mean == pytest.approx(3.5)


def _call(tenant: str, sent_s: float, first_s: float, prompt: int, output: int = 0) -> Call:
    return Call(
        program=tenant,
        conversation=tenant,
        step=0,
        sent_s=sent_s,
        ttft_s=first_s - sent_s,
        latency_s=first_s - sent_s,
        prompt_tokens=prompt,
        cached_tokens=0,
        output_tokens=output,
        tenant=tenant,
    )


def test_service_counts_what_is_computed_and_answers_twice() -> None:
    call = _call("a", 0, 1, 100, 10)
    call.cached_tokens = 40

    assert service(call) == 60 + 2 * 10


def test_the_gap_grows_while_both_wait_and_only_then() -> None:
    # b waits from 0 to 10; a gets 300 tokens meanwhile, always with another call waiting.
    calls = [_call("b", 0, 10, 50)]
    calls += [_call("a", 0, 1, 100), _call("a", 0, 2, 100), _call("a", 0, 3, 100)]
    calls += [_call("a", 0, 11, 5)]

    assert share_gap(calls) == 300


def test_the_gap_is_over_any_time_in_which_both_wait() -> None:
    """First a is ahead by 100, then b makes up for it and gets 100 more: 200 in that time alone."""
    calls = [_call("a", 0, 9, 0), _call("b", 0, 9, 0)]
    calls += [_call("a", 0, 1, 100), _call("b", 0, 2, 100), _call("b", 0, 3, 100)]

    assert share_gap(calls) == 200


def test_who_is_answered_at_once_ends_no_wait() -> None:
    """Refused in the moment in which it came, say, while another call of its tenant waits on."""
    calls = [_call("b", 0, 10, 0), _call("a", 0, 10, 0), _call("b", 2, 2, 0)]
    calls += [_call("a", 0, 1, 100), _call("a", 0, 3, 100)]

    assert share_gap(calls) == 200


def test_a_tenant_that_asks_for_nothing_loses_nothing() -> None:
    calls = [_call("a", 0, 1, 100), _call("a", 1, 2, 100), _call("b", 5, 6, 10)]

    assert share_gap(calls) == 0


def test_one_tenant_has_no_gap() -> None:
    assert share_gap([_call("a", 0, 1, 10)]) is None


def test_tenants_are_judged_where_there_are_several(comparison: Make) -> None:
    made = comparison({"direct": [{"a": 2.0, "b": 6.0}]})
    made.alone_s = {"a": 1.0, "b": 1.0}
    for row in (*made.runs[0].programs, *made.runs[0].calls):
        row.tenant = f"team-{row.program}"

    (direct,) = summarise(made)

    assert [t.tenant for t in direct.tenants] == ["team-a", "team-b"]
    assert direct.jain == pytest.approx((2 + 6) ** 2 / (2 * (4 + 36)))
    assert direct.share_gap_tokens is not None


def test_a_tenant_whose_programs_all_gave_up_is_not_left_out_of_fairness(comparison: Make) -> None:
    made = comparison({"direct": [{"a": 2.0, "b": 2.0, "c": 2.0}]})
    made.alone_s = {"a": 1.0, "b": 1.0, "c": 1.0}
    for row in (*made.runs[0].programs, *made.runs[0].calls):
        row.tenant = f"team-{row.program}"
    made.runs[0].programs[2].jct_s, made.runs[0].programs[2].outcome = None, "failed"

    assert summarise(made)[0].jain is None
