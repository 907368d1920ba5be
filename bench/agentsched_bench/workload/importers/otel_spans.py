"""One span, as OTLP JSON, an SDK's console, Tempo or Jaeger has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agentsched_bench.workload.importers.chat import whole_prompt
from agentsched_bench.workload.importers.draft import command_word
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_instant,
    as_json,
    as_list,
    as_name,
    as_number,
    as_object,
    as_objects,
    first,
)
from agentsched_bench.workload.importers.otel_messages import answer_of, offered_tools, prompt_of
from agentsched_bench.workload.trace import RecordedMessage

_CALLS: Final = frozenset(
    {
        "chat",
        "text_completion",
        "generate_content",
        "completion",
        "responses",
        # LiteLLM has its own functions' names.
        "acompletion",
        "atext_completion",
        "anthropic_messages",
        "aresponses",
        "agenerate_content",
        "agenerate_content_stream",
        # OpenLLMetry's of OpenAI's agents.
        "response",
        # Semantic Kernel's, and Azure AI Inference's at first.
        "chat.completions",
        "chat.streaming_completions",
        "text.completions",
        "text.streaming_completions",
    }
)
#: Operations by whose names their spans are no calls, whatever was counted.
_NO_CALLS: Final = ("invoke_", "create_", "embed", "aembed")
_INPUT_TOKENS: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.usage.prompt_tokens",
    "llm.token_count.prompt",
    "gen_ai.response.prompt_tokens",
)
_OUTPUT_TOKENS: Final = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.usage.completion_tokens",
    "llm.token_count.completion",
    "gen_ai.response.completion_tokens",
)
_CACHED_TOKENS: Final = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cached_tokens",
    "gen_ai.usage.details.cache_read_tokens",
    "llm.token_count.prompt_details.cache_read",
    "ai.usage.cachedInputTokens",
    "ai.usage.inputTokenDetails.cacheReadTokens",
)
_WRITTEN_TOKENS: Final = (
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.cache_write_input_tokens",
    "gen_ai.usage.details.cache_write_tokens",
    "llm.token_count.prompt_details.cache_write",
    "ai.usage.inputTokenDetails.cacheWriteTokens",
)
_REASONING_TOKENS: Final = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "llm.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
    "ai.usage.reasoningTokens",
    "ai.usage.outputTokenDetails.reasoningTokens",
)
_MODELS: Final = (
    "gen_ai.response.model",
    "gen_ai.request.model",
    "llm.model_name",
    "llm.response.model",
    "llm.request.model",
)
_CONVERSATIONS: Final = (
    "gen_ai.conversation.id",
    "session.id",
    "traceloop.association.properties.session_id",
)
_FIRST_TOKEN: Final = (
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.server.time_to_first_token",
    # vLLM's and SGLang's own spans.
    "gen_ai.latency.time_to_first_token",
)
_FIRST_TOKEN_MS: Final = ("ai.response.msToFirstChunk", "ttft_ms")
#: Claude Code's own spans, and what they are. Its facts have names of their own, too.
_CLAUDE_CODE: Final = "claude_code."
_CLAUDE_CODE_KINDS: Final = {
    "llm_request": "call",
    "tool": "tool",
    "tool.execution": "execution",
    "interaction": "agent",
}
_CLAUDE_CODE_NAMES: Final = {
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "tool_name": "gen_ai.tool.name",
    "tool_use_id": "gen_ai.tool.call.id",
    "model": "gen_ai.request.model",
}
_NAMES: Final = {
    "tool": ("gen_ai.tool.name", "tool.name", "ai.toolCall.name", "traceloop.entity.name"),
    "agent": ("gen_ai.agent.name", "agent.name", "agent_name", "traceloop.entity.name"),
}
_ARGUMENTS: Final = (
    "gen_ai.tool.call.arguments",
    "ai.toolCall.args",
    "tool_arguments",
    "input.value",
    "traceloop.entity.input",
)
_CALL_IDS: Final = ("gen_ai.tool.call.id", "ai.toolCall.id", "tool_call.id")


@dataclass(slots=True, kw_only=True)
class Span:
    """What matters of a span. `kind` is call, tool, agent, or empty for one in between; `execution`
    is that part of a tool in which it ran, without a person's approval.

    `is_guess`: only its tokens say that it is a call. `is_untimed`: a tool that we wrote without
    knowing how long it took.
    """

    key: str
    trace: str
    parent: str
    kind: str
    name: str
    begun_s: float
    ended_s: float
    is_guess: bool = False
    conversation: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int = 0
    ttft_s: float | None = None
    is_error: bool = False
    call_id: str = ""
    result_tokens: int | None = None
    is_untimed: bool = False
    command: str | None = None
    service: str = ""
    prompt: tuple[RecordedMessage, ...] = ()
    answer: RecordedMessage | None = None
    tools: Json = None


def is_spans(value: Json) -> bool:
    """Whether a value has spans in it, or is one."""
    found = as_object(value)
    if any(key in found for key in ("resourceSpans", "resource_spans", "scopeSpans")):
        return True
    if any(True for trace in as_objects(found.get("data")) for _ in _jaeger(trace)):
        return True
    batches = as_objects(first(found.get("batches"), as_object(found.get("trace")).get("batches")))
    if any("scopeSpans" in batch for batch in batches) or "resourceSpans" in as_object(
        found.get("trace")
    ):
        return True
    starts = ("startTimeUnixNano", "start_time", "startTime")
    return bool(_id_of(found, "span")) and any(key in found for key in starts)


def spans_in(value: Json) -> Iterator[tuple[Object, Object]]:
    """Every span in a value with the attributes of its resource."""
    if isinstance(value, list):
        for part in value:
            yield from spans_in(part)
        return
    found = as_object(value)
    for trace in as_objects(found.get("data")):
        yield from _jaeger(trace)
    # Tempo answers with `batches`, or with a `trace` around what OTLP calls resource spans.
    found = as_object(found.get("trace")) or found
    groups = as_objects(
        first(found.get("resourceSpans"), found.get("resource_spans"), found.get("batches"))
    )
    if not groups and ("scopeSpans" in found or "scope_spans" in found):
        groups = [found]
    for group in groups:
        resource = attributes(as_object(group.get("resource")).get("attributes"))
        scopes = as_objects(
            first(
                group.get("scopeSpans"),
                group.get("scope_spans"),
                group.get("instrumentationLibrarySpans"),
            )
        )
        for scope in scopes:
            for span in as_objects(scope.get("spans")):
                yield span, resource
    if not groups:
        for span in as_objects(first(found.get("spans"), [found])):
            if _id_of(span, "span"):
                yield span, attributes(as_object(span.get("resource")).get("attributes"))


def _jaeger(trace: Object) -> Iterator[tuple[Object, Object]]:
    """The spans of one trace as Jaeger gives it to a browser, in OTLP's words."""
    for span in as_objects(trace.get("spans")):
        begun_us = as_number(span.get("startTime"))
        if "spanID" not in span or begun_us is None:
            continue
        above = next((r for r in as_objects(span.get("references"))), {})
        facts = _tags(span.get("tags"))
        logs = [
            {"name": facts.get("event"), "attributes": facts}
            for facts in (_tags(log.get("fields")) for log in as_objects(span.get("logs")))
        ]
        process = as_object(as_object(trace.get("processes")).get(as_name(span.get("processID"))))
        ended_us = begun_us + (as_number(span.get("duration")) or 0)
        told = {
            "traceId": first(span.get("traceID"), trace.get("traceID")),
            "spanId": span.get("spanID"),
            "parentSpanId": above.get("spanID"),
            "name": span.get("operationName"),
            "startTimeUnixNano": begun_us * 1000,
            "endTimeUnixNano": ended_us * 1000,
            "status": {"code": facts.get("otel.status_code")},
            "attributes": facts,
            "events": logs,
        }
        yield told, {"service.name": process.get("serviceName")}


