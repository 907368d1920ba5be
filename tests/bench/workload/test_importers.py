"""Imports: every raw file, every format in small, and what is kept of broken ones."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentsched.model import ConfigError
from agentsched_bench.workload.importers import (
    IMPORTERS,
    ImportOptions,
    ImportReport,
    detect,
    import_trace,
    importer,
)
from agentsched_bench.workload.importers.files import InputFile, salvage
from agentsched_bench.workload.trace import (
    Recording,
    TraceError,
    read_header,
    read_trace,
    sha256_of,
    write_trace,
)
from agentsched_bench.workload.validate import validate_trace


def imported(
    path: Path | list[Path], out: Path, *, text: bool = False, format_name: str = "auto"
) -> tuple[list[Recording], ImportReport]:
    paths = path if isinstance(path, list) else [path]
    report = import_trace(
        paths, out, format_name=format_name, options=ImportOptions(keeps_text=text)
    )
    if not report.recordings:
        return [], report
    checked = validate_trace(out)
    assert (checked.errors, checked.warnings) == (0, 0), checked.findings
    return list(read_trace(out)), report


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


# -- every raw file ---------------------------------------------------------------------------

RAW = {
    "swe-agent-ctf.traj": ("swe-agent", 12),
    "swe-agent-function-calling.traj": ("swe-agent", 13),
    "swe-agent-gpt4.traj": ("swe-agent", 12),
    "mini-swe-agent-matplotlib__matplotlib-26291.traj.json": ("mini-swe-agent", 34),
    "mini-swe-agent-scikit-learn__scikit-learn-25232.traj.json": ("mini-swe-agent", 46),
    "mini-swe-agent-sympy__sympy-11618.traj.json": ("mini-swe-agent", 44),
    "openhands-output.jsonl": ("openhands", 23),
    "kv-cache-tester-0107.json": ("kv-cache-tester", 4),
    "kv-cache-tester-0355.json": ("kv-cache-tester", 24),
    "kv-cache-tester-0590.json": ("kv-cache-tester", 8),
    "mooncake-conversation-head.jsonl": ("mooncake", 300),
}


@pytest.mark.traces
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", RAW)
def test_raw_files_are_known_and_read_whole(
    name: str, text: bool, traces: Path, tmp_path: Path
) -> None:
    rows, report = imported(traces / "raw" / name, tmp_path / "t.jsonl", text=text)
    assert (*report.files, report.calls) == RAW[name]
    assert report.errors_count == 0
    keeps = text and RAW[name][0] in ("swe-agent", "mini-swe-agent", "openhands")
    assert all(bool(row.messages) == keeps for row in rows)


@pytest.mark.traces
def test_an_import_agrees_with_the_recorded_numbers(traces: Path, tmp_path: Path) -> None:
    """The traces hold the same sessions, counted by others."""
    known = {
        row.session_id: row
        for name in ("weka-claude-code", "miniswe-gemini3-swebench-verified")
        for row in read_trace(traces / f"{name}.jsonl.gz")
    }
    raw = [p for p in (traces / "raw").iterdir() if p.name.startswith(("kv-", "mini-"))]
    rows, _ = imported(raw, tmp_path / "t.jsonl")
    compared = 0
    for row in rows:
        other = known.get(row.session_id)
        if other is None:
            continue
        compared += 1
        for mine, theirs in zip(row.steps, other.steps, strict=True):
            for field in ("input_tokens", "output_tokens", "t_s", "llm_s", "gap_s", "cycle_s"):
                assert getattr(mine, field) == getattr(theirs, field), (row.session_id, field)
            assert mine.hash_ids == theirs.hash_ids
            assert [tool.name for tool in mine.tools] == [tool.name for tool in theirs.tools]
    assert compared >= 4


@pytest.mark.traces
@pytest.mark.parametrize("share", [0.35, 0.8, 0.99])
@pytest.mark.parametrize("name", RAW)
def test_a_raw_file_that_was_cut_keeps_what_came_before(
    name: str, share: float, traces: Path, tmp_path: Path
) -> None:
    data = (traces / "raw" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert report.errors_count >= 1
    assert report.errors[0].line is not None
    assert str(path) in str(report.errors[0])
    if share > 0.9 or (name != "openhands-output.jsonl" and share > 0.7):
        assert rows
        assert report.calls <= RAW[name][1]


# -- broken input -----------------------------------------------------------------------------


def test_a_bad_line_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    good = json.dumps(row)
    path.write_text(f"{good}\nnot json\n{good}\n" + '{"timestamp": 3}\n' + good[:20])
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert len(rows) == 2
    assert [error.line for error in report.errors] == [2, 4, 5]
    assert "not JSON" in str(report.errors[0])
    assert "no input_length" in str(report.errors[1])
    assert "cut short" in str(report.errors[2])


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_compression_is_known_by_content_and_its_end_is_missed(pack: Any, tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    data = pack("".join(json.dumps(row | {"timestamp": i}) + "\n" for i in range(3000)).encode())
    path = tmp_path / "oddly-named.bin"
    path.write_bytes(data)
    whole, report = imported(path, tmp_path / "t.jsonl")
    assert report.calls == 3000
    assert whole
    path.write_bytes(data[: len(data) // 2])
    _, report = imported(path, tmp_path / "t2.jsonl")
    assert report.errors_count == 1


def test_zstandard_is_read_and_written(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    rows, _ = imported(lines(tmp_path / "a.jsonl", *_agentic()), tmp_path / "t.jsonl.zst")
    assert list(read_trace(tmp_path / "t.jsonl.zst")) == rows
    packed = tmp_path / "b.jsonl.zst"
    packed.write_bytes(zstandard.compress((tmp_path / "a.jsonl").read_bytes()))
    again, _ = imported(packed, tmp_path / "t2.jsonl")
    assert [row.steps for row in again] == [row.steps for row in rows]


def test_odd_texts_are_kept(tmp_path: Path) -> None:
    """Half surrogates, NaN, a byte order mark, bytes that are no UTF-8."""
    path = tmp_path / "odd.json"
    body = (
        '{"messages": [{"role": "user", "content": "\\ud83d half"}, '
        '{"role": "assistant", "content": "caf\xe9", "cost": NaN}]}'
    )
    path.write_bytes(b"\xef\xbb\xbf" + body.encode("latin-1"))
    rows, report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert rows[0].messages[0].text == "? half"


def test_a_folder_is_looked_through_and_strangers_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "deep"
    folder.mkdir(parents=True)
    lines(folder / "a.jsonl", *_agentic())
    written(folder / "preds.json", {"x": {"model_patch": "diff"}})
    (folder / "notes.txt").write_text("hello")
    _, report = imported(tmp_path / "runs", tmp_path / "t.jsonl")
    assert dict(report.files) == {"agentic-mooncake": 1}
    assert (report.skipped, report.errors_count) == (1, 0)
    _, report = imported(folder / "preds.json", tmp_path / "t.jsonl")
    assert "no format that is known" in str(report.errors[0])


def test_wrong_use_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'nope'"):
        importer("nope")
    with pytest.raises(ConfigError, match="no such file"):
        import_trace([tmp_path / "none"], tmp_path / "t.jsonl")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="nothing to import"):
        import_trace([empty], tmp_path / "t.jsonl")
    assert not (tmp_path / "t.jsonl").exists()


def test_the_header_says_how_it_came_about(tmp_path: Path) -> None:
    imported(lines(tmp_path / "a.jsonl", *_agentic()), tmp_path / "t.jsonl")
    header = read_header(tmp_path / "t.jsonl")
    assert header is not None
    assert header.imported is not None
    assert header.imported["formats"] == {"agentic-mooncake": 1}
    assert "agentic-mooncake" in header.imported["token_sources"]


_KEYS = [
    "messages",
    "role",
    "content",
    "history",
    "trajectory",
    "requests",
    "hash_ids",
    "in",
    "action",
    "observation",
    "source",
    "usage",
    "timestamp",
    "input_length",
    "type",
    "resourceSpans",
    "scopeSpans",
    "spans",
    "spanId",
    "attributes",
    "key",
    "value",
    "message",
    "uuid",
    "sessionId",
    "isSidechain",
    "tool_calls",
    "id",
    "args",
    "wait_for",
    "request_id",
    "output_length",
    "startTimeUnixNano",
    "out",
    "steps",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(value=json_values, known=st.sampled_from([one.name for one in IMPORTERS]))
def test_no_json_breaks_an_importer(value: Any, known: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", value)
    report = import_trace([path], tmp_path / "t.jsonl", format_name=known)
    if report.recordings:
        assert validate_trace(tmp_path / "t.jsonl").errors == 0


@settings(max_examples=60, deadline=None)
@given(value=json_values, share=st.floats(0, 1))
def test_what_is_salvaged_is_a_part_of_what_was(value: Any, share: float) -> None:
    data = json.dumps(value).encode()
    cut = data[: int(len(data) * share)]
    kept = salvage(cut) if cut else None
    if isinstance(kept, list):
        assert len(kept) <= len(value)
    elif isinstance(kept, dict):
        assert set(kept) <= set(value)


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


def _agentic() -> list[dict[str, Any]]:
    def row(name: str, session: str, prompt: int, **more: Any) -> dict[str, Any]:
        base = {"request_id": name, "session_id": session, "input_length": prompt}
        return base | {"output_length": 10, "hash_ids": list(range(prompt // 64 + 1))} | more

    tool = {"tool_call_id": "t", "tool_class": "bash", "status": "succeeded", "duration_ms": 1500}
    times = {"started_at_unix_ms": 0, "ended_at_unix_ms": 1500}
    return [
        row("r1", "main", 128, timestamp=5000.0, branches=["c1"]),
        row("c1", "child", 64, wait_for=["r1"], delay=250),
        row("c2", "child", 200, wait_for=["c1"], tool_wait_ms=100, prefix_reset=True),
        row(
            "r2", "main", 300, wait_for=["r1", "c2"], tool_wait_ms=1500, tool_events=[tool | times]
        ),
    ]


def test_agentic_mooncake_keeps_spawns_joins_and_tools(tmp_path: Path) -> None:
    rows, _ = imported(lines(tmp_path / "a.jsonl", *_agentic()), tmp_path / "t.jsonl")
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


def test_our_own_traces_are_merged(tmp_path: Path) -> None:
    rows, _ = imported(lines(tmp_path / "a.jsonl", *_agentic()), tmp_path / "one.jsonl")
    write_trace(rows, tmp_path / "two.jsonl.gz")
    merged, report = imported(
        [tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"], tmp_path / "t.jsonl"
    )
    assert dict(report.files) == {"agentsched": 2}
    assert [row.session_id for row in merged] == ["main", "child", "main#2", "child#2"]
    assert [msgspec.structs.replace(row, start_s=None).steps for row in merged[:2]] == [
        row.steps for row in rows
    ]


def test_a_folder_of_another_format_is_read_like_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    lines(folder / "a.jsonl", *_agentic())
    assert [row.session_id for row in read_trace(folder)] == ["main", "child"]
    assert sha256_of(folder) == sha256_of(folder)
    (folder / "b.jsonl").write_text((folder / "a.jsonl").read_text() + "broken\n")
    with pytest.raises(TraceError, match=r"b\.jsonl:5"):
        list(read_trace(folder))
    told: list[TraceError] = []
    assert len(list(read_trace(folder, on_error=told.append))) == 4
    assert len(told) == 1


def test_every_importer_is_found_by_its_name() -> None:
    for known in IMPORTERS:
        assert importer(known.name) is known
        assert known.title


def test_nothing_is_detected_in_what_is_nothing(tmp_path: Path) -> None:
    for value in ([], {}, [1, 2], {"a": 1}, "text"):
        assert detect(InputFile(path=written(tmp_path / "x.json", value))) is None
