"""Imports: each format in small, with what is particular to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trace_files import agentic, imported, lines, written

from agentsched_bench.workload.importers import ImportOptions, import_trace
from agentsched_bench.workload.importers.blocks import blocks_of
from agentsched_bench.workload.trace import read_trace

# -- each format in small ---------------------------------------------------------------------


def test_swe_agent_queries_are_the_prompts(tmp_path: Path) -> None:
    """From 1.1 on a step has the very messages that were sent; elided observations show as cuts."""

    def message(role: str, text: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": text, **more}

    task = [message("system", "be good"), message("user", "fix it " * 50)]
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    first = message("assistant", "look", tool_calls=[call])
    long = message("tool", "line " * 500, tool_call_ids=["c1"])
    short = message("tool", "Old environment output: (500 lines omitted)", tool_call_ids=["c1"])
    second = message("assistant", "again")
    steps = [
        {"query": task, "response": "look", "action": "ls -la", "observation": "line " * 500}
        | {"execution_time": 0.5, "tool_calls": [call]},
        {"query": [*task, first, long], "response": "again", "action": "cat x", "observation": "x"}
        | {"execution_time": 0.25},
        {"query": [*task, first, short, second], "response": "", "thought": "end", "action": ""},
    ]
    path = written(tmp_path / "repo__issue-1.traj", {"trajectory": steps, "environment": "e"})
    (row,), report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert row.session_id == "repo__issue-1"
    assert [step.gap_s for step in row.steps] == [0.5, 0.25, None]
    assert row.steps[0].tools[0].command == "ls"
    assert row.steps[1].new_input_tokens is not None
    assert row.steps[2].new_input_tokens is None
    assert row.steps[2].input_tokens < row.steps[1].input_tokens
    assert (row.steps[2].prefix_tokens or 0) < row.steps[1].input_tokens


def test_mini_swe_agent_2_tells_calls_from_tools(tmp_path: Path) -> None:
    def call(number: int, command: str) -> dict[str, Any]:
        function = {"name": "bash", "arguments": json.dumps({"command": command})}
        return {"id": f"c{number}", "type": "function", "function": function}

    usage = {"prompt_tokens": 100, "completion_tokens": 30}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "t", "extra": {"timestamp": 1000.0}},
        {
            "role": "assistant",
            "content": "two at once",
            "tool_calls": [call(1, "cd /x && pytest -q"), call(2, "FOO=1 ls")],
            "extra": {"timestamp": 1002.5, "response": {"usage": usage, "model": "m"}},
        },
        {"role": "tool", "tool_call_id": "c1", "content": "ok", "extra": {"timestamp": 1003.0}},
        {"role": "tool", "tool_call_id": "c2", "content": "no", "extra": {"timestamp": 1003.25}},
        {
            "role": "assistant",
            "content": "done",
            "extra": {
                "timestamp": 1004.0,
                "response": {"usage": {"prompt_tokens": 150, "completion_tokens": 5}},
            },
        },
        {"role": "exit", "content": "", "extra": {"exit_status": "Submitted"}},
    ]
    value = {"trajectory_format": "mini-swe-agent-1.1", "messages": messages}
    value["info"] = {"mini_version": "2.4.6", "exit_status": "Submitted"}
    (row,), _ = imported(written(tmp_path / "x.traj.json", value), tmp_path / "t.jsonl", text=True)
    one, two = row.steps
    assert (one.llm_s, one.gap_s, two.llm_s) == (2.5, 0.75, 0.75)
    assert [(t.command, t.duration_s) for t in one.tools] == [("pytest", 0.5), ("ls", 0.75)]
    assert (two.input_tokens, two.new_input_tokens) == (150, 20)
    assert row.exit_status == "Submitted"
    assert [m.call_id for m in row.messages if m.role == "tool"] == ["c1", "c2"]


def test_mini_swe_agent_takes_items_of_the_responses_api(tmp_path: Path) -> None:
    response = {
        "object": "response",
        "model": "gpt",
        "created_at": 1000,
        "completed_at": 1012,
        "usage": {"input_tokens": 100, "output_tokens": 40}
        | {"output_tokens_details": {"reasoning_tokens": 30}},
        "output": [
            {
                "type": "function_call",
                "call_id": "c",
                "name": "bash",
                "arguments": '{"command":"ls"}',
            }
        ],
    }
    result = {"type": "function_call_output", "call_id": "c", "output": "a b"}
    messages = [{"role": "user", "content": "t"}, response, result, response]
    path = written(tmp_path / "x.json", {"messages": messages, "info": {"mini_version": "2"}})
    (row,), _ = imported(path, tmp_path / "t.jsonl")
    assert row.steps[0].reasoning_tokens == 30
    assert row.steps[0].llm_s == 12.0
    assert row.steps[0].tools[0].command == "ls"
    assert row.steps[1].new_input_tokens is None


def _openhands(condenses: bool) -> dict[str, Any]:
    def response(name: str, prompt: int) -> dict[str, Any]:
        calls = [
            {"id": f"{name}-{i}", "function": {"name": "execute_bash", "arguments": "{}"}}
            for i in (1, 2)
        ]
        message = {"content": "thinking", "tool_calls": calls}
        usage = {"prompt_tokens": prompt, "completion_tokens": 20}
        return {"id": name, "choices": [{"message": message}], "usage": usage}

    def action(number: int, name: str, place: int, at: int, prompt: int) -> dict[str, Any]:
        metadata = {
            "function_name": "execute_bash",
            "tool_call_id": f"{name}-{place}",
            "model_response": response(name, prompt),
        }
        return {
            "id": number,
            "source": "agent",
            "action": "run",
            "timestamp": f"2025-01-01T00:00:{at:02d}",
            "args": {"command": "ls"},
            "tool_call_metadata": metadata,
        }

    def observation(number: int, cause: int, at: int) -> dict[str, Any]:
        return {
            "id": number,
            "source": "agent",
            "observation": "run",
            "cause": cause,
            "timestamp": f"2025-01-01T00:00:{at:02d}",
            "content": "files",
        }

    history = [
        {"id": 0, "source": "agent", "action": "system", "args": {"content": "sys"}},
        {"id": 1, "source": "user", "action": "message", "args": {"content": "task"}}
        | {"timestamp": "2025-01-01T00:00:00"},
        action(2, "r1", 1, 5, 300),
        action(3, "r1", 2, 5, 300),
        observation(4, 2, 7),
        observation(5, 3, 9),
    ]
    if condenses:
        condensed = {"summary": "what was", "forgotten_event_ids": [2, 3, 4, 5]}
        history.append({"id": 6, "source": "agent", "action": "condensation", "args": condensed})
    history.append(action(7, "r2", 1, 12, 200 if condenses else 400))
    return {"instance_id": "i", "history": history, "metadata": {"llm_config": {"model": "m"}}}


@pytest.mark.parametrize("condenses", [False, True])
def test_openhands_parallel_calls_and_condensation(condenses: bool, tmp_path: Path) -> None:
    path = lines(tmp_path / "output.jsonl", _openhands(condenses))
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    one, two = row.steps
    assert [tool.duration_s for tool in one.tools] == [2.0, 4.0]
    assert (one.llm_s, one.gap_s) == (5.0, 4.0)
    assert two.is_compaction == condenses
    assert (two.new_input_tokens is None) == condenses
    assert (two.prompt == ((0, 1), (5, 5))) == condenses


def _claude_lines() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    def at(second: float) -> str:
        return f"2026-01-01T00:{int(second) // 60:02d}:{second % 60:06.3f}Z"

    def user(second: float, content: Any, **more: Any) -> dict[str, Any]:
        message = {"role": "user", "content": content}
        return {"type": "user", "timestamp": at(second), "message": message, **more}

    def assistant(
        second: float, name: str, block: dict[str, Any], *, fresh: int, cached: int, out: int
    ) -> dict[str, Any]:
        usage = {"input_tokens": fresh, "cache_creation_input_tokens": 10}
        usage |= {"cache_read_input_tokens": cached, "output_tokens": out}
        message = {"id": name, "role": "assistant", "model": "claude-x", "content": [block]}
        return {"type": "assistant", "timestamp": at(second), "message": message | {"usage": usage}}

    def use(call: str, name: str, **given: Any) -> dict[str, Any]:
        return {"type": "tool_use", "id": call, "name": name, "input": given}

    def result(call: str, text: str) -> list[dict[str, Any]]:
        return [{"type": "tool_result", "tool_use_id": call, "content": text}]

    text = {"type": "text", "text": "let me see"}
    main = [
        {"type": "summary", "summary": "x", "leafUuid": "y"},
        user(0, "fix the bug"),
        assistant(2, "m1", text, fresh=5, cached=15000, out=1),
        assistant(3, "m1", use("t1", "Bash", command="git status"), fresh=5, cached=15000, out=1),
        assistant(
            4, "m1", use("t2", "Task", subagent_type="Explore"), fresh=5, cached=15000, out=60
        ),
        user(6, result("t1", "clean")),
        user(30, result("t2", "found"), toolUseResult={"agentId": "a1", "status": "completed"}),
        assistant(33, "m2", text, fresh=3, cached=15100, out=40),
        user(93, "now again"),
        {"type": "system", "subtype": "compact_boundary", "timestamp": at(94)},
        user(95, "This session is being continued", isCompactSummary=True),
        assistant(99, "m3", text, fresh=3, cached=12000, out=20),
    ]
    side = [
        user(5, "explore", isSidechain=True, agentId="a1"),
        assistant(9, "s1", use("t9", "Grep", pattern="x"), fresh=2, cached=0, out=30)
        | {"isSidechain": True, "agentId": "a1"},
        user(10, result("t9", "hit"), isSidechain=True, agentId="a1"),
        assistant(15, "s2", text, fresh=2, cached=900, out=30)
        | {"isSidechain": True, "agentId": "a1"},
    ]
    for number, line in enumerate([*main, *side]):
        line |= {"sessionId": "sess", "uuid": f"u{number}"}
    return main, side


@pytest.mark.parametrize("layout", ["folder", "beside", "mixed"])
def test_claude_code_sub_agents_are_joined_wherever_they_are(layout: str, tmp_path: Path) -> None:
    main, side = _claude_lines()
    home = tmp_path / "projects"
    (home / "sess" / "subagents").mkdir(parents=True)
    if layout == "mixed":
        lines(home / "sess.jsonl", *main[:5], *side, *main[5:])
    else:
        lines(home / "sess.jsonl", *main)
        folder = home / "sess" / "subagents" if layout == "folder" else home
        lines(folder / "agent-a1.jsonl", *side)
    rows, report = imported(home, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    parent, child = rows
    assert (child.parent, child.parent_t_s, child.agent) == ("sess", 5.0, "claude-code/Explore")
    assert parent.steps[0].tools[1].child == child.session_id
    assert [t.duration_s for t in parent.steps[0].tools] == [3.0, 26.0]
    assert parent.steps[0].tools[0].command == "git"
    assert parent.steps[0].input_tokens == 15015
    assert parent.steps[0].output_tokens == 60
    assert (parent.steps[0].llm_s, parent.steps[0].gap_s) == (4.0, 26.0)
    assert [step.gap_kind for step in parent.steps] == ["tool", "user", "unknown"]
    assert [step.is_compaction for step in parent.steps] == [False, False, True]
    assert parent.messages[0].role == "system"
    assert parent.messages[0].text is None
    assert (parent.messages[0].tokens or 0) > 14_900


@pytest.mark.parametrize("relative", [True, False])
def test_kv_cache_tester_sub_agents_in_both_conventions(relative: bool, tmp_path: Path) -> None:
    def call(t: float, prompt: int, blocks: list[int]) -> dict[str, Any]:
        return {"t": t, "type": "n", "model": "m", "in": prompt, "out": 10, "hash_ids": blocks}

    inner = [call(0.5 if relative else 20.5, 64, [9]), call(3 if relative else 23, 128, [9, 10])]
    marker = {"t": 20.0, "type": "subagent", "agent_id": "x", "subagent_type": "Explore"}
    requests = [
        call(10.0, 128, [1, 2]) | {"api_time": 5.0, "stop": "tool_use"},
        marker | {"requests": inner},
        call(40.0, 256, [1, 2, 3, 4]) | {"think_time": 25.0, "input_types": ["tool_result"]},
    ]
    value = {"id": "tr", "block_size": 64, "hash_id_scope": "local", "requests": requests}
    rows, _ = imported(written(tmp_path / "x.json", value), tmp_path / "t.jsonl")
    parent, child = rows
    assert parent.steps[0].gap_s == 25.0
    assert parent.steps[0].tools[0].name == "(tools)"
    assert (child.parent, child.parent_t_s, child.agent) == ("tr", 10.5, "claude-code/Explore")
    assert child.steps[1].t_s == 2.5
    assert parent.hash_scope == child.hash_scope == "tr"
    assert parent.steps[1].hash_ids == ((1, 4),)


def test_kv_cache_tester_sub_agents_of_one_without_calls_are_kept(tmp_path: Path) -> None:
    def marker(own: str, at: float, *inside: dict[str, Any]) -> dict[str, Any]:
        return {"t": at, "type": "subagent", "agent_id": own, "requests": list(inside)}

    call = {"type": "n", "in": 128, "out": 10, "hash_ids": [1, 2]}
    inner = marker("y", 25.0, call | {"t": 26.0})
    requests = [call | {"t": 10.0}, marker("x", 20.0, inner), call | {"t": 40.0}]
    value = {"id": "tr", "block_size": 64, "requests": requests}
    rows, _ = imported(written(tmp_path / "x.json", value), tmp_path / "t.jsonl")
    assert [(row.session_id, row.parent, row.parent_t_s) for row in rows] == [
        ("tr", None, None),
        ("tr/y", "tr", 16.0),
    ]


def test_kv_cache_tester_sessions_of_one_name_share_no_local_blocks(tmp_path: Path) -> None:
    call = {"t": 0, "type": "n", "in": 128, "out": 10, "hash_ids": [1, 2]}
    marker = {"t": 1, "type": "subagent", "agent_id": "x", "requests": [call]}
    value = {"block_size": 64, "hash_id_scope": "local", "requests": [call, marker]}
    # Neither a session's id nor the line without one is unlike another file's.
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "named.json", value | {"id": "tr"})
    nameless = lines(tmp_path / "nameless.jsonl", value, value)
    rows, _ = imported([tmp_path / "one", tmp_path / "two", nameless], tmp_path / "t.jsonl")
    mains = [row for row in rows if row.parent is None]
    assert len({row.hash_scope for row in mains}) == len(mains) == 4
    scopes = {row.session_id: row.hash_scope for row in mains}
    assert [row.hash_scope for row in rows] == [scopes[r.parent or r.session_id] for r in rows]


@pytest.mark.parametrize("named", ["64-bit", "hex", "decimal", "nothing"])
def test_kv_cache_tester_blocks_are_hashes_of_any_kind(named: str, tmp_path: Path) -> None:
    def name(block: int) -> object:
        return {
            "64-bit": block * 2_654_435_761 * 97 % 2**63,
            # Digits alone are no number where others have letters.
            "hex": f"{block:04x}",
            "decimal": str(block),
        }[named]

    def session(own: str, *prompts: list[int]) -> Path:
        calls: list[dict[str, Any]] = []
        for prompt in prompts:
            call = {"t": len(calls), "type": "n", "in": len(prompt) * 64, "out": 10}
            call |= {} if named == "nothing" else {"hash_ids": [name(block) for block in prompt]}
            calls.append(call)
        value = {"id": own, "block_size": 64, "hash_id_scope": "global", "requests": calls}
        return written(tmp_path / f"{own}.json", value)

    paths = [session("a", [16, 10, 100], [16, 10, 200], [5]), session("b", [16, 9])]
    (one, two), report = imported(paths, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    if named == "nothing":
        assert [step.prefix_tokens for step in one.steps] == [None, None, None]
        assert [step.hash_ids for step in one.steps] == [None, None, None]
        return
    assert [step.prefix_tokens for step in one.steps] == [None, 128, 0]
    assert one.hash_scope is two.hash_scope is None
    first, last = ([n for run in row.steps[0].hash_ids or () for n in run] for row in (one, two))
    assert first[0] == last[0]
    assert [len(list(blocks_of(step.hash_ids or ()))) for step in one.steps] == [3, 3, 1]


@pytest.mark.parametrize("form", ["mooncake", "agentic-mooncake"])
def test_blocks_are_local_to_their_file_also_where_two_have_one_name(
    form: str, tmp_path: Path
) -> None:
    row: dict[str, Any] = {"input_length": 1200, "output_length": 5, "timestamp": 0}
    if form == "agentic-mooncake":
        row |= {"request_id": "r", "wait_for": []}
    paths: list[Path] = []
    for number in (1, 2):
        (tmp_path / f"run{number}").mkdir()
        paths.append(tmp_path / f"run{number}" / "trace.jsonl")
        lines(paths[-1], row | {"hash_ids": [f"{number}{n}" for n in "abc"]})
    other = lines(tmp_path / "other.jsonl", row | {"hash_ids": ["3a", "3b", "3c"]})
    for source in (None, "all"):
        out, options = tmp_path / "t.jsonl", ImportOptions(source=source)
        report = import_trace([*paths, other], out, format_name=form, options=options)
        assert (report.recordings, report.errors_count) == (3, 0)
        rows = list(read_trace(out))
        assert [row.steps[0].hash_ids for row in rows] == [rows[0].steps[0].hash_ids] * 3
        assert len({row.hash_scope or row.source for row in rows}) == 3


def test_mooncake_turns_are_joined_and_shared_beginnings_are_not(tmp_path: Path) -> None:
    def row(at: int, prompt: int, blocks: list[int]) -> dict[str, Any]:
        return {"timestamp": at, "input_length": prompt, "output_length": 100, "hash_ids": blocks}

    path = lines(
        tmp_path / "m.jsonl",
        row(0, 1100, [0, 1, 2]),
        row(500, 1100, [0, 3, 4]),
        row(9000, 2000, [0, 1, 5, 6]),
        row(9500, 1500, [0, 7, 8]),
    )
    rows, _ = imported(path, tmp_path / "t.jsonl")
    assert sorted(len(found.steps) for found in rows) == [1, 1, 2]
    joined = next(found for found in rows if len(found.steps) == 2)
    assert joined.steps[1].t_s == 9.0
    assert joined.steps[1].new_input_tokens == 800
    assert joined.steps[0].cycle_s == 9.0


def test_agentic_mooncake_keeps_spawns_joins_and_tools(tmp_path: Path) -> None:
    rows, _ = imported(lines(tmp_path / "a.jsonl", *agentic()), tmp_path / "t.jsonl")
    main, child = rows
    assert (child.parent, child.parent_step, child.join_step) == ("main", 0, 0)
    assert main.steps[0].gap_s == 1.5
    assert [(t.name, t.duration_s) for t in main.steps[0].tools] == [("bash", 1.5)]
    assert main.steps[1].new_input_tokens == 162
    assert child.steps[1].is_compaction
    assert main.steps[1].hash_ids == ((0, 4),)


def test_agentic_mooncake_2_has_a_header_and_dependencies(tmp_path: Path) -> None:
    def row(name: str, session: str, prompt: int, *waits: tuple[str, float, str]) -> dict[str, Any]:
        return {
            "request_id": name,
            "play_id": "p",
            "session_id": session,
            "model": "m",
            "input_length": prompt,
            "output_length": 10,
            "hash_ids": [1],
            "not_before_ms": 0.0,
            "dependencies": [
                {"request_id": r, "trigger": "completion", "delay_ms": d, "relation": k}
                for r, d, k in waits
            ],
        }

    header = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 32}
    path = lines(
        tmp_path / "a.jsonl",
        header | {"hash_id_scope": "local", "source": {"format": "x", "digest": ""}},
        row("r1", "main", 20),
        row("c1", "kid", 30, ("r1", 0.0, "spawn")),
        row("r2", "main", 60, ("r1", 750.0, "sequence"), ("c1", 0.0, "join")),
    )
    rows, _ = imported(path, tmp_path / "t.jsonl")
    main, child = rows
    assert main.block_size == 32
    assert main.steps[0].gap_s == 0.75
    assert (child.parent_step, child.join_step) == (0, 0)


def _agentic_2(
    name: str, session: str, prompt: int, *waits: tuple[str, float, str], **more: Any
) -> dict[str, Any]:
    """A row of agentic Mooncake 2 that awaits the ends of others."""
    base: dict[str, Any] = {"request_id": name, "play_id": "p", "session_id": session, "model": "m"}
    base |= {"input_length": prompt, "output_length": 10, "hash_ids": [1], "not_before_ms": 0.0}
    base["dependencies"] = [
        {"request_id": r, "trigger": "completion", "delay_ms": d, "relation": k}
        for r, d, k in waits
    ]
    return base | more


_AGENTIC_2: dict[str, Any] = {
    "schema": "dynamo.agentic_mooncake",
    "version": 2,
    "block_size": 64,
    "hash_id_scope": "local",
    "source": {"format": "x", "digest": ""},
}


def test_agentic_mooncake_2_may_have_its_rows_in_any_order(tmp_path: Path) -> None:
    """Dynamo sorts them by name, ten before two."""
    name = "w:request:outer:{}".format
    rows = []
    for n in range(12):
        waits = [(name(n - 1), 100.0 * n, "sequence")] if n else []
        more = {"hash_ids": list(range(n + 1)), "recorded_api_time_ms": 250.0 * n}
        rows.append(_agentic_2(name(n), "w:session:root", 64 * (n + 1), *waits, **more))
    # A worker that the third of them started, beside the next two.
    rows.append(_agentic_2("w:request:outer:5:inner", "kid", 64, (name(2), 0.0, "spawn")))
    rows[5]["dependencies"] += [
        {"request_id": rows[-1]["request_id"], "trigger": "completion", "relation": "join"}
    ]
    rows.sort(key=lambda row: row["request_id"])
    assert rows[2]["request_id"] == name(10)
    path = lines(tmp_path / "a.jsonl", _AGENTIC_2, *rows)
    (found, kid), _ = imported(path, tmp_path / "t.jsonl")
    assert [step.input_tokens for step in found.steps] == [64 * (n + 1) for n in range(12)]
    assert [step.gap_s for step in found.steps] == [*(n / 10 for n in range(1, 12)), None]
    assert [step.llm_s for step in found.steps] == [n / 4 for n in range(12)]
    assert [step.prefix_tokens for step in found.steps[1:]] == [64 * n for n in range(1, 12)]
    assert (kid.parent_step, kid.join_step) == (2, 4)


def test_agentic_mooncake_2_goes_on_from_rows_that_stand_behind(tmp_path: Path) -> None:
    """A row without a session is of the one that it awaits; a circle ends somewhere."""
    rows = [
        _agentic_2("b", "", 200, ("a", 0.0, "sequence")),
        _agentic_2("a", "", 100),
        _agentic_2("x", "round", 10, ("y", 0.0, "sequence")),
        _agentic_2("y", "round", 20, ("x", 0.0, "sequence"), ("y", 0.0, "sequence")),
    ]
    found, report = imported(lines(tmp_path / "a.jsonl", _AGENTIC_2, *rows), tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert [[step.input_tokens for step in row.steps] for row in found] == [[100, 200], [20, 10]]


@pytest.mark.parametrize("joins", [True, False])
def test_agentic_mooncake_2_waits_for_joins_and_not_for_barriers(
    joins: bool, tmp_path: Path
) -> None:
    """A replay barrier says that one was over when the other began, not that it was awaited."""
    last = [("c3", 0.0, "join")] if joins else [("c3", 0.0, "replay_barrier")]
    path = lines(
        tmp_path / "a.jsonl",
        _AGENTIC_2,
        _agentic_2("other", "other", 10),
        _agentic_2("r1", "main", 20),
        _agentic_2("c1", "kid", 30, ("other", 0.0, "replay_barrier"), ("r1", 0.0, "spawn")),
        _agentic_2("c2", "kid", 40, ("c1", 0.0, "sequence")),
        _agentic_2("c3", "kid", 50, ("c2", 0.0, "sequence")),
        _agentic_2("r2", "main", 60, ("r1", 0.0, "sequence"), ("c1", 0.0, "replay_barrier")),
        _agentic_2("r3", "main", 90, ("r2", 0.0, "sequence"), *last),
    )
    rows, _ = imported(path, tmp_path / "t.jsonl")
    kid = next(row for row in rows if row.session_id == "kid")
    assert (kid.parent, kid.parent_step) == ("main", 0)
    assert kid.join_step == (1 if joins else None)


@pytest.mark.parametrize("made_by", ["agentsched", "weka"])
def test_agentic_mooncake_2_keeps_plays_apart(made_by: str, tmp_path: Path) -> None:
    """They may call their conversations alike, and their blocks: ours are the same in all plays."""
    rows = []
    for play in ("a", "b"):
        rows.append(_agentic_2(f"{play}-r1", "main", 64, play_id=play))
        waits = (f"{play}-r1", 0.0, "spawn")
        rows.append(_agentic_2(f"{play}-c1", "left", 64, waits, play_id=play))
    rows.append(_agentic_2("b-x", "alone", 64, play_id="b"))
    header = _AGENTIC_2 | {"source": {"format": made_by, "digest": ""}}
    found, _ = imported(lines(tmp_path / "a.jsonl", header, *rows), tmp_path / "t.jsonl")
    assert [(row.session_id, row.parent, len(row.steps)) for row in found] == [
        ("a/main", None, 1),
        ("a/left", "a/main", 1),
        ("b/main", None, 1),
        ("b/left", "b/main", 1),
        ("alone", None, 1),
    ]
    scopes = [row.hash_scope for row in found]
    assert scopes == [scopes[0]] * 2 + [scopes[2]] * 3
    assert (scopes[0] == scopes[2]) == (made_by == "agentsched")


def _span(own: str, parent: str, begun: float, ended: float, **facts: Any) -> dict[str, Any]:
    def value(given: Any) -> dict[str, Any]:
        return {"intValue": str(given)} if isinstance(given, int) else {"stringValue": given}

    attributes = [{"key": k.replace("__", "."), "value": value(v)} for k, v in facts.items()]
    return {
        "traceId": "t1",
        "spanId": own,
        "parentSpanId": parent,
        "startTimeUnixNano": str(int(begun * 1e9)),
        "endTimeUnixNano": str(int(ended * 1e9)),
        "attributes": attributes,
    }


def test_otel_agents_tools_and_sub_agents_in_any_order(tmp_path: Path) -> None:
    def chat(own: str, parent: str, begun: float, ended: float, prompt: int) -> dict[str, Any]:
        return _span(
            own,
            parent,
            begun,
            ended,
            gen_ai__operation__name="chat",
            gen_ai__request__model="m",
            gen_ai__usage__input_tokens=prompt,
            gen_ai__usage__output_tokens=10,
        )

    agent = {"gen_ai__operation__name": "invoke_agent", "gen_ai__agent__name": "boss"}
    tool = {"gen_ai__operation__name": "execute_tool", "gen_ai__tool__name": "task"}
    spans = [
        chat("c2", "a", 14, 15, 200),
        _span("x", "a", 11, 14, **tool),
        _span("b", "x", 11, 13.5, **(agent | {"gen_ai__agent__name": "kid"})),
        chat("k1", "b", 11.5, 12, 50),
        chat("c1", "a", 10, 11, 100),
        _span("a", "", 10, 15, **agent),
    ]
    group = {"resource": {"attributes": []}, "scopeSpans": [{"spans": spans}]}
    path = written(tmp_path / "spans.json", {"resourceSpans": [group]})
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    main, child = rows
    assert [step.input_tokens for step in main.steps] == [100, 200]
    assert [(t.name, t.duration_s, t.child) for t in main.steps[0].tools] == [
        ("task", 3.0, child.session_id)
    ]
    assert (child.parent, child.parent_t_s, child.agent) == (main.session_id, 1.5, "kid")
    assert main.steps[0].gap_s == 3.0