def _tags(value: Json) -> Object:
    return {as_name(pair.get("key")): pair.get("value") for pair in as_objects(value)}


def _id_of(span: Object, what: str) -> str:
    """The id of a span or its trace; the SDKs' consoles keep both in a `context`."""
    context = as_object(span.get("context"))
    own = first(
        span.get(f"{what}Id"),
        span.get(f"{what}_id"),
        context.get(f"{what}_id"),
        span.get(f"context.{what}_id"),
    )
    return as_name(own).removeprefix("0x")


def attributes(value: Json) -> Object:
    """OTLP's list of key and value, or an object that may be nested, as a plain object."""
    if isinstance(value, dict):
        return dict(_flat("", value))
    return {as_name(pair.get("key")): _plain(pair.get("value")) for pair in as_objects(value)}


def _flat(before: str, value: Object) -> Iterator[tuple[str, Json]]:
    for key, part in value.items():
        if isinstance(part, dict) and part:
            yield from _flat(f"{before}{key}.", part)
        else:
            yield f"{before}{key}", part


def _plain(value: Json) -> Json:
    if not isinstance(value, dict):
        return value
    for key in ("stringValue", "intValue", "doubleValue", "boolValue"):
        if key in value:
            return value[key]
    if "arrayValue" in value:
        return [_plain(item) for item in as_objects(as_object(value["arrayValue"]).get("values"))]
    if "kvlistValue" in value:
        return attributes(as_object(value["kvlistValue"]).get("values"))
    return None


