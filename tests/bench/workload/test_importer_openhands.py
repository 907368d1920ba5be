"""Imports of OpenHands' events: what an answer asked for, said and took, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, lines, written


def _event(number: int, at: float, **more: Any) -> dict[str, Any]:
    stamp = f"2025-10-30T03:50:{at:09.6f}"
    return {"id": f"e{number}", "timestamp": stamp, "source": "agent", **more}


def _asked(number: int, at: float, call: str, response: str) -> dict[str, Any]:
    asked = {"id": call, "name": "terminal", "arguments": f'{{"command": "make {call}"}}'}
    action = {"kind": "TerminalAction", "command": f"make {call}"}
    more = {"tool_name": "terminal", "tool_call_id": call, "llm_response_id": response}
    return _event(number, at, kind="ActionEvent", action=action, tool_call=asked, **more)


def _seen(number: int, at: float, call: str, of: int) -> dict[str, Any]:
    found = {"kind": "TerminalObservation", "content": [{"type": "text", "text": "output"}]}
    more = {"tool_name": "terminal", "tool_call_id": call, "action_id": f"e{of}"}
    return _event(number, at, kind="ObservationEvent", observation=found, **more)


def _task(**more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [{"type": "text", "text": "fix it"}]}
    return _event(1, 1, kind="MessageEvent", llm_message=message, **more) | {"source": "user"}


def _run(*events: dict[str, Any]) -> dict[str, Any]:
    return {"instance_id": "i", "history": [_task(), *events]}


def test_calls_of_one_answer_are_all_in_its_message(tmp_path: Path) -> None:
    first = _asked(2, 4, "c1", "r1") | {"thought": [{"type": "text", "text": "both"}]}
    run = _run(
        first,
        _asked(3, 4, "c2", "r1"),
        _asked(4, 4, "c3", "r1"),
        _seen(5, 6, "c1", 2),
        _seen(6, 7, "c2", 3),
        _seen(7, 8, "c3", 4),
        _asked(8, 9, "c4", "r2"),
    )
    (row,), report = imported(lines(tmp_path / "o.jsonl", run), tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    answers = [row.messages[step.answer or 0] for step in row.steps]
    assert [[call.id for call in answer.tool_calls] for answer in answers] == [
        ["c1", "c2", "c3"],
        ["c4"],
    ]
    assert answers[0].text == "both"
    assert [tool.call_id for tool in row.steps[0].tools] == ["c1", "c2", "c3"]
    prompt = [n for low, high in row.steps[1].prompt or () for n in range(low, high + 1)]
    told = [(row.messages[n].role, row.messages[n].call_id) for n in prompt]
    assert told[1:] == [("assistant", None), ("tool", "c1"), ("tool", "c2"), ("tool", "c3")]
    # Their arguments are part of the estimate.
    assert row.steps[0].output_tokens > 2 * row.steps[1].output_tokens


def test_a_call_is_not_charged_with_those_before_it(tmp_path: Path) -> None:
    """The second action may be put there when the first one's observation is."""
    run = _run(
        _asked(2, 5, "c1", "r1"),
        _seen(3, 35, "c1", 2),
        _asked(4, 35.1, "c2", "r1"),
        _seen(5, 36, "c2", 4),
        _asked(6, 40, "c3", "r2"),
    )
    latency = [{"response_id": name, "latency": 3.0} for name in ("r1", "r2")]
    run["metrics"] = {"response_latencies": latency}
    (row,), _ = imported(lines(tmp_path / "o.jsonl", run), tmp_path / "t.jsonl")
    assert [tool.duration_s for tool in row.steps[0].tools] == [30.0, 0.9]
    assert (row.steps[0].llm_s, row.steps[0].gap_s) == (3.0, 32.0)


def test_thoughts_are_counted(tmp_path: Path) -> None:
    """They come back in no later prompt: what is new there is not known."""
    run = _run(_asked(2, 4, "c1", "r1"), _seen(3, 6, "c1", 2), _asked(4, 9, "c2", "r2"))
    for thought, new in ((0, 180), (15, None)):
        usages = [
            {"response_id": name, "prompt_tokens": size, "completion_tokens": 20}
            for name, size in (("r1", 300), ("r2", 500))
        ]
        usages[0]["reasoning_tokens"] = thought
        run["metrics"] = {"token_usages": usages}
        (row,), _ = imported(written(tmp_path / "o.json", run), tmp_path / "t.jsonl")
        assert [step.reasoning_tokens for step in row.steps] == [thought, 0]
        assert row.steps[1].new_input_tokens == new


