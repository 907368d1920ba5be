"""Imports of Qwen Code's chats, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, lines


class _Chat:
    """Lines of one conversation, a second apart, each behind the one before."""

    def __init__(self, session: str, *, second: int = 0, **more: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self._common = {"sessionId": session, **more}
        self._second = second

    def line(self, kind: str, *, parent: str | None = None, **more: Any) -> str:
        self._second += 1
        own = f"{self._common['sessionId']}-{self._common.get('agentId', '')}-{self._second}"
        last = self.lines[-1]["uuid"] if self.lines else None
        stamp = f"2026-01-01T00:00:{self._second:02d}.000Z"
        row = {"uuid": own, "parentUuid": parent or last, "timestamp": stamp, "type": kind}
        self.lines.append(row | self._common | more)
        return own

    def user(self, text: str, *, parent: str | None = None) -> str:
        message = {"role": "user", "parts": [{"text": text}]}
        return self.line("user", parent=parent, message=message)

    def says(self, *parts: dict[str, Any], prompt: int | None = 900, output: int = 20) -> str:
        usage = {"promptTokenCount": prompt, "candidatesTokenCount": output}
        usage |= {"cachedContentTokenCount": 100, "totalTokenCount": (prompt or 0) + output}
        more = {} if prompt is None else {"usageMetadata": usage}
        message = {"role": "model", "parts": list(parts)}
        return self.line("assistant", message=message, model="sim", **more)

    def result(self, call: str, *, status: str = "success", **more: Any) -> str:
        response = {"output": "found"} if status == "success" else {"error": "no such thing"}
        part = {"functionResponse": {"id": call, "name": "x", "response": response}}
        facts = {"callId": call, "status": status, **more}
        message = {"role": "user", "parts": [part]}
        return self.line("tool_result", message=message, toolCallResult=facts)

    def reports(self, name: str, **event: Any) -> str:
        stamp = f"2026-01-01T00:00:{self._second + 1:02d}.000Z"
        told = {"event.name": f"qwen-code.{name}", "event.timestamp": stamp, **event}
        return self.line("system", subtype="ui_telemetry", systemPayload={"uiEvent": told})

    def answered(self, prompt: int, *, took_ms: int = 800, **event: Any) -> str:
        counts = {"input_token_count": prompt, "output_token_count": 20}
        times = {"duration_ms": took_ms, "ttft_ms": 250}
        return self.reports("api_response", model="sim", **counts, **times, **event)


def _text(text: str) -> dict[str, Any]:
    return {"text": text}


def _call(call: str, command: str = "ls -l", name: str = "run_shell_command") -> dict[str, Any]:
    return {"functionCall": {"id": call, "name": name, "args": {"command": command}}}


def _texts(row: Any, step: int) -> list[str | None]:
    prompt = row.steps[step].prompt or ()
    return [row.messages[n].text for low, high in prompt for n in range(low, high + 1)]


def _session() -> _Chat:
    chat = _Chat("s")
    chat.user("look at the barn")
    chat.answered(900, prompt_id="s########0")
    chat.says({"text": "hm", "thought": True}, _text("Let me look."), _call("a"), _call("b"))
    chat.reports("tool_call", call_id="a", duration_ms=1500)
    chat.result("a")
    chat.result("b", status="error")
    chat.says(_text("It is fine."), prompt=1000)
    return chat


def test_qwen_calls_tools_and_counts(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", *_session().lines)
    (row,), report = imported(path, tmp_path / "t.jsonl", text=True)
    assert dict(report.files) == {"qwen-code": 1}
    assert (row.session_id, row.agent, row.model) == ("s", "qwen-code", "sim")
    assert [(s.input_tokens, s.output_tokens) for s in row.steps] == [(900, 20), (1000, 20)]
    first = row.steps[0]
    assert (first.prefix_tokens, first.ttft_s, first.llm_s) == (100, 0.25, 1.8)
    assert (first.gap_s, first.gap_kind) == (3.0, "tool")
    assert [(t.name, t.command, t.duration_s, t.is_error) for t in first.tools] == [
        ("run_shell_command", "ls", 1.5, False),
        ("run_shell_command", "ls", 3.0, True),
    ]
    assert row.token_source["input"] == "recorded"
    assert row.system_tokens is not None
    assert 850 < row.system_tokens < 900
    assert _texts(row, 1)[1:] == ["look at the barn", "Let me look.", "found", "no such thing"]


def test_qwen_thoughts_within_or_beside_the_answer(tmp_path: Path) -> None:
    chat = _Chat("s")
    for total in (130, 140):
        chat.user("think")
        chat.says(_text("so"), prompt=100, output=30)
        usage = chat.lines[-1]["usageMetadata"]
        usage |= {"thoughtsTokenCount": 10, "totalTokenCount": total}
    path = lines(tmp_path / "s.jsonl", *chat.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl")
    assert [(s.output_tokens, s.reasoning_tokens) for s in row.steps] == [(30, 10), (40, 10)]


@pytest.mark.parametrize("has_file", [True, False])
def test_qwen_sub_agents_by_their_files_or_by_reports(has_file: bool, tmp_path: Path) -> None:
    main = _Chat("s")
    main.user("look")
    main.says(_call("task-1", name="agent"))
    told = {"subagent_id": "explorer-task-1", "subagent_name": "explorer"}
    main.answered(700, response_id="r1", **told)
    main.reports("tool_call", response_id="r1", call_id="x", function_name="grep", duration_ms=40)
    main.answered(750, **told)
    main.result("task-1")
    main.says(_text("well"), prompt=950)
    agent = _Chat("s", second=1, agentId="explorer-task-1", agentName="explorer", isSidechain=True)
    agent.user("look there")
    # A sub-agent's text and calls have a line each.
    agent.says(_text("One."), prompt=700)
    agent.says(_call("x", name="grep"), prompt=None)
    agent.result("x", durationMs=40)
    agent.says(_text("seen"), prompt=750)
    folder = tmp_path / "project"
    (folder / "chats").mkdir(parents=True)
    lines(folder / "chats" / "s.jsonl", *main.lines)
    if has_file:
        (folder / "subagents" / "s").mkdir(parents=True)
        lines(folder / "subagents" / "s" / "agent-explorer-task-1.jsonl", *agent.lines)
    rows, report = imported(folder, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    child = "s/explorer-task-1"
    assert [(row.session_id, row.parent, row.agent) for row in rows] == [
        ("s", None, "qwen-code"),
        (child, "s", "qwen-code/explorer"),
    ]
    assert rows[0].steps[0].tools[0].child == child
    assert [s.input_tokens for s in rows[1].steps] == [700, 750]
    assert [(t.name, t.duration_s) for t in rows[1].steps[0].tools] == [("grep", 0.04)]
    assert rows[1].steps[1].ttft_s == 0.25


def test_qwen_fork_begins_with_a_copy(tmp_path: Path) -> None:
    session = _session()
    fork = _Chat("a-fork", second=20)
    for line in session.lines:
        origin = {"sessionId": "s", "messageUuid": line["uuid"]}
        fork.lines.append(line | {"sessionId": "a-fork", "forkedFrom": origin})
    fork.user("and elsewhere?")
    fork.says(_text("too"), prompt=1100)
    folder = tmp_path / "chats"
    folder.mkdir()
    # The fork's name is in front of its origin's.
    lines(folder / "a-fork.jsonl", *fork.lines)
    lines(folder / "s.jsonl", *session.lines)
    rows, report = imported(folder, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [(row.session_id, len(row.steps)) for row in rows] == [("s", 2), ("a-fork", 1)]
    assert _texts(rows[1], 0)[1:] == [*_texts(rows[0], 1)[1:], "It is fine.", "and elsewhere?"]


def test_qwen_compression_is_a_call_and_begins_the_prompt_anew(tmp_path: Path) -> None:
    chat = _session()
    chat.answered(1200, prompt_id="compress-17", response_text="<state_snapshot>")
    kept = {"role": "user", "parts": [_text("look at the barn")]}
    history = [
        {"role": "user", "parts": [_text("summary")]},
        {"role": "model", "parts": [_text("Got it.")]},
        kept,
    ]
    payload = {"compressedHistory": history}
    chat.line("system", subtype="chat_compression", systemPayload=payload)
    chat.user("go on")
    chat.says(_text("going"), prompt=950)
    path = lines(tmp_path / "s.jsonl", *chat.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert [s.input_tokens for s in row.steps] == [900, 1000, 1200, 950]
    assert [s.is_compaction for s in row.steps] == [False, False, False, True]
    assert row.steps[2].llm_s == 0.8
    assert _texts(row, 3)[1:] == ["summary", "Got it.", "look at the barn", "go on"]


def test_qwen_prompt_behind_an_earlier_line(tmp_path: Path) -> None:
    chat = _session()
    before = chat.lines[-1]["uuid"]
    chat.user("one way")
    chat.says(_text("gone wrong"), prompt=1100)
    chat.line("system", parent=before, subtype="rewind", systemPayload={})
    chat.user("another way")
    chat.says(_text("fine"), prompt=1101)
    path = lines(tmp_path / "s.jsonl", *chat.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert _texts(row, 3)[-2:] == ["It is fine.", "another way"]


@pytest.mark.parametrize("share", [0.6, 0.8, 0.97])
def test_qwen_file_that_was_cut_keeps_what_came_before(share: float, tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", *_session().lines)
    data = path.read_bytes()[: int(path.stat().st_size * share)]
    path.write_bytes(data)
    (row,), report = imported(path, tmp_path / "t.jsonl")
    assert [error.line for error in report.errors] == [data.count(b"\n") + 1]
    assert "cut short" in str(report.errors[0])
    assert [len(step.tools) for step in row.steps] == [2]


def test_qwen_line_that_is_broken_is_left_out(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", *_session().lines)
    rows = path.read_text().splitlines()
    rows[3] = rows[3][:-5]
    path.write_text("\n".join(rows) + "\n")
    (row,), report = imported(path, tmp_path / "t.jsonl")
    assert [error.line for error in report.errors] == [4]
    assert len(row.steps) == 2


@pytest.mark.parametrize("order", ["one by one", "in turns"])
def test_qwen_sessions_in_one_file_are_several(order: str, tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    both: list[list[dict[str, Any]]] = []
    for name in ("s", "t"):
        chat = _Chat(name)
        chat.user(f"look at {name}")
        chat.says(_call(f"{name}-a"))
        chat.result(f"{name}-a")
        chat.says(_text("It is fine."), prompt=1000)
        both.append(chat.lines)
        lines(folder / f"{name}.jsonl", *chat.lines)
    turns = [line for pair in zip(*both, strict=True) for line in pair]
    path = lines(tmp_path / "all.jsonl", *(turns if order == "in turns" else both[0] + both[1]))
    apart, _ = imported(folder, tmp_path / "apart.jsonl", text=True)
    rows, report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [(row.session_id, len(row.steps)) for row in rows] == [("s", 2), ("t", 2)]
    assert rows == apart