def read_span(span: Object, resource: Object, *, keeps_text: bool) -> Span | None:
    """A span as it matters here; None without its id or its times."""
    begun_s = _at(span, "start")
    own = _id_of(span, "span")
    if begun_s is None or not own:
        return None
    ended_s = _at(span, "end")
    facts = _facts(span)
    name = as_name(span.get("name"))
    if name.startswith(_CLAUDE_CODE):
        facts = _of_claude_code(facts)
    trace = _id_of(span, "trace")
    told_parent = first(span.get("parentSpanId"), span.get("parent_span_id"), span.get("parent_id"))
    parent = as_name(told_parent).removeprefix("0x")
    kind, is_guess = _kind(facts, name)
    read_tokens = as_count(_first_of(facts, _CACHED_TOKENS))
    told = as_object(span.get("status"))
    status = first(told.get("code"), told.get("status_code"), span.get("status_code"))
    read = Span(
        key=f"{trace}/{own}",
        trace=trace,
        parent=f"{trace}/{parent}" if parent.strip("0") else "",
        kind=kind,
        is_guess=is_guess,
        name=as_name(
            _first_of(facts, _NAMES.get(kind, _NAMES["agent"])),
            default="agent" if is_guess else kind,
        ),
        begun_s=begun_s,
        ended_s=max(begun_s, begun_s if ended_s is None else ended_s),
        conversation=as_name(_first_of(facts, _CONVERSATIONS)),
        model=as_name(_first_of(facts, _MODELS)),
        input_tokens=_input_tokens(facts, read_tokens),
        output_tokens=as_count(_first_of(facts, _OUTPUT_TOKENS)),
        cached_tokens=read_tokens,
        reasoning_tokens=as_count(_first_of(facts, _REASONING_TOKENS)) or 0,
        ttft_s=_ttft_s(facts),
        is_error=status in (2, "STATUS_CODE_ERROR", "ERROR") or "error.type" in facts,
        call_id=as_name(_first_of(facts, _CALL_IDS)),
        result_tokens=as_count(facts.get("agentsched.tool.result_tokens")),
        is_untimed=facts.get("agentsched.tool.untimed") is True,
        command=_command(facts) if kind == "tool" else None,
        service=as_name(resource.get("service.name")),
    )
    # What nobody counted is estimated from the messages.
    if kind == "call" and (keeps_text or read.input_tokens is None):
        events = [
            (as_name(event.get("name")), attributes(event.get("attributes")))
            for event in as_objects(as_json(span.get("events")))
        ]
        read.prompt, read.answer = prompt_of(facts, events), answer_of(facts, events)
        read.tools = offered_tools(facts)
    return read


