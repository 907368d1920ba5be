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


@pytest.mark.parametrize("form", ["numbered", "openinference", "vercel", "attribute", "events"])
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
