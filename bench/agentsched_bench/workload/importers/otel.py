"""OpenTelemetry GenAI spans, as OTLP JSON: a document, or a line an export as collectors write it.

`chat`, `text_completion` and `generate_content` spans are LLM calls, `execute_tool` spans tool
calls, `invoke_agent` spans agents; the older names of OpenLLMetry and OpenInference are understood.
A conversation is the nearest agent span above a call (or `gen_ai.conversation.id`, or a trace); an
agent below another agent is its sub-agent. A tool belongs to the last call of its conversation that
ended before it began. Spans come in any order, so all that matters of them is held until the end of
the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import arguments_text, read_definitions
from agentsched_bench.workload.importers.draft import (
    Call,
    Chain,
    Conversation,
    Imported,
    command_word,
)
from agentsched_bench.workload.importers.files import (
    InputFile,
    OnError,
    document,
    is_lines,
    objects,
)
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_name,
    as_number,
    as_object,
    as_objects,
    as_text,
    first,
)
from agentsched_bench.workload.trace import (
    RecordedMessage,
    RecordedTool,
    RecordedToolCall,
    TraceError,
)

_CALLS: Final = frozenset(
    {"chat", "text_completion", "generate_content", "completion", "responses"}
)
_INPUT_TOKENS: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.usage.prompt_tokens",
    "llm.token_count.prompt",
)
_OUTPUT_TOKENS: Final = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.usage.completion_tokens",
    "llm.token_count.completion",
)
_CACHED_TOKENS: Final = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cached_tokens",
    "llm.token_count.prompt_details.cache_read",
)
_MODELS: Final = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
_FIRST_TOKEN: Final = ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token")


@dataclass(frozen=True, slots=True)
class Otel:
    """Reads OTLP JSON with GenAI spans."""

    name: str = "otel"
    title: str = "OpenTelemetry GenAI spans (OTLP JSON)"

    def claims(self, head: Sequence[Any]) -> bool:
        return any(
            "resourceSpans" in value
            or "resource_spans" in value
            or "scopeSpans" in value
            or ("spanId" in value and ("traceId" in value or "startTimeUnixNano" in value))
            for value in map(as_object, _flat(head)[:5])
        )

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        spans: dict[str, _Span] = {}
        for file in files:
            before = len(spans)
            for value in _values(file, on_error=on_error):
                for span, resource in _spans(value):
                    read = _read_span(span, resource, keeps_text=options.keeps_text)
                    if read is not None:
                        spans[read.key] = read
            if len(spans) == before:
                on_error(TraceError("no span in it", path=file.path))
        threads = _threads(spans)
        if spans and not threads:
            path = files[0].path
            on_error(TraceError("no span of an LLM call with its tokens in it", path=path))
        for thread in threads:
            yield from thread.imported(options)


def _flat(head: Sequence[Any]) -> list[Any]:
    return [part for value in head for part in (value if isinstance(value, list) else [value])]


def _values(file: InputFile, *, on_error: OnError) -> Iterator[Json]:
    if is_lines(file):
        for _, value in objects(file, on_error=on_error):
            yield value
        return
    whole = document(file, on_error=on_error)
    if whole is not None:
        yield whole.value


def _spans(value: Json) -> Iterator[tuple[Object, Object]]:
    """Every span in a value with the attributes of its resource."""
    if isinstance(value, list):
        for part in value:
            yield from _spans(part)
        return
    found = as_object(value)
    groups = as_objects(first(found.get("resourceSpans"), found.get("resource_spans")))
    if not groups and ("scopeSpans" in found or "scope_spans" in found):
        groups = [found]
    for group in groups:
        resource = _attributes(as_object(group.get("resource")).get("attributes"))
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
        for span in as_objects(first(found.get("spans"), [found] if "spanId" in found else None)):
            yield span, {}


def _attributes(value: Json) -> Object:
    """OTLP's list of key and value, or a plain object, as a plain object."""
    if isinstance(value, dict):
        return value
    return {as_name(pair.get("key")): _plain(pair.get("value")) for pair in as_objects(value)}


def _plain(value: Json) -> Json:
    if not isinstance(value, dict):
        return value
    for key in ("stringValue", "intValue", "doubleValue", "boolValue"):
        if key in value:
            return value[key]
    if "arrayValue" in value:
        return [_plain(item) for item in as_objects(as_object(value["arrayValue"]).get("values"))]
    if "kvlistValue" in value:
        return _attributes(as_object(value["kvlistValue"]).get("values"))
    return None


@dataclass(slots=True, kw_only=True)
class _Span:
    """What matters of a span. `kind` is call, tool, agent, or empty for one in between."""

    key: str
    trace: str
    parent: str
    kind: str
    name: str
    begun_s: float
    ended_s: float
    conversation: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    is_error: bool = False
    call_id: str = ""
    result_tokens: int | None = None
    command: str | None = None
    service: str = ""
    prompt: tuple[RecordedMessage, ...] = ()
    answer: RecordedMessage | None = None
    tools: Json = None


