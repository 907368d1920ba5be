"""Imports of sessions whose agents were written down as one, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, written

from agentsched_bench.workload.importers.flattened import Request, conversations, is_flattened


def _call(t: float, took: float, *blocks: int, model: str = "m", **more: Any) -> dict[str, Any]:
    prompt = {"in": 64 * len(blocks), "out": 10, "hash_ids": list(blocks)}
    return {"t": t, "type": "s", "model": model, "api_time": took} | prompt | more


def _session(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "tr", "block_size": 64, "hash_id_scope": "local", "requests": list(calls)} | more


#: The main agent, and two that it started at once: each goes on from what it said itself.
_BESIDE = (
    _call(0, 1, 1, 2, 3),
    _call(2, 3, 1, 2, 50, 51, think_time=1.0),
    _call(2.5, 5, 1, 2, 60, 61, think_time=0.0),
    _call(6, 2, 1, 2, 50, 51, 52, think_time=0.0),
    _call(9, 1, 1, 2, 3, 4, 5, think_time=1.0),
    _call(12, 1, 1, 2, 3, 4, 5, 6, think_time=2.0),
)


def test_agents_in_one_list_are_several(tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", _session(*_BESIDE))
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert [(row.session_id, row.parent, row.parent_t_s) for row in rows] == [
        ("tr", None, None),
        ("tr/beside-1", "tr", 2.0),
        ("tr/beside-2", "tr", 2.5),
    ]
    assert [[step.t_s for step in row.steps] for row in rows] == [[0, 9, 12], [0, 4], [0]]
    # Pauses are an agent's own.
    assert [[step.gap_s for step in row.steps] for row in rows] == [[8, 2, None], [1, None], [None]]
    assert [step.new_input_tokens for step in rows[0].steps] == [None, 118, 54]
    assert len({row.hash_scope for row in rows}) == 1


def test_an_agent_by_itself_stays_one_whatever_its_prompts_do(tmp_path: Path) -> None:
    calls = [_call(3.0 * n, 2.5, 1, 2, *range(10 * n, 10 * n + 3)) for n in range(6)]
    (row,), _ = imported(written(tmp_path / "x.json", _session(*calls)), tmp_path / "t.jsonl")
    assert len(row.steps) == 6


def test_the_main_agent_is_not_the_one_that_asked_for_a_title(tmp_path: Path) -> None:
    calls = (_call(0, 4, 90, 91, model="small"), _call(1, 1, 1, 2, 3), _call(4, 1, 1, 2, 3, 4))
    rows, _ = imported(written(tmp_path / "x.json", _session(*calls)), tmp_path / "t.jsonl")
    assert [(row.session_id, row.model, len(row.steps)) for row in rows] == [
        ("tr", "m", 2),
        ("tr/beside-1", "small", 1),
    ]


def test_agents_in_a_sub_agents_list_are_its_own(tmp_path: Path) -> None:
    marker = {"t": 20, "type": "subagent", "agent_id": "a"}
    inner = [call | {"t": 20 + call["t"]} for call in _BESIDE]
    session = _session(_call(0, 1, 7), marker | {"requests": inner}, _call(50, 1, 7, 8))
    rows, _ = imported(written(tmp_path / "x.json", session), tmp_path / "t.jsonl")
    assert [(row.session_id, row.parent, row.parent_t_s, len(row.steps)) for row in rows] == [
        ("tr", None, None, 2),
        ("tr/a", "tr", 20.0, 3),
        ("tr/a/beside-1", "tr/a", 2.0, 2),
        ("tr/a/beside-2", "tr/a", 2.5, 1),
    ]


def _asked(begun_s: float, *blocks: int, took_s: float = 1.0, model: str = "m") -> Request:
    return Request(begun_s=begun_s, ended_s=begun_s + took_s, blocks=blocks, model=model)


@pytest.mark.parametrize("is_taken_up", [False, True])
def test_what_was_made_shorter_is_the_same_conversation(is_taken_up: bool) -> None:
    """Unless the longer one goes on: then the shorter one is another's."""
    requests = [_asked(0, 1, 2, 3, 4), _asked(2, 1, 2, 30)]
    if is_taken_up:
        requests.append(_asked(4, 1, 2, 3, 4, 5))
    assert conversations(requests) == ([[0, 2], [1]] if is_taken_up else [[0, 1]])


def test_who_waits_asks_nothing() -> None:
    """A prompt that would go on from one that is not answered yet is another's."""
    requests = [_asked(0, 1, 2, took_s=5), _asked(1, 1, 8, 3), _asked(6, 1, 2, 9)]
    assert is_flattened(requests)
    assert conversations(requests) == [[0, 2], [1]]


@pytest.mark.parametrize(
    "following", [_asked(4, 1, 2, 9, took_s=3), _asked(1, 1, 2, 3, took_s=3), _asked(1, 1, 2)]
)
def test_times_that_are_not_exact_make_no_agents(following: Request) -> None:
    """Whole seconds let a call begin before the one that it goes on from has ended."""
    assert not is_flattened([_asked(0, 1, 2, took_s=5.4), following, _asked(9, 1, 2, 3)])


def test_models_hold_no_conversations_together() -> None:
    assert conversations([_asked(0, 1, 2), _asked(2, 1, 2, 3, model="n")]) == [[0], [1]]
    assert conversations([]) == []


def test_a_prompt_that_is_sent_twice_at_once_is_one_agents(tmp_path: Path) -> None:
    """Streamed, and not: recorded as two requests, and counted as two."""
    calls = (_call(0, 2, 1, 2), _call(1, 2, 1, 2, type="n"), _call(4, 1, 1, 2, 3))
    (row,), _ = imported(written(tmp_path / "x.json", _session(*calls)), tmp_path / "t.jsonl")
    assert [step.input_tokens for step in row.steps] == [128, 128, 192]
    held = [_asked(0, 1, 2, took_s=9), _asked(1, 1, 2, took_s=9), _asked(2, 7, 8)]
    assert is_flattened(held)
    assert conversations(held) == [[0, 1], [2]]