def _facts(span: Object) -> Object:
    """The attributes; in tables of spans they are columns, named with `attributes.` before."""
    facts = attributes(span.get("attributes"))
    for key, value in span.items():
        name = key.removeprefix("attributes.")
        if name != key and value is not None:
            facts.update(_flat("", {name: value}))
    return facts


def _at(span: Object, which: str) -> float | None:
    nanos = as_number(first(span.get(f"{which}TimeUnixNano"), span.get(f"{which}_time_unix_nano")))
    if nanos is not None:
        return nanos / 1e9
    told = first(span.get(f"{which}_time"), span.get(f"{which}Time"))
    if isinstance(told, list):
        # The JavaScript SDK's: seconds and nanoseconds.
        parts = [number for part in told if (number := as_number(part)) is not None]
        return parts[0] + parts[1] / 1e9 if len(parts) == len(told) == 2 else None
    return as_instant(told)


def _first_of(facts: Object, keys: tuple[str, ...]) -> Json:
    return first(*(facts.get(key) for key in keys))


def _of_claude_code(facts: Object) -> Object:
    """Claude Code's facts by others' names for them; it counts as Anthropic's API does."""
    renamed = {_CLAUDE_CODE_NAMES.get(key, key): value for key, value in facts.items()}
    if "input_tokens" in facts:
        parts = ("input_tokens", "cache_read_tokens", "cache_creation_tokens")
        whole = sum(as_count(facts.get(part)) or 0 for part in parts)
        renamed["gen_ai.usage.input_tokens"] = whole
    return {"gen_ai.agent.name": "claude-code"} | renamed | facts


def _input_tokens(facts: Object, read: int | None) -> int | None:
    prompt = as_count(_first_of(facts, _INPUT_TOKENS))
    made = as_count(_first_of(facts, _WRITTEN_TOKENS))
    return None if prompt is None else whole_prompt(prompt, read=read, made=made) or None


def _ttft_s(facts: Object) -> float | None:
    took_s = as_number(_first_of(facts, _FIRST_TOKEN))
    took_ms = as_number(_first_of(facts, _FIRST_TOKEN_MS))
    return took_s if took_s is not None or took_ms is None else took_ms / 1000


def _kind(facts: Object, name: str) -> tuple[str, bool]:
    """What a span is, and whether that is a guess."""
    if name.startswith(_CLAUDE_CODE):
        return _CLAUDE_CODE_KINDS.get(name.removeprefix(_CLAUDE_CODE), ""), False
    operation = as_name(first(facts.get("gen_ai.operation.name"), facts.get("llm.request.type")))
    told = as_name(facts.get("openinference.span.kind")).upper()
    traceloop = as_name(facts.get("traceloop.span.kind"))
    if operation in _CALLS or told == "LLM":
        return "call", False
    if operation == "execute_tool" or told == "TOOL" or traceloop == "tool":
        return "tool", False
    # Pydantic AI's tools had no operation for long.
    if "ai.toolCall.name" in facts or (not operation and "gen_ai.tool.name" in facts):
        return "tool", False
    if operation == "invoke_agent" or told == "AGENT" or traceloop == "agent":
        return "agent", False
    is_counted = any(key in facts for key in _INPUT_TOKENS)
    is_answered = bool(as_count(_first_of(facts, _OUTPUT_TOKENS)))
    if operation and is_counted and is_answered and not operation.startswith(_NO_CALLS):
        return "call", False
    if not operation and is_counted:
        # Agents carry sums of tokens, too; without a name for what it is, the span's own decides.
        return ("agent" if name.startswith("invoke_agent") else "call"), True
    return "", False


def _command(facts: Object) -> str | None:
    told = as_name(facts.get("agentsched.tool.command"))
    if told:
        return told
    arguments = as_json(_first_of(facts, _ARGUMENTS))
    if "full_command" in facts:
        arguments = {"command": facts["full_command"]}  # Claude Code's
    if isinstance(arguments, list) and len(as_list(arguments)) == 1:
        arguments = arguments[0]
    command = first(as_object(arguments).get("command"), as_object(arguments).get("cmd"))
    return command_word(command) if isinstance(command, str) else None