def test_what_skills_add_to_a_message_is_part_of_it(tmp_path: Path) -> None:
    run = _run(_asked(2, 4, "c1", "r1"))
    run["history"][0] = _task(extended_content=[{"type": "text", "text": "mind the tests"}])
    (row,), _ = imported(written(tmp_path / "o.json", run), tmp_path / "t.jsonl", text=True)
    assert row.messages[0].text == "fix it\nmind the tests"


@pytest.mark.parametrize("name", ["delegate", "message", "recall", "system"])
def test_tools_may_be_called_as_old_actions_were(name: str, tmp_path: Path) -> None:
    """The new SDK's tool `delegate` opens no conversation in this one: others are theirs alone."""
    asked = _asked(2, 4, "c1", "r1")
    asked["tool_name"] = asked["tool_call"]["name"] = name
    run = _run(asked, _seen(3, 9, "c1", 2), _asked(4, 12, "c2", "r2"), _seen(5, 13, "c2", 4))
    (row,), report = imported(lines(tmp_path / "o.jsonl", run), tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert [(tool.name, tool.duration_s) for step in row.steps for tool in step.tools] == [
        (name, 5.0),
        ("terminal", 1.0),
    ]


def test_sub_agents_are_kept_below_the_conversation_that_started_them(tmp_path: Path) -> None:
    def keep(folder: Path, *events: dict[str, Any]) -> None:
        (folder / "events").mkdir(parents=True)
        for number, event in enumerate(events):
            written(folder / "events" / f"event-{number:05d}-{event['id']}.json", event)

    main = tmp_path / "runs" / "abc"
    asked = _asked(2, 4, "c1", "r1") | {"tool_name": "task"}
    keep(main, _task(), asked, _seen(3, 30, "c1", 2), _asked(4, 33, "c2", "r2"))
    keep(main / "subagents" / "def", _task(), _asked(2, 9, "d1", "s1"), _seen(3, 12, "d1", 2))
    # Of a conversation that was started by one which is not there.
    keep(tmp_path / "runs" / "gone" / "subagents" / "ghi", _task(), _asked(2, 3, "e1", "u1"))
    rows, report = imported(tmp_path / "runs", tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert [(row.session_id, row.parent, row.parent_t_s, row.agent) for row in rows] == [
        ("abc", None, None, "OpenHands"),
        ("abc/def", "abc", 0.0, "OpenHands/sub-agent"),
        ("ghi", None, None, "OpenHands"),
    ]


def test_rules_of_a_path_are_part_of_the_result_that_told_of_them(tmp_path: Path) -> None:
    seen = _seen(3, 6, "c1", 2) | {"extended_content": [{"type": "text", "text": "mind this"}]}
    run = _run(_asked(2, 4, "c1", "r1"), seen, _asked(4, 9, "c2", "r2"))
    (row,), _ = imported(written(tmp_path / "o.json", run), tmp_path / "t.jsonl", text=True)
    assert [m.text for m in row.messages if m.role == "tool"] == ["output\nmind this"]


def test_cached_tokens_beside_the_prompt_are_part_of_it(tmp_path: Path) -> None:
    """LiteLLM passed on for long what Anthropic's API counts."""
    run = _run(_asked(2, 4, "c1", "r1"), _seen(3, 6, "c1", 2), _asked(4, 9, "c2", "r2"))
    run["metrics"] = {
        "token_usages": [
            {"response_id": "r1", "prompt_tokens": 6, "cache_write_tokens": 700},
            {"response_id": "r2", "prompt_tokens": 940, "cache_read_tokens": 700},
        ]
    }
    (row,), _ = imported(written(tmp_path / "o.json", run), tmp_path / "t.jsonl")
    assert [(s.input_tokens, s.prefix_tokens) for s in row.steps] == [(706, None), (940, 700)]