def _read_span(span: Object, resource: Object, *, keeps_text: bool) -> _Span | None:
    begun = as_number(first(span.get("startTimeUnixNano"), span.get("start_time_unix_nano")))
    ended = as_number(first(span.get("endTimeUnixNano"), span.get("end_time_unix_nano")))
    own = as_name(first(span.get("spanId"), span.get("span_id")))
    if begun is None or not own:
        return None
    facts = _attributes(span.get("attributes"))
    trace = as_name(first(span.get("traceId"), span.get("trace_id")))
    parent = as_name(first(span.get("parentSpanId"), span.get("parent_span_id")))
    kind = _kind(facts, as_name(span.get("name")))
    status = as_object(span.get("status")).get("code")
    read = _Span(
        key=f"{trace}/{own}",
        trace=trace,
        parent=f"{trace}/{parent}" if parent.strip("0") else "",
        kind=kind,
        name=_name(facts, kind),
        begun_s=begun / 1e9,
        ended_s=max(begun, ended if ended is not None else begun) / 1e9,
        conversation=as_name(first(facts.get("gen_ai.conversation.id"), facts.get("session.id"))),
        model=as_name(first(*(facts.get(key) for key in _MODELS))),
        input_tokens=as_count(first(*(facts.get(key) for key in _INPUT_TOKENS))) or None,
        output_tokens=as_count(first(*(facts.get(key) for key in _OUTPUT_TOKENS))),
        cached_tokens=as_count(first(*(facts.get(key) for key in _CACHED_TOKENS))),
        ttft_s=as_number(first(*(facts.get(key) for key in _FIRST_TOKEN))),
        is_error=status in (2, "STATUS_CODE_ERROR") or "error.type" in facts,
        call_id=as_name(facts.get("gen_ai.tool.call.id")),
        result_tokens=as_count(facts.get("agentsched.tool.result_tokens")),
        command=_command(facts) if kind == "tool" else None,
        service=as_name(resource.get("service.name")),
    )
    if keeps_text and kind == "call":
        read.prompt, read.answer = _messages(facts, span)
        read.tools = _json(facts.get("gen_ai.tool.definitions"))
    return read


def _kind(facts: Object, name: str) -> str:
    operation = as_name(first(facts.get("gen_ai.operation.name"), facts.get("llm.request.type")))
    openinference = as_name(facts.get("openinference.span.kind")).upper()
    traceloop = as_name(facts.get("traceloop.span.kind"))
    if operation in _CALLS or openinference == "LLM":
        return "call"
    if operation == "execute_tool" or openinference == "TOOL" or traceloop == "tool":
        return "tool"
    if (
        operation in ("invoke_agent", "create_agent")
        or openinference == "AGENT"
        or traceloop == "agent"
    ):
        return "agent" if operation != "create_agent" else ""
    if not operation and any(key in facts for key in _INPUT_TOKENS):
        # Agents carry sums of tokens, too; without a name for what it is, the span's own decides.
        return "agent" if name.startswith("invoke_agent") else "call"
    return ""


def _name(facts: Object, kind: str) -> str:
    keys = {
        "tool": ("gen_ai.tool.name", "tool.name", "traceloop.entity.name"),
        "agent": ("gen_ai.agent.name", "agent.name", "traceloop.entity.name"),
    }.get(kind, ())
    return as_name(first(*(facts.get(key) for key in keys)), default=kind)


def _command(facts: Object) -> str | None:
    told = as_name(facts.get("agentsched.tool.command"))
    if told:
        return told
    arguments = as_object(_json(facts.get("gen_ai.tool.call.arguments")))
    command = arguments.get("command")
    return command_word(command) if isinstance(command, str) else None


