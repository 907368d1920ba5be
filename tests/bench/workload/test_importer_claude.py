"""Imports of Claude Code's transcripts of several versions, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, lines, written


class _Claude:
    """Lines of one conversation, each after the one before."""

    def __init__(self, session: str, **more: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self._common = {"sessionId": session, **more}
        self._seconds = 0

    def _line(self, kind: str, parent: str | None, **more: Any) -> str:
        self._seconds += 1
        own = f"{self._common['sessionId']}-{self._common.get('agentId', '')}-{self._seconds}"
        last = self.lines[-1]["uuid"] if self.lines else None
        stamp = f"2026-01-01T00:00:{self._seconds:02d}Z"
        line = {"type": kind, "uuid": own, "parentUuid": parent or last, "timestamp": stamp}
        self.lines.append(line | self._common | more)
        return own

    def user(self, text: str, *, parent: str | None = None, **more: Any) -> str:
        message = {"role": "user", "content": text}
        return self._line("user", parent, message=message, **more)

    def result(self, call: str, **more: Any) -> str:
        block = {"type": "tool_result", "tool_use_id": call, "content": "found"}
        return self._line("user", None, message={"role": "user", "content": [block]}, **more)

    def says(self, answer: str, *blocks: dict[str, Any], output: int = 30) -> str:
        usage = {"input_tokens": 100, "output_tokens": output}
        message = {"id": answer, "role": "assistant", "model": "m", "usage": usage}
        return self._line("assistant", None, message=message | {"content": list(blocks)})


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _call(call: str, name: str = "Bash") -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": {"command": "ls"}}


def test_claude_code_answer_goes_on_after_its_first_tools_result(tmp_path: Path) -> None:
    """Tools run while the answer is still spoken; newer versions write in that order."""
    session = _Claude("s")
    session.user("both")
    session.says("m1", _call("a"))
    session.result("a")
    session.says("m1", _call("b"))
    session.result("b")
    session.says("m2", _text("done"))
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [len(step.tools) for step in row.steps] == [2, 0]
    assert [tool.duration_s for tool in row.steps[0].tools] == [1.0, 1.0]
    assert row.steps[0].llm_s == 3.0
    assert row.steps[0].answer is not None
    asked = row.messages[row.steps[0].answer].tool_calls
    assert [call.id for call in asked] == ["a", "b"]


def test_claude_code_counts_of_answers_that_had_only_begun(tmp_path: Path) -> None:
    session = _Claude("s")
    session.user("tell me")
    session.says("m1", _text("word " * 400), output=1)
    session.user("shorter")
    session.says("m2", _text("word"), output=1)
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl")
    assert 300 < row.steps[0].output_tokens < 500
    assert row.steps[1].output_tokens == 1
    assert row.token_source["output"] == "recorded, partly"


def test_claude_code_prompt_that_was_counted_twice(tmp_path: Path) -> None:
    """vLLM counts a prompt whole when it begins to answer, and by its parts at the end.

    Claude Code keeps the first count where nothing is left beside what was and is cached.
    """
    session = _Claude("s")
    for answer, given, made, read in (("m1", 96, 96, 0), ("m2", 8, 16, 96), ("m3", 128, 16, 112)):
        session.user("go on")
        session.says(answer, _text("so"))
        usage = {"cache_creation_input_tokens": made, "cache_read_input_tokens": read}
        session.lines[-1]["message"]["usage"] |= usage | {"input_tokens": given}
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl")
    assert [(s.input_tokens, s.prefix_tokens) for s in row.steps] == [
        (96, 0),
        (120, 96),
        (128, 112),
    ]


def test_claude_code_prompt_behind_an_earlier_line(tmp_path: Path) -> None:
    session = _Claude("s")
    session.user("begin")
    session.says("m1", _text("ready"))
    first = session._line("system", None, subtype="turn_duration")
    session.user("one way")
    session.says("m2", _text("gone wrong"))
    session.user("another way", parent=first)
    session.says("m3", _text("fine"))
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    prompt = row.steps[2].prompt or ()
    texts = [row.messages[n].text for low, high in prompt for n in range(low, high + 1)]
    assert texts[1:] == ["begin", "ready", "another way"]


def test_claude_code_compaction_that_keeps_messages(tmp_path: Path) -> None:
    session = _Claude("s")
    session.user("begin")
    session.says("m1", _text("ready"))
    kept = session.user("go on")
    tail = session.says("m2", _text("going"))
    facts = {"preservedSegment": {"headUuid": kept, "tailUuid": tail}}
    session._line("system", None, subtype="compact_boundary", compactMetadata=facts)
    session.user("what was", isCompactSummary=True)
    session.user("and now")
    session.says("m3", _text("done"))
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    prompt = row.steps[2].prompt or ()
    texts = [row.messages[n].text for low, high in prompt for n in range(low, high + 1)]
    assert texts[1:] == ["what was", "go on", "going", "and now"]
    assert row.steps[2].is_compaction


def _with_agent() -> tuple[_Claude, _Claude]:
    main, agent = _Claude("s"), _Claude("s", agentId="a1", isSidechain=True)
    main.user("look into it")
    main.says("m1", _call("task", "Agent"))
    agent.user("look")
    agent.says("n1", _call("x"))
    agent.result("x")
    agent.says("n2", _text("seen"))
    return main, agent


@pytest.mark.parametrize("layout", ["workflow", "print", "list", "progress"])
def test_claude_code_sub_agents_in_later_layouts(layout: str, tmp_path: Path) -> None:
    main, agent = _with_agent()
    told = {"agentId": "a1"} if layout != "workflow" else {"runId": "wf_1"}
    if layout == "progress":
        for line in agent.lines:
            data = {"type": "agent_progress", "agentId": "a1", "message": line}
            main._line("progress", None, parentToolUseID="task", data=data)
    main.result("task", toolUseResult=told)
    main.says("m2", _text("well"))
    path = tmp_path / "runs" / "s.jsonl"
    path.parent.mkdir()
    match layout:
        case "workflow":
            lines(path, *main.lines)
            folder = path.with_suffix("") / "subagents" / "workflows" / "wf_1"
            folder.mkdir(parents=True)
            lines(folder / "agent-a1.jsonl", *agent.lines)
            lines(folder / "journal.jsonl", {"type": "started", "key": "k", "agentId": "a1"})
        case "progress":
            lines(path, *main.lines)
        case _:
            # What `claude -p` prints: no times, other names.
            own = {"session_id": "s", "parent_tool_use_id": None}
            printed: list[dict[str, Any]] = [{"type": "system", "subtype": "init", **own}]
            for of, called in (
                (main.lines[:2], None),
                (agent.lines, "task"),
                (main.lines[2:], None),
            ):
                for line in of:
                    row = {"type": line["type"], "message": line["message"], "uuid": line["uuid"]}
                    printed.append(row | own | {"parent_tool_use_id": called})
            printed.append({"type": "result", "subtype": "success", **own})
            if layout == "list":
                written(path.with_suffix(".json"), printed)
            else:
                lines(path, *printed)
    rows, report = imported(path.parent, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    child = "s/task" if layout in ("print", "list") else "s/a1"
    assert [(row.session_id, row.parent, len(row.steps)) for row in rows] == [
        ("s", None, 2),
        (child, "s", 2),
    ]
    assert rows[0].steps[0].tools[0].child == child


def test_claude_code_copies_of_answers_are_counted_once(tmp_path: Path) -> None:
    """A fork begins with a copy of the session; an empty session in a folder is no fault."""
    session = _Claude("s")
    session.user("begin")
    session.says("m1", _text("ready"))
    copied = [line | {"sessionId": "t", "uuid": f"t-{line['uuid']}"} for line in session.lines]
    fork = _Claude("t")
    fork.lines = copied
    fork.user("go on")
    fork.says("m2", _text("going"))
    folder = tmp_path / "runs"
    folder.mkdir()
    lines(folder / "s.jsonl", *session.lines)
    lines(folder / "t.jsonl", *fork.lines)
    lines(folder / "u.jsonl", *copied)
    lines(folder / "v.jsonl", *[{"type": "summary", "summary": "x", "leafUuid": "y"}] * 30)
    rows, report = imported(folder, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [(row.session_id, len(row.steps)) for row in rows] == [("s", 1), ("t", 1)]
    prompt = rows[1].steps[0].prompt or ()
    assert sum(high - low + 1 for low, high in prompt) == 4
    _, report = imported(folder / "v.jsonl", tmp_path / "t2.jsonl")
    assert "no answer of a model" in str(report.errors[0])


def test_sub_agents_of_sessions_with_one_name_stay_with_theirs(tmp_path: Path) -> None:
    """Two traces of one program, merged."""
    main, agent = _with_agent()
    main.result("task", toolUseResult={"agentId": "a1"})
    main.says("m2", _text("well"))
    lines(tmp_path / "s.jsonl", *main.lines, *agent.lines)
    traces = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for trace in traces:
        imported(tmp_path / "s.jsonl", trace)
    rows, _ = imported(traces, tmp_path / "t.jsonl")
    assert [(row.session_id, row.parent) for row in rows] == [
        ("s", None),
        ("s/a1", "s"),
        ("s#2", None),
        ("s/a1#2", "s#2"),
    ]
    assert [row.steps[0].tools[0].child for row in rows[::2]] == ["s/a1", "s/a1#2"]


@pytest.mark.parametrize("order", ["one by one", "in turns"])
def test_claude_code_sessions_in_one_file_are_several(order: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    both: list[list[dict[str, Any]]] = []
    for name in ("s", "t"):
        session = _Claude(name)
        session._line("attachment", None)
        session.user(f"begin {name}")
        session.says(f"{name}1", _call(f"{name}-a"))
        session.result(f"{name}-a")
        session.says(f"{name}2", _text("ready"))
        # It has no line before it, but says which one it comes after.
        last = session.lines[-1]["uuid"]
        session._line("system", None, subtype="compact_boundary", logicalParentUuid=last)
        session.lines[-1]["parentUuid"] = None
        session.user("what was", isCompactSummary=True)
        session.says(f"{name}3", _text("going"))
        both.append(session.lines)
        lines(folder / f"{name}.jsonl", *session.lines)
    turns = [line for pair in zip(*both, strict=True) for line in pair]
    path = lines(tmp_path / "all.jsonl", *(turns if order == "in turns" else both[0] + both[1]))
    apart, _ = imported(folder, tmp_path / "apart.jsonl", text=True)
    rows, report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [(row.session_id, len(row.steps)) for row in rows] == [("s", 3), ("t", 3)]
    assert rows == apart


def test_claude_code_session_that_was_resumed_under_another_name_is_one(tmp_path: Path) -> None:
    session = _Claude("s")
    session.user("begin")
    session.says("m1", _text("ready"))
    resumed = _Claude("t")
    resumed.lines, resumed._seconds = list(session.lines), 2
    resumed.user("go on")
    resumed.says("m2", _text("going"))
    # A note stands in front of the first line that goes on.
    resumed.lines.insert(2, {"type": "queue-operation", "sessionId": "t"})
    path = lines(tmp_path / "t.jsonl", *resumed.lines)
    (row,), report = imported(path, tmp_path / "o.jsonl")
    assert report.errors_count == 0
    assert (row.session_id, len(row.steps)) == ("s", 2)


@pytest.mark.parametrize(
    ("agent", "at", "kind", "child"),
    [
        ("acompact-1", 2, "compaction", None),
        ("aside_question-1", 2, "side question", None),
        ("aprompt_suggestion-1", 2, "prompt suggestion", None),
        ("a7", 2, "sub-agent", "s/a7"),
        ("a7", 40, "sub-agent", None),
    ],
)
def test_claude_code_agents_that_no_call_started(
    agent: str, at: int, kind: str, child: str | None, tmp_path: Path
) -> None:
    """What nothing names goes to a call that was open then, if it is one that calls start."""
    session, other = _Claude("s"), _Claude("s", agentId=agent, isSidechain=True)
    session.user("look into it")
    session.says("m1", _call("task", "Task"))
    session.result("task", toolUseResult="Error: rejected")
    session.user("then go on")
    session.says("m2", _text("well"))
    other._seconds = at
    other.user("what was said")
    other.says("n1", _text("this"))
    folder = tmp_path / "runs"
    (folder / "s" / "subagents").mkdir(parents=True)
    lines(folder / "s.jsonl", *session.lines)
    lines(folder / "s" / "subagents" / f"agent-{agent}.jsonl", *other.lines)
    rows, report = imported(folder, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert [(row.session_id, row.parent, row.agent) for row in rows] == [
        ("s", None, "claude-code"),
        (f"s/{agent}", "s", f"claude-code/{kind}"),
    ]
    assert rows[0].steps[0].tools[0].child == child


_GONE = "[Old tool result content cleared]"


def test_claude_code_results_that_were_cleared(tmp_path: Path) -> None:
    """A small compaction leaves the conversation as it is, but for what old tools said."""
    session = _Claude("s")
    session.user("begin")
    for answer, call in (("m1", "a"), ("m2", "b")):
        session.says(answer, _call(call))
        session.result(call)
    facts = {"trigger": "auto", "compactedToolIds": ["a", "unknown"], "tokensSaved": 9}
    session._line("system", None, subtype="microcompact_boundary", microcompactMetadata=facts)
    session.says("m3", _call("c"))
    session.result("c")
    session.says("m4", _text("done"))
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert [step.is_compaction for step in row.steps] == [False, False, True, False]
    heard: list[list[str]] = [[], ["found"], [_GONE, "found"], [_GONE, "found", "found"]]
    for step, results in zip(row.steps, heard, strict=True):
        prompt = [row.messages[n] for low, high in step.prompt or () for n in range(low, high + 1)]
        assert [message.text for message in prompt if message.role == "tool"] == results


def test_claude_code_call_that_was_tried_again_took_as_long_as_the_last_try(tmp_path: Path) -> None:
    session = _Claude("s")
    session.user("begin")
    for wait in (500, 2500):
        session._line("system", None, subtype="api_error", retryAttempt=1, retryInMs=wait)
    session._seconds = 9
    session.says("m1", _call("a"))
    session.result("a")
    session.says("m2", _text("done"))
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), report = imported(path, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    # Asked at 1, tried for the last time at 5.5, answered at 10.
    assert [(step.t_s, step.llm_s, step.gap_s) for step in row.steps] == [
        (0.0, 4.5, 1.0),
        (10.0, 1.0, None),
    ]


def test_claude_code_call_that_the_providers_tools_made_several(tmp_path: Path) -> None:
    """What all of them read is added up; the next prompt goes on from the last one's."""
    session = _Claude("s")
    session.user("search")
    session.says("m1", _text("this is it"))
    parts = [
        {"type": "message", "input_tokens": 5, "cache_read_input_tokens": read, "output_tokens": 9}
        for read in (1000, 1400)
    ]
    parts.insert(0, {"type": "compaction", "input_tokens": 9000, "output_tokens": 500})
    whole = {"input_tokens": 10, "cache_read_input_tokens": 2400, "output_tokens": 18}
    session.lines[-1]["message"]["usage"] = whole | {"iterations": parts}
    path = lines(tmp_path / "s.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl")
    (step,) = row.steps
    assert (step.input_tokens, step.prefix_tokens, step.output_tokens) == (1405, 1400, 18)
