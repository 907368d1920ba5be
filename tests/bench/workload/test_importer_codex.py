"""Imports of Codex's rollouts, in small: what the program of several versions writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, lines

_INSTRUCTIONS = {"base_instructions": {"text": "You are a coding agent. " * 40}}


class _Rollout:
    """A thread's lines, a second apart."""

    def __init__(self, thread: str, *, ordinal: int = 0, **meta: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self.total = 0
        self._ordinal = ordinal
        self.line("session_meta", id=thread, source="exec", **_INSTRUCTIONS, **meta)
        self.line("turn_context", model="sim")

    def line(self, kind: str, **payload: Any) -> None:
        number = self._ordinal + len(self.lines)
        stamp = f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}.000Z"
        row = {"timestamp": stamp, "ordinal": number, "type": kind, "payload": payload}
        self.lines.append(row)

    def item(self, kind: str, **more: Any) -> None:
        self.line("response_item", type=kind, **more)

    def user(self, text: str) -> None:
        content = [{"type": "input_text", "text": text}]
        self.item("message", role="user", content=content)

    def says(self, text: str) -> None:
        content = [{"type": "output_text", "text": text}]
        self.item("message", role="assistant", content=content)

    def calls(self, call: str, command: str = "ls -l", name: str = "exec_command") -> None:
        arguments = json.dumps({"cmd": command})
        self.item("function_call", name=name, call_id=call, arguments=arguments)

    def result(self, call: str, output: str = "Process exited with code 0\nOutput:\nx") -> None:
        self.item("function_call_output", call_id=call, output=output)

    def count(self, prompt: int, output: int, *, record: bool = True, reasoning: int = 0) -> None:
        self.total += prompt + output
        usage = {"input_tokens": prompt, "cached_input_tokens": prompt // 2}
        usage |= {"output_tokens": output, "reasoning_output_tokens": reasoning}
        total = {"total_tokens": self.total}
        if record:
            self.line("token_usage_record", usage=usage, thread_token_usage=total)
        self.token_count(usage)

    def token_count(self, usage: dict[str, int]) -> None:
        total = {"total_tokens": self.total}
        info = {"last_token_usage": usage, "total_token_usage": total}
        self.line("event_msg", type="token_count", info=info)


def _texts(row: Any, step: int) -> list[str | None]:
    prompt = row.steps[step].prompt or ()
    return [row.messages[n].text for low, high in prompt for n in range(low, high + 1)]


def _session() -> _Rollout:
    session = _Rollout("main")
    session.user("<environment_context>here</environment_context>")
    session.user("look at the barn")
    session.item("reasoning", summary=[], encrypted_content="abc")
    session.says("Let me look.")
    session.calls("a")
    session.calls("b", "cd x && pytest -q")
    session.count(5000, 40, reasoning=10)
    session.line("event_msg", type="item_completed", item={"id": "b", "exit_code": 1})
    session.result("a")
    session.result("b", "Process exited with code 1\nOutput:\nfailed")
    session.token_count({"input_tokens": 5000, "output_tokens": 40})
    session.says("It is fine.")
    session.count(5200, 8)
    return session


def test_codex_calls_tools_and_counts(tmp_path: Path) -> None:
    path = lines(tmp_path / "rollout-1.jsonl", *_session().lines)
    (row,), report = imported(path, tmp_path / "t.jsonl", text=True)
    assert dict(report.files) == {"codex": 1}
    assert (row.session_id, row.agent, row.model) == ("main", "codex", "sim")
    assert [(s.input_tokens, s.output_tokens) for s in row.steps] == [(5000, 40), (5200, 8)]
    first, last = row.steps
    assert (first.prefix_tokens, first.reasoning_tokens) == (2500, 10)
    assert (first.t_s, first.llm_s, first.gap_s, first.gap_kind) == (0.0, 4.0, 5.0, "tool")
    assert [(t.name, t.command, t.is_error) for t in first.tools] == [
        ("exec_command", "ls", False),
        ("exec_command", "pytest", True),
    ]
    # Results are written together: an event says when each tool was done.
    assert [t.duration_s for t in first.tools] == [5.0, 3.0]
    assert last.tools == ()
    assert row.token_source["input"] == "recorded"
    assert row.messages[0].text == "You are a coding agent. " * 40
    assert row.tool_tokens is not None
    assert 4000 < row.tool_tokens < 5000
    assert _texts(row, 1)[1:] == [
        "<environment_context>here</environment_context>",
        "look at the barn",
        "Let me look.",
        "Process exited with code 0\nOutput:\nx",
        "Process exited with code 1\nOutput:\nfailed",
    ]


@pytest.mark.parametrize("told", ["output", "event", "none"])
def test_codex_sub_agents_are_joined(told: str, tmp_path: Path) -> None:
    spawn = {"subagent": {"thread_spawn": {"parent_thread_id": "main", "agent_role": "explorer"}}}
    child = _Rollout("child", parent_thread_id="main", session_id="main")
    child.lines[0]["payload"]["source"] = spawn
    child.user("count")
    child.says("twelve")
    child.count(900, 3)
    main = _Rollout("main")
    main.user("look")
    main.calls("c", name="spawn_agent")
    main.count(1000, 5)
    if told == "event":
        item = {"id": "c", "tool": "spawn_agent", "receiver_thread_ids": ["child"]}
        main.line("event_msg", type="item_completed", item=item)
    main.result("c", json.dumps({"agent_id": "child"}) if told == "output" else "started")
    main.says("so")
    main.count(1100, 5)
    folder = tmp_path / "sessions" / "2026"
    folder.mkdir(parents=True)
    # The sub-agent's file comes first.
    lines(folder / "rollout-1-child.jsonl", *child.lines)
    lines(folder / "rollout-2-main.jsonl", *main.lines)
    rows, report = imported(folder, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert [(row.session_id, row.parent, row.agent) for row in rows] == [
        ("main", None, "codex"),
        ("child", "main", "codex/explorer"),
    ]
    assert rows[0].steps[0].tools[0].child == (None if told == "none" else "child")


@pytest.mark.parametrize("form", ["named", "copied"])
def test_codex_fork_has_the_answers_of_another_in_its_prompts(form: str, tmp_path: Path) -> None:
    session = _session()
    length = len(session.lines)
    fork = _Rollout("fork", ordinal=length, forked_from_id="main")
    if form == "named":
        base = {"thread_id": "main", "end_ordinal_exclusive": length}
        fork.lines[0]["payload"]["history_base"] = base
    else:
        fork.lines += session.lines
    fork.total = session.total
    fork.user("and now?")
    fork.says("still fine")
    fork.count(5300, 4)
    session.user("go on")
    session.says("going")
    session.count(5300, 5)
    folder = tmp_path / "sessions"
    folder.mkdir()
    lines(folder / "rollout-1-main.jsonl", *session.lines)
    lines(folder / "rollout-2-fork.jsonl", *fork.lines)
    rows, report = imported(folder, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [(row.session_id, len(row.steps)) for row in rows] == [("main", 3), ("fork", 1)]
    assert _texts(rows[1], 0) == [*_texts(rows[0], 1), "It is fine.", "and now?"]


@pytest.mark.parametrize("form", ["history", "message"])
def test_codex_compaction_begins_the_prompt_anew(form: str, tmp_path: Path) -> None:
    session = _session()
    session.line("event_msg", type="task_started")
    session.says("what was seen")
    session.count(2000, 30)
    content = [{"type": "input_text", "text": "look at the barn"}]
    kept = [{"type": "message", "role": "user", "content": content}]
    summary = {"type": "message", "role": "user", "content": [{"text": "summary: seen"}]}
    history = {"replacement_history": [*kept, summary]} if form == "history" else {}
    session.line("compacted", message="summary: seen", **history)
    session.user("go on")
    session.says("going")
    session.count(3000, 4)
    path = lines(tmp_path / "rollout-1.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert [step.is_compaction for step in row.steps] == [False, False, False, True]
    assert row.steps[1].gap_kind == "user"
    environment = ["<environment_context>here</environment_context>"]
    assert _texts(row, 3)[1:] == [
        *(environment if form == "message" else []),
        "look at the barn",
        "summary: seen",
        "go on",
    ]


def test_codex_turns_that_were_taken_back(tmp_path: Path) -> None:
    session = _session()
    session.user("one way")
    session.says("gone wrong")
    session.count(5400, 4)
    session.line("event_msg", type="thread_rolled_back", num_turns=1)
    session.user("another way")
    session.says("fine")
    session.count(5401, 4)
    path = lines(tmp_path / "rollout-1.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert _texts(row, 3)[-2:] == ["It is fine.", "another way"]


def test_codex_counts_that_stand_in_front_of_their_answers(tmp_path: Path) -> None:
    """Versions of 2025 wrote an answer, each call with its result, when its tools had run."""
    session = _Rollout("old")
    session.user("look")
    session.count(1000, 20, record=False)
    for call in ("a", "b"):
        session.calls(call, name="shell")
        output = {"output": "x", "metadata": {"exit_code": 2, "duration_seconds": 7.5}}
        session.result(call, json.dumps(output))
    session.count(1200, 5, record=False)
    session.says("done")
    path = lines(tmp_path / "rollout-1.jsonl", *session.lines)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert [(s.input_tokens, s.output_tokens, len(s.tools)) for s in row.steps] == [
        (1000, 20, 2),
        (1200, 5, 0),
    ]
    assert [(t.duration_s, t.is_error) for t in row.steps[0].tools] == [(7.5, True)] * 2
    assert _texts(row, 1)[1:] == ["look", "", "x", "x"]


@pytest.mark.parametrize("form", ["lines", "document"])
def test_codex_files_without_payloads(form: str, tmp_path: Path) -> None:
    """What the first versions wrote has no times and no counts."""
    session = _session()
    items = [row["payload"] for row in session.lines if row["type"] == "response_item"]
    head = {"id": "first", "timestamp": "2025-05-01T00:00:00Z", "instructions": None}
    if form == "lines":
        path = lines(tmp_path / "rollout-1.jsonl", head, {"record_type": "state"}, *items)
    else:
        path = tmp_path / "rollout-1.json"
        path.write_text(json.dumps({"session": head, "items": items}, indent=1))
    (row,), report = imported(path, tmp_path / "t.jsonl")
    assert dict(report.files) == {"codex": 1}
    assert row.session_id == "first"
    assert [len(step.tools) for step in row.steps] == [2, 0]
    assert row.token_source["input"] == "estimated"
    assert row.steps[0].t_s is None


@pytest.mark.parametrize("share", [0.55, 0.7, 0.97])
def test_codex_file_that_was_cut_keeps_what_came_before(share: float, tmp_path: Path) -> None:
    path = lines(tmp_path / "rollout-1.jsonl", *_session().lines)
    data = path.read_bytes()[: int(path.stat().st_size * share)]
    path.write_bytes(data)
    _, report = imported(path, tmp_path / "t.jsonl")
    assert [error.line for error in report.errors] == [data.count(b"\n") + 1]
    assert "cut short" in str(report.errors[0])
    assert str(path) in str(report.errors[0])
    assert report.calls == (2 if share > 0.9 else 1)


def test_codex_line_that_is_broken_is_left_out(tmp_path: Path) -> None:
    path = lines(tmp_path / "rollout-1.jsonl", *_session().lines)
    rows = path.read_text().splitlines()
    rows[4] = rows[4][:30] + "\x00" + rows[4][30:]
    path.write_text("\n".join(rows) + "\n")
    (row,), report = imported(path, tmp_path / "t.jsonl")
    assert [error.line for error in report.errors] == [5]
    assert len(row.steps) == 2


def test_codex_files_in_which_no_model_answered(tmp_path: Path) -> None:
    session = _Rollout("empty")
    session.user("hello")
    folder = tmp_path / "sessions"
    folder.mkdir()
    path = lines(folder / "rollout-1.jsonl", *session.lines)
    _, report = imported(folder, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    _, report = imported(path, tmp_path / "t2.jsonl")
    assert "no answer of a model" in str(report.errors[0])


def test_codex_threads_in_one_file_are_several(tmp_path: Path) -> None:
    """Also a sub-agent's, whose session stands in the same file."""
    folder = tmp_path / "sessions"
    folder.mkdir()
    both: list[dict[str, Any]] = []
    child = {"subagent": {"thread_spawn": {"parent_thread_id": "s", "agent_role": "explorer"}}}
    for name, meta in (("s", {}), ("t", {}), ("u", {"source": child})):
        thread = _Rollout(name)
        thread.lines[0]["payload"] |= meta
        thread.user(f"look at {name}")
        thread.says(f"Here is {name}.")
        thread.count(900, 20)
        # A session that is resumed says its name again.
        thread.lines.append(thread.lines[0])
        thread.user("go on")
        thread.says("There.")
        thread.count(1000, 20)
        both += thread.lines
        lines(folder / f"rollout-{name}.jsonl", *thread.lines)
    path = lines(tmp_path / "all.jsonl", *both)
    apart, _ = imported(folder, tmp_path / "apart.jsonl", text=True)
    rows, report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    names = [(row.session_id, row.parent, len(row.steps)) for row in rows]
    assert names == [("s", None, 2), ("t", None, 2), ("u", "s", 2)]
    assert sorted(rows, key=lambda row: row.session_id) == sorted(
        apart, key=lambda row: row.session_id
    )