def _json(value: Json) -> Json:
    """A value that attributes hold as JSON in a string, or as it is."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _messages(
    facts: Object, span: Object
) -> tuple[tuple[RecordedMessage, ...], RecordedMessage | None]:
    """Prompt and answer, from attributes or from the event that older versions put them in."""
    for event in as_objects(span.get("events")):
        if as_name(event.get("name")) == "gen_ai.client.inference.operation.details":
            facts = _attributes(event.get("attributes")) | facts
    system = _json(
        first(facts.get("gen_ai.system_instructions"), facts.get("gen_ai.system.message"))
    )
    prompt: list[RecordedMessage] = []
    if system:
        prompt.append(RecordedMessage(role="system", text=as_text(system)))
    sent = as_objects(_json(first(facts.get("gen_ai.input.messages"), facts.get("gen_ai.prompt"))))
    prompt.extend(_message(message) for message in sent)
    received = as_objects(
        _json(first(facts.get("gen_ai.output.messages"), facts.get("gen_ai.completion")))
    )
    return tuple(prompt), (_message(received[0], role="assistant") if received else None)


def _message(message: Object, *, role: str = "user") -> RecordedMessage:
    texts: list[str] = []
    calls: list[RecordedToolCall] = []
    call_id: str | None = None
    for part in as_objects(message.get("parts")):
        match part.get("type"):
            case "tool_call":
                calls.append(
                    RecordedToolCall(
                        id=as_name(part.get("id"), default=f"call_{len(calls)}"),
                        name=as_name(part.get("name"), default="tool"),
                        arguments=arguments_text(part.get("arguments")),
                    )
                )
            case "tool_call_response":
                call_id = as_name(part.get("id")) or None
                texts.append(as_text(first(part.get("response"), part.get("result"))))
            case "reasoning" | "thinking":
                continue
            case _:
                texts.append(as_text(part))
    if not texts and not calls:
        texts.append(as_text(message.get("content")))
    return RecordedMessage(
        role=as_name(message.get("role"), default=role),
        text="\n".join(text for text in texts if text),
        tool_calls=tuple(calls),
        call_id=call_id,
    )


@dataclass(slots=True)
class _Thread:
    """One conversation: its calls and tools."""

    name: str
    agent: str = ""
    parent: _Thread | None = None
    #: The tool span that the agent runs under, if any.
    started_by: str = ""
    calls: list[_Span] = field(default_factory=list)
    tools: list[_Span] = field(default_factory=list)
    children: dict[str, str] = field(default_factory=dict)

    def imported(self, options: ImportOptions) -> Iterator[Imported]:
        conversation = Conversation()
        order = sorted(self.calls, key=lambda span: (span.begun_s, span.ended_s, span.key))
        chain = Chain()
        for span in order:
            chain.restart([conversation.known(message) for message in span.prompt])
            answer = None if span.answer is None else conversation.known(span.answer)
            if span.tools and not conversation.tool_definitions:
                conversation.tool_definitions = read_definitions(span.tools)
            conversation.calls.append(
                Call(
                    prompt=chain.snapshot(),
                    answer=answer,
                    input_tokens=span.input_tokens,
                    output_tokens=span.output_tokens,
                    cached_tokens=span.cached_tokens,
                    begun_s=span.begun_s,
                    ended_s=span.ended_s,
                    ttft_s=span.ttft_s,
                )
            )
        self._place_tools(conversation.calls)
        begun = order[0].begun_s
        owner = self.parent
        recording = conversation.recording(
            session_id=self.name,
            source=options.source or order[0].service or "otel",
            keeps_text=options.keeps_text,
            agent=self.agent or None,
            model=order[0].model or None,
            token_source={"input": "recorded", "output": "recorded", "result": None},
            parent=None if owner is None else owner.name,
            parent_t_s=None if owner is None else max(0.0, round(begun - owner.begun_s, 6)),
        )
        if recording is not None:
            yield Imported(recording=recording, epoch_s=begun)

    @property
    def begun_s(self) -> float:
        return min(span.begun_s for span in self.calls)

    def _place_tools(self, calls: Sequence[Call]) -> None:
        for span in sorted(self.tools, key=lambda s: (s.begun_s, s.ended_s, s.key)):
            before = [
                c for c in calls if c.ended_s is not None and c.ended_s <= span.begun_s + 1e-3
            ]
            if not before:
                continue
            before[-1].tools.append(
                RecordedTool(
                    name=span.name,
                    duration_s=round(span.ended_s - span.begun_s, 6),
                    result_tokens=span.result_tokens,
                    command=span.command,
                    call_id=span.call_id or None,
                    is_error=span.is_error,
                    child=self.children.get(span.key),
                )
            )


def _threads(spans: dict[str, _Span]) -> list[_Thread]:
    """Conversations with at least one call, parents before their sub-agents."""
    threads: dict[str, _Thread] = {}
    for span in sorted(spans.values(), key=lambda s: (s.begun_s, s.key)):
        if span.kind not in ("call", "tool") or (span.kind == "call" and span.input_tokens is None):
            continue
        agents = _agents_above(span, spans)
        thread = _thread(agents, span, threads, spans)
        (thread.calls if span.kind == "call" else thread.tools).append(span)
    found = [thread for thread in threads.values() if thread.calls]
    for thread in found:
        while thread.parent is not None and not thread.parent.calls:
            thread.parent = thread.parent.parent
        if thread.parent is not None and thread.started_by:
            thread.parent.children[thread.started_by] = thread.name
    return found


def _agents_above(span: _Span, spans: dict[str, _Span]) -> list[_Span]:
    """The agents that a span runs under, outermost first."""
    found: list[_Span] = []
    seen: set[str] = set()
    key = span.parent
    while key in spans and key not in seen:
        seen.add(key)
        if spans[key].kind == "agent":
            found.append(spans[key])
        key = spans[key].parent
    found.reverse()
    return found


def _thread(
    agents: Sequence[_Span], span: _Span, threads: dict[str, _Thread], spans: dict[str, _Span]
) -> _Thread:
    base = span.conversation or (agents[0].conversation if agents else "") or span.trace
    thread = threads.setdefault(base, _Thread(base, agent=agents[0].name if agents else ""))
    for agent in agents[1:]:
        name = f"{base}/{agent.key.rsplit('/', 1)[-1]}"
        known = threads.get(name)
        if known is None:
            known = _Thread(name, agent=agent.name, parent=thread)
            above = spans.get(agent.parent)
            known.started_by = above.key if above is not None and above.kind == "tool" else ""
            threads[name] = known
        thread = known
    return thread
