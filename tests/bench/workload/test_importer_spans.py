"""Imports of spans as consoles, stores and instrumentations write them, in small."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, lines, written


def _console(own: str, parent: str | None, begun: int, ended: int, **facts: Any) -> dict[str, Any]:
    """A span as the Python SDK's console exporter writes it."""
    return {
        "name": facts.pop("span_name", "x"),
        "context": {"trace_id": "0xaa", "span_id": f"0x{own}", "trace_state": "[]"},
        "kind": "SpanKind.CLIENT",
        "parent_id": parent and f"0x{parent}",
        "start_time": f"2026-01-01T00:00:{begun:02d}.000000Z",
        "end_time": f"2026-01-01T00:00:{ended:02d}.500000Z",
        "status": {"status_code": "UNSET"},
        "attributes": {key.replace("__", "."): value for key, value in facts.items()},
        "events": facts.pop("events", []),
        "links": [],
        "resource": {"attributes": {"service.name": "svc"}, "schema_url": ""},
    }


def _run_of_spans() -> list[dict[str, Any]]:
    """An agent whose framework and whose client both record the same calls."""
    call = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "ls"}

    def tokens(prompt: int, output: int) -> dict[str, Any]:
        return {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": output}

    return [
        _console("01", None, 0, 9, span_name="agent run", agent_name="a", **tokens(300, 30)),
        _console("02", "01", 1, 2, **call, **tokens(100, 10)),
        _console("03", "02", 1, 2, **call, **tokens(100, 10)),
        _console("04", "01", 3, 4, **tool),
        _console("05", "01", 5, 6, **call, **tokens(200, 20)),
    ]


def _of_jaeger(span: dict[str, Any]) -> dict[str, Any]:
    begun, ended = (datetime.fromisoformat(span[key]) for key in ("start_time", "end_time"))
    parent = span["parent_id"]
    return {
        "traceID": span["context"]["trace_id"],
        "spanID": span["context"]["span_id"],
        "operationName": span["name"],
        "references": [{"refType": "CHILD_OF", "spanID": parent}] if parent else [],
        "startTime": round(begun.timestamp() * 1e6),
        "duration": round((ended - begun).total_seconds() * 1e6),
        "tags": [{"key": key, "value": value} for key, value in span["attributes"].items()],
    }


@pytest.mark.parametrize("layout", ["console", "lines", "table", "tempo", "jaeger"])
def test_otel_spans_of_consoles_and_stores(layout: str, tmp_path: Path) -> None:
    spans = _run_of_spans()
    path = tmp_path / "spans.json"
    match layout:
        case "console":
            path.write_text("\n".join(json.dumps(span, indent=4) for span in spans) + "\n")
        case "lines":
            lines(path, *spans)
        case "table":
            rows = [
                {f"attributes.{key}": value for key, value in span["attributes"].items()}
                | {f"context.{key}": value for key, value in span["context"].items()}
                | {key: span[key] for key in ("name", "parent_id", "start_time", "end_time")}
                for span in spans
            ]
            lines(path, *rows)
        case "jaeger":
            written(path, {"data": [{"spans": [_of_jaeger(span) for span in spans]}]})
        case _:
            scopes = [{"spans": [dict(span) for span in spans]}]
            written(path, {"batches": [{"resource": {"attributes": []}, "scopeSpans": scopes}]})
    (row,), report = imported(path, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert [(step.input_tokens, step.llm_s) for step in row.steps] == [(100, 1.5), (200, 1.5)]
    assert [tool.name for tool in row.steps[0].tools] == ["ls"]
    assert (row.agent, row.model) == ("a", "m")


def _messages_as(form: str) -> dict[str, Any]:
    """One conversation's last call: a question, a tool call, its result, an answer."""
    match form:
        case "numbered":
            rows = {
                "0.role": "user",
                "0.content": "where",
                "1.role": "assistant",
                "1.tool_calls.0.id": "c",
                "1.tool_calls.0.name": "ls",
                "1.tool_calls.0.arguments": "{}",
                "2.role": "tool",
                "2.tool_call_id": "c",
                "2.content": "here",
            }
            said = {"gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "there"}
            return {f"gen_ai.prompt.{key}": value for key, value in rows.items()} | said
        case "openinference":
            rows = {
                "0.message.role": "user",
                "0.message.contents.0.message_content.type": "text",
                "0.message.contents.0.message_content.text": "where",
                "1.message.role": "assistant",
                "1.message.tool_calls.0.tool_call.id": "c",
                "1.message.tool_calls.0.tool_call.function.name": "ls",
                "1.message.tool_calls.0.tool_call.function.arguments": "{}",
                "2.message.role": "tool",
                "2.message.tool_call_id": "c",
                "2.message.content": "here",
            }
            said = {"llm.output_messages.0.message.content": "there"}
            return {f"llm.input_messages.{key}": value for key, value in rows.items()} | said
        case "vercel":
            asked = {"type": "tool-call", "toolCallId": "c", "toolName": "ls", "args": {}}
            seen = {"type": "tool-result", "toolCallId": "c", "toolName": "ls", "result": "here"}
            prompt = [
                {"role": "user", "content": [{"type": "text", "text": "where"}]},
                {"role": "assistant", "content": [asked]},
                {"role": "tool", "content": [seen]},
            ]
            return {"ai.prompt.messages": json.dumps(prompt), "ai.response.text": "there"}
        case "content":
            call = {"id": "c", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
            sent: list[dict[str, Any]] = [
                {"role": "user", "content": "where"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "here"},
            ]
            answered = {"gen_ai.completion": [{"role": "assistant", "content": "there"}]}
            pair = [
                {"name": "gen_ai.content.prompt", "attributes": _strings({"gen_ai.prompt": sent})},
                {"name": "gen_ai.content.completion", "attributes": _strings(answered)},
            ]
            return {"span_events": pair}
        case _:
            call = {"id": "c", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
            events = [
                {"event.name": "gen_ai.user.message", "content": "where"},
                {"event.name": "gen_ai.assistant.message", "tool_calls": [call]},
                {"event.name": "gen_ai.tool.message", "id": "c", "content": "here"},
                {"event.name": "gen_ai.choice", "message": {"content": "there"}},
            ]
            if form == "attribute":
                return {"events": json.dumps(events)}
            told = [
                {"name": event.pop("event.name"), "attributes": _strings(event)} for event in events
            ]
            return {"span_events": told}


def _strings(event: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in event.items()}


@pytest.mark.parametrize(
    "form", ["numbered", "openinference", "vercel", "attribute", "events", "content"]
)
def test_otel_messages_in_every_form(form: str, tmp_path: Path) -> None:
    facts = _messages_as(form)
    events = facts.pop("span_events", [])
    call = {"gen_ai.operation.name": "chat"}
    counted = {"gen_ai.usage.input_tokens": 50, "gen_ai.usage.output_tokens": 5}
    span = _console("01", None, 1, 2, **call, **counted, **facts) | {"events": events}
    uncounted = _console("01", None, 1, 2, **call, **facts) | {"events": events}
    path = written(tmp_path / "spans.json", span)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    told = [(m.role, m.text, m.call_id, len(m.tool_calls)) for m in row.messages]
    assert told == [
        ("user", "where", None, 0),
        ("assistant", "", None, 1),
        ("tool", "here", "c", 0),
        ("assistant", "there", None, 0),
    ]
    assert row.messages[1].tool_calls[0].name == "ls"
    (row,), _ = imported(written(path, uncounted), tmp_path / "t.jsonl")
    assert row.token_source["input"] == "estimated"
    assert 10 < row.steps[0].input_tokens < 50


def test_a_session_without_any_name_gets_one(tmp_path: Path) -> None:
    span = _run_of_spans()[1] | {"context": {"trace_id": "", "span_id": "0x01"}}
    (row,), report = imported(written(tmp_path / "x.json", span), tmp_path / "t.jsonl")
    assert (row.session_id, report.errors_count) == ("session", 0)


def _tokens(prompt: int, output: int) -> dict[str, Any]:
    return {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": output}


@pytest.mark.parametrize(
    "operation",
    ["acompletion", "anthropic_messages", "response", "chat.streaming_completions", "my_chat"],
)
def test_otel_calls_by_other_names(operation: str, tmp_path: Path) -> None:
    """LiteLLM's, OpenLLMetry's, Semantic Kernel's, and what nobody has heard of."""
    name = {"gen_ai.operation.name": operation}
    spans = [
        _console("01", None, 1, 2, **name, **_tokens(100, 5)),
        _console("02", None, 3, 4, **{"gen_ai.operation.name": "embeddings"}, **_tokens(9, 0)),
        _console("03", None, 3, 4, **{"gen_ai.operation.name": "aembedding"}, **_tokens(9, 1)),
        _console("04", None, 0, 9, **{"gen_ai.operation.name": "invoke_workflow"}, **_tokens(9, 1)),
    ]
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert [(s.input_tokens, s.output_tokens) for s in row.steps] == [(100, 5)]


def test_otel_a_frame_by_another_name_is_no_agent(tmp_path: Path) -> None:
    """It has the sums of the calls in it, of two agents, one after the other."""
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
    frame = {"gen_ai.operation.name": "run_team"}
    call = {"gen_ai.operation.name": "acompletion"}
    spans = [
        _console("01", None, 0, 9, **frame, **_tokens(300, 10)),
        _console("02", "01", 1, 3, **agent),
        _console("03", "02", 1, 2, **call, **_tokens(100, 5)),
        _console("04", "01", 5, 7, **agent),
        _console("05", "04", 5, 6, **call, **_tokens(200, 5)),
    ]
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert [step.input_tokens for step in row.steps] == [100, 200]


def test_otel_counts_of_semantic_kernel(tmp_path: Path) -> None:
    counts = {"gen_ai.response.prompt_tokens": 100, "gen_ai.response.completion_tokens": 5}
    span = _console("01", None, 1, 2, **{"gen_ai.operation.name": "chat.completions"}, **counts)
    (row,), _ = imported(written(tmp_path / "s.json", span), tmp_path / "t.jsonl")
    assert [(s.input_tokens, s.output_tokens) for s in row.steps] == [(100, 5)]


def test_otel_a_proxys_call_is_no_agent_of_the_engines(tmp_path: Path) -> None:
    """LiteLLM before vLLM, each with a span: one conversation."""
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
    outer = {"gen_ai.operation.name": "acompletion"}
    inner = {"gen_ai.usage.prompt_tokens": 101, "gen_ai.usage.completion_tokens": 5}
    spans = [_console("01", None, 0, 9, **agent)]
    for number, own in enumerate(("02", "04")):
        at = 1 + 3 * number
        first = {"gen_ai.latency.time_to_first_token": 0.25}
        spans += [
            _console(own, "01", at, at + 1, **outer, **_tokens(100, 5)),
            _console(f"a{number}", own, at, at + 1, **inner, **first),
        ]
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert [(s.input_tokens, s.ttft_s) for s in row.steps] == [(101, 0.25), (101, 0.25)]


def _copilot(own: str, begun: float, ended: float, **facts: Any) -> dict[str, Any]:
    """A span of GitHub Copilot's file exporter: the JavaScript SDK's, as JSON."""
    named = {"gen_ai.conversation.id": "c", **facts}
    return {
        "type": "span",
        "traceId": "3d",
        "spanId": own,
        "parentSpanId": "f3",
        "name": "x",
        "kind": 2,
        "startTime": [int(begun), round(begun % 1 * 1e9)],
        "endTime": [int(ended), round(ended % 1 * 1e9)],
        "attributes": named,
        "status": {"code": 0},
        "events": [],
        "resource": {"attributes": {"service.name": "github-copilot"}},
    }


def test_otel_of_a_coding_agents_file(tmp_path: Path) -> None:
    """Its calls' spans end when their tools are done; metrics stand between them."""
    call = {"gen_ai.operation.name": "chat"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "view"}
    metric = {"type": "metric", "name": "m", "dataPoints": []}
    rows = [
        *[metric] * 6,
        _copilot("a1", 1789068146.811, 1789068147.740, **tool),
        _copilot("26", 1789068142.748, 1789068147.750, **call, **_tokens(100, 5)),
        metric,
        _copilot("80", 1789068155.855, 1789068159.437, **tool),
        _copilot("27", 1789068155.859, 1789068159.899, **tool),
        _copilot("e7", 1789068147.751, 1789068160.835, **call, **_tokens(200, 5)),
    ]
    (row,), report = imported(lines(tmp_path / "otel.jsonl", *rows), tmp_path / "t.jsonl")
    assert (report.errors_count, row.source) == (0, "github-copilot")
    first, second = row.steps
    assert (first.llm_s, second.llm_s) == (pytest.approx(4.063), pytest.approx(8.104))
    assert first.gap_s == pytest.approx(0.94)
    assert [len(step.tools) for step in row.steps] == [1, 2]
    rows[6] = rows[6] | {"startTime": [1789068146]}
    (row,), report = imported(lines(tmp_path / "otel.jsonl", *rows), tmp_path / "t.jsonl")
    assert [len(step.tools) for step in row.steps] == [0, 2]


def test_otel_a_tool_beside_anothers_answer_is_not_its(tmp_path: Path) -> None:
    """Of two calls at once; and one that runs on while the next is made."""
    call = {"gen_ai.operation.name": "chat"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "ls"}
    spans = [
        _console("01", None, 0, 20, span_name="agent", **{"gen_ai.operation.name": "invoke_agent"}),
        _console("02", "01", 1, 2, **call, **_tokens(100, 5)),
        _console("03", "01", 3, 9, **tool),
        _console("04", "01", 5, 7, **call, **_tokens(200, 5)),
        _console("05", "01", 10, 18, **call, **_tokens(300, 5)),
        _console("06", "01", 11, 12, **call, **_tokens(400, 5)),
        _console("07", "01", 13, 14, **tool),
    ]
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert [len(step.tools) for step in row.steps] == [1, 0, 0, 1]
    assert [step.llm_s for step in row.steps] == [1.5, 2.5, 8.5, 1.5]


def test_otel_tools_without_an_operation(tmp_path: Path) -> None:
    """Pydantic AI's, for long."""
    spans = _run_of_spans()
    told = {"gen_ai.tool.name": "run", "gen_ai.tool.call.id": "c"}
    told["tool_arguments"] = json.dumps({"command": "ls -l"})
    spans[3] = _console("04", "01", 3, 4, span_name="running tool", **told)
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    (tool,) = row.steps[0].tools
    assert (tool.name, tool.command, tool.call_id) == ("run", "ls", "c")
    assert row.steps[0].gap_kind == "tool"


def test_otel_tools_that_do_not_name_their_conversation(tmp_path: Path) -> None:
    call = {"gen_ai.operation.name": "chat", "gen_ai.conversation.id": "c"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "ls"}
    spans = [
        _console("01", None, 1, 2, **call, **_tokens(100, 5)),
        _console("02", None, 3, 4, **tool),
        _console("03", None, 5, 6, **call, **_tokens(200, 5)),
    ]
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert [[tool.name for tool in step.tools] for step in row.steps] == [["ls"], []]


@pytest.mark.parametrize(
    "name",
    [
        "gen_ai.usage.reasoning.output_tokens",
        "gen_ai.usage.reasoning_tokens",
        "llm.usage.reasoning_tokens",
        "llm.token_count.completion_details.reasoning",
    ],
)
def test_otel_thoughts_are_counted(name: str, tmp_path: Path) -> None:
    """They come back in no later prompt: what is new there is not known."""
    spans = _run_of_spans()
    spans[2]["attributes"][name] = 7
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert [step.reasoning_tokens for step in row.steps] == [7, 0]
    assert row.steps[1].new_input_tokens is None


@pytest.mark.parametrize("begun", [3, 7])
def test_otel_agents_beside_each_other_are_several(begun: int, tmp_path: Path) -> None:
    """And one conversation where one hands over to the next."""
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": "c"}
    call = {"gen_ai.operation.name": "chat"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "ls"}
    spans = []
    for one, name, at in (("a", "01", 1), ("b", "02", begun)):
        spans += [
            _console(name, None, at, at + 9, **agent, **{"gen_ai.agent.name": one}),
            _console(f"{one}1", name, at, at + 1, **call, **_tokens(100, 5)),
            _console(f"{one}2", name, at + 2, at + 3, **tool),
            _console(f"{one}3", name, at + 4, at + 5, **call, **_tokens(200, 5)),
        ]
    rows, _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    counts = [[step.input_tokens for step in row.steps] for row in rows]
    tools = [[len(step.tools) for step in row.steps] for row in rows]
    if begun == 7:
        assert (counts, tools) == ([[100, 200, 100, 200]], [[1, 0, 1, 0]])
        return
    assert (counts, tools) == ([[100, 200]] * 2, [[1, 0]] * 2)
    assert [(row.session_id, row.agent, row.parent) for row in rows] == [
        ("c", "a", None),
        ("c/02", "b", None),
    ]
    assert [row.steps[0].gap_s for row in rows] == [2.5, 2.5]


def _claude(own: str, parent: str | None, kind: str, at: tuple[int, int], **facts: Any) -> Any:
    """A span of Claude Code's own telemetry, of one session and of a trace a turn."""
    common = {"session.id": "s", "span.type": kind}
    return _console(own, parent, *at, span_name=f"claude_code.{kind}", **common, **facts)


def test_otel_of_claude_code_itself(tmp_path: Path) -> None:
    """Its counts have names of their own; sub-agents are below the tool that started them."""

    def asked(own: str, parent: str, at: tuple[int, int], read: int, made: int) -> Any:
        facts = {"model": "claude", "ttft_ms": 250, "success": True, "output_tokens": 40}
        cached = {"cache_read_tokens": read, "cache_creation_tokens": made}
        return _claude(own, parent, "llm_request", at, input_tokens=4, **cached, **facts)

    later = [
        _claude("b0", None, "interaction", (40, 50)),
        asked("b1", "b0", (41, 42), 900, 5),
    ]
    for span in later:
        span["context"] = span["context"] | {"trace_id": "0xbb"}
    spans = [
        _claude("a0", None, "interaction", (0, 30)),
        asked("a1", "a0", (1, 2), 0, 500),
        _claude("a2", "a0", "tool", (3, 9), tool_name="Bash", tool_use_id="t", full_command="ls"),
        _claude("a3", "a2", "tool.blocked_on_user", (3, 7), decision="accept"),
        _claude("a4", "a2", "tool.execution", (8, 9), success=True),
        asked("a5", "a0", (10, 11), 500, 100),
        _claude("a6", "a0", "tool", (12, 20), tool_name="Agent", tool_use_id="u"),
        asked("a7", "a6", (13, 14), 0, 80),
        _claude("a8", "a6", "tool", (15, 16), tool_name="Read", tool_use_id="v"),
        _claude("a9", "a8", "tool.execution", (15, 16)),
        asked("aa", "a6", (17, 18), 80, 20),
        asked("ab", "a0", (21, 22), 600, 200),
        *later,
    ]
    rows, report = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert report.errors_count == 0
    main, agent = rows
    assert [step.input_tokens for step in main.steps] == [504, 604, 804, 909]
    assert [step.prefix_tokens for step in main.steps] == [0, 500, 600, 900]
    assert [(tool.name, tool.call_id) for step in main.steps for tool in step.tools] == [
        ("Bash", "t"),
        ("Agent", "u"),
    ]
    bash = main.steps[0].tools[0]
    assert (bash.duration_s, bash.command, main.steps[0].gap_s) == (1.5, "ls", 7.5)
    assert (main.session_id, main.agent, main.model) == ("s", "claude-code", "claude")
    assert (agent.parent, agent.agent, agent.parent_t_s) == ("s", "Agent", 12.0)
    assert [step.input_tokens for step in agent.steps] == [84, 104]
    assert [tool.name for tool in agent.steps[0].tools] == ["Read"]
    assert main.steps[1].tools[0].child == agent.session_id
    assert {step.ttft_s for row in rows for step in row.steps} == {0.25}


@pytest.mark.parametrize("is_traced", [False, True])
def test_otel_a_tool_that_asks_a_model_is_a_sub_agent(is_traced: bool, tmp_path: Path) -> None:
    """And what a tool's client and its server say of one call is one call."""
    call, tool = {"gen_ai.operation.name": "chat"}, {"gen_ai.operation.name": "execute_tool"}
    tool["gen_ai.tool.name"] = "research"
    spans = [
        _console("01", None, 0, 30, span_name="agent", **{"gen_ai.operation.name": "invoke_agent"}),
        _console("02", "01", 1, 2, **call, **_tokens(100, 5)),
        _console("03", "01", 3, 9, **tool),
        _console("04", "03", 3, 9, span_name="tools/call research", **tool),
        _console("05", "04", 4, 8, span_name="tools/call research", **tool),
        _console("06", "05", 5, 6, **call, **_tokens(40, 5)),
        _console("07", "01", 10, 11, **call, **_tokens(200, 5)),
    ]
    if not is_traced:
        del spans[5]
    rows, _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert [step.input_tokens for step in rows[0].steps] == [100, 200]
    (known,) = rows[0].steps[0].tools
    assert (known.name, known.duration_s) == ("research", 6.5)
    children = [(row.session_id, row.parent, row.agent) for row in rows[1:]]
    assert children == ([("aa/03", "aa", "research")] if is_traced else [])
    assert known.child == ("aa/03" if is_traced else None)


@pytest.mark.parametrize(
    ("prompt", "read", "made", "whole"),
    [(3, 900, 20, 923), (3, 0, 900, 903), (923, 900, 20, 923), (50, None, None, 50)],
)
def test_otel_cached_tokens_within_or_beside_the_prompt(
    prompt: int, read: int | None, made: int | None, whole: int, tmp_path: Path
) -> None:
    """Some pass on what Anthropic's API counts, which has them beside."""
    spans = _run_of_spans()
    facts = spans[4]["attributes"]
    facts["gen_ai.usage.input_tokens"] = prompt
    facts["gen_ai.usage.cache_read.input_tokens"] = read
    facts["gen_ai.usage.cache_creation.input_tokens"] = made
    (row,), _ = imported(lines(tmp_path / "s.jsonl", *spans), tmp_path / "t.jsonl")
    assert row.steps[1].input_tokens == whole
    assert read is None or row.steps[1].prefix_tokens == read
