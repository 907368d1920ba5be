"""Verdicts: who was taken for whom, and by what."""

from __future__ import annotations

from agentsched_bench.live.results import (
    SCHEMA,
    ArmRow,
    CallRow,
    ProgramRow,
    Result,
    RunRow,
    TraceRow,
)
from agentsched_bench.recognition.digest import verdicts


def _call(program: str, step: int, label: str | None, *, evidence: str = "prefix") -> CallRow:
    return CallRow(
        run=0,
        arm="a",
        program=program,
        conversation=program,
        step=step,
        sent_s=0.0,
        status=200,
        error="",
        attempts=1,
        waited_s=0.0,
        ttft_s=0.1,
        latency_s=0.2,
        planned_prompt_tokens=1,
        planned_output_tokens=1,
        prompt_tokens=1,
        cached_tokens=0,
        output_tokens=1,
        label=label,
        decision=f"order=fcfs place=only as={evidence}",
    )


def _result(calls: list[CallRow]) -> Result:
    programs = sorted({row.program for row in calls})
    return Result(
        schema=SCHEMA,
        command=[],
        seed=0,
        versions={},
        trace=TraceRow(name="t", sha256="", programs=1, calls=1, is_synthetic=True),
        options={},
        arms=[ArmRow(name="a", url="http://x", ids="none")],
        runs=[RunRow(run=0, arm="a", repeat=0, started_at="", salt="", duration_s=1.25)],
        programs=[
            ProgramRow(
                run=0,
                arm="a",
                program=name,
                started_s=0.0,
                jct_s=1.0,
                outcome="completed",
                calls_planned=1,
                calls_done=1,
                pauses_s=0.0,
            )
            for name in programs
        ],
        calls=calls,
    )


def test_programs_that_are_told_apart_are_not_named() -> None:
    calls = [_call("p", 0, "l1", evidence="none"), _call("p", 1, "l1"), _call("q", 0, "l2")]
    (verdict,) = verdicts(_result(calls), dialect="chat")

    assert verdict.wrong == {}
    assert verdict.evidence == {"none": 1, "prefix": 2}
    assert (verdict.convention, verdict.dialect, verdict.completed) == ("none", "chat", 2)
    assert verdict.attribution is not None
    assert verdict.attribution.right_share == 1.0


def test_split_merged_and_unnamed_programs_are_named_with_their_labels() -> None:
    split = [_call("split", step, label) for step, label in enumerate(("l1", "l2", "l2"))]
    merged = [_call("one", 0, "l3"), _call("other", 0, "l3"), _call("other", 1, "l3")]
    unnamed = [_call("unnamed", 0, None)]
    (verdict,) = verdicts(_result([*split, *merged, *unnamed]), dialect="chat")

    assert verdict.wrong == {"one": [1], "other": [2], "split": [2, 1], "unnamed": [1]}


def test_calls_that_failed_are_counted_and_not_judged() -> None:
    failed = _call("p", 0, None)
    failed.error, failed.decision = "HTTP 500", None
    (verdict,) = verdicts(_result([failed, _call("p", 1, "l1")]), dialect="chat")

    assert verdict.errors == 1
    assert verdict.wrong == {}
    assert verdict.evidence == {"prefix": 1, "unknown": 1}
