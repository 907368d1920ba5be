"""Figures of a chaos run, from calls made up for the purpose."""

from __future__ import annotations

from typing import Any

import msgspec

from agentsched_bench.cluster.load import Attempt, Call, Seen
from agentsched_bench.cluster.measure import (
    figures,
    first_answer,
    longest_silence,
    merged,
    recognition,
    shares,
)
from agentsched_bench.cluster.table import comparison, table


def call(program: int, step: int, **given: Any) -> Call:
    began = given.pop("began", float(step))
    known: dict[str, Any] = {
        "agent": program,
        "program": program,
        "step": step,
        "tenant": "red",
        "has_ids": False,
        "streams": False,
        "began": began,
        "ended": began + 0.5,
        "label": f"p{program}",
        "replica": "a",
        "tokens": 10,
    }
    return Call(**(known | given))


def test_recognition_counts_turns_and_switches_of_replica() -> None:
    calls = [
        call(1, 0),
        call(1, 1, replica="b"),
        call(1, 2, replica="a", label="other"),
        call(1, 3, label="other"),
        call(2, 0, has_ids=True),
    ]
    found = recognition(calls, has_ids=False)
    assert (found.followed, found.kept) == (3, 2)
    assert (found.switched, found.kept_switched) == (2, 1)
    assert recognition(calls, has_ids=True).followed == 0


def test_two_runs_in_one_program_are_seen() -> None:
    assert merged([call(1, 0), call(2, 0)]) == 0
    assert merged([call(1, 0, label="x"), call(2, 0, label="x")]) == 1


def test_silence_and_the_first_answer_after_a_fault() -> None:
    calls = [call(1, n, began=at) for n, at in enumerate((0.0, 1.0, 4.0, 4.2))]
    assert longest_silence(calls, since=1.2) == 3.0
    assert round(first_answer(calls, after=2.0), 3) == 2.5


def test_silence_that_lasts_to_the_end_is_the_longest() -> None:
    """Everybody's calls fail from some moment on, for good."""
    fine = [call(1, n, began=float(n)) for n in range(10)]
    lost = [call(1, n, began=float(n), ended=n + 5.0, error="HTTP 503") for n in range(10, 60)]
    assert longest_silence([*fine, *lost], since=10.0) == 54.0
    assert longest_silence([*fine, call(1, 10, began=11.0), *lost], since=10.0) == 52.5
    assert longest_silence([*fine, *lost], since=70.0) == 0.0


def test_quantiles_of_latencies_lie_between_values() -> None:
    calls = [call(1, n, began=0.0, ended=ended) for n, ended in enumerate((1.0, 9.0))]
    found = figures(Seen(calls=calls), faults=[], knows_programs=False)
    assert found["latency_s"]["all"] == {"p50": 5.0, "p95": 8.6, "max": 9.0}


def test_shares_are_of_tokens_in_the_span() -> None:
    calls = [call(1, 0, tokens=30), call(2, 0, tenant="blue"), call(3, 9, tokens=99)]
    assert shares(calls, begin=0.0, end=5.0) == {"blue": 0.25, "red": 0.75}
    assert shares(calls, begin=50.0, end=60.0) == {}


def test_figures_and_tables_of_a_run() -> None:
    calls = [
        call(1, 0),
        call(1, 1, error="HTTP 502"),
        call(2, 0, streams=True, cuts=["told"], tries=2),
        call(3, 0, began=9.0, ended=45.0),
    ]
    attempts = [Attempt(at=0.0, outcome="200"), Attempt(at=1.0, outcome="502")]
    seen = Seen(calls=calls, attempts=attempts, programs=3, completed=2)
    found = figures(seen, faults=[(0.8, "kill -9"), (5.0, "back")], knows_programs=True)
    assert (found["calls_failed"], found["failed_whole"], found["hung"]) == (1, 1, 1)
    assert found["streams_cut"] == 1
    assert found["cut_by_kind"] == {"told": 1}
    assert found["attempts_by_outcome"] == {"200": 1, "502": 1}
    ours = {**found, "scenario": "replica-kill", "target": "agentsched"}
    theirs = {**found, "scenario": "replica-kill", "target": "vllm-router"}
    assert "| replica-kill | 2 of 3 | 4 | 1 / 0 |" in table([ours])
    assert "vllm-router" in comparison([ours, theirs])


def test_a_run_in_which_nobody_was_answered_any_more_has_its_line() -> None:
    """Its figures go through a file, and JSON has no infinity."""
    calls = [call(1, 0), call(1, 1, began=6.0, ended=36.0, error="ReadTimeout")]
    found = figures(Seen(calls=calls), faults=[(5.0, "kill -9")], knows_programs=False)
    result = {**found, "scenario": "replica-kill", "target": "litellm"}
    read = msgspec.json.decode(msgspec.json.encode(result), type=dict[str, Any])
    assert "| never |" in table([read])
    assert table([read]) == table([result])
