"""OpenTelemetry GenAI spans, as OTLP JSON: a document, or a line an export as collectors write it.

`chat`, `text_completion` and `generate_content` spans are LLM calls, `execute_tool` spans tool
calls, `invoke_agent` spans agents; the older names of OpenLLMetry and OpenInference are understood,
and what the Python SDK's console exporter prints, and JavaScript's spans as they are. Of calls
inside of calls the innermost counts. A conversation is the nearest agent span above a call (or
`gen_ai.conversation.id`, or a trace); an agent below another agent is its sub-agent, one beside
another has its own. A tool belongs to the last call of its conversation that ended before it began,
or that it ran inside of: such a call ends where its tools begin. Calls inside of a tool are a
sub-agent's, and a tool inside of a tool without any is the same once more. Spans come in any order,
so all that matters of them is held until the end of the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import read_definitions
from agentsched_bench.workload.importers.draft import Call, Chain, Conversation, Imported
from agentsched_bench.workload.importers.files import InputFile, OnError, values
from agentsched_bench.workload.importers.loose import flat
from agentsched_bench.workload.importers.otel_spans import Span, is_spans, read_span, spans_in
from agentsched_bench.workload.trace import RecordedTool, TraceError

#: Values at the beginning of a file by which it is known.
_HEAD_MAX: Final = 20
#: Clocks of spans agree this well.
_SLACK_S: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Otel:
    """Reads OTLP JSON with GenAI spans."""

    name: str = "otel"
    title: str = "OpenTelemetry GenAI spans (OTLP JSON)"

    def claims(self, head: Sequence[Any]) -> bool:
        # Metrics and logs may stand before the first span.
        return any(map(is_spans, flat(head)[:_HEAD_MAX]))

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        spans: dict[str, Span] = {}
        for file in files:
            is_found = False
            for found in values(file, on_error=on_error):
                for span, resource in spans_in(found.value):
                    read = read_span(span, resource, keeps_text=options.keeps_text)
                    if read is not None:
                        is_found = True
                        spans[read.key] = read
            if not is_found:
                on_error(TraceError("no span in it", path=file.path))
        _keep_innermost(spans)
        frames = _frames(spans)
        _keep_outermost(spans, frames)
        _leave_out_waiting(spans)
        threads = _threads(spans, frames)
        if spans and not threads:
            path = files[0].path
            on_error(TraceError("no span of an LLM call with its tokens in it", path=path))
        for thread in threads:
            yield from thread.imported(options)


def _keep_innermost(spans: dict[str, Span]) -> None:
    """A call around other calls is none: a framework's frame, an agent, or the same call twice."""
    inside: dict[str, list[Span]] = {}
    for span in spans.values():
        if span.kind != "call":
            continue
        seen = {span.key}
        key = span.parent
        while key in spans and key not in seen:
            seen.add(key)
            if spans[key].kind == "call":
                inside.setdefault(key, []).append(span)
            key = spans[key].parent
    for key, calls in inside.items():
        frame = spans[key]
        if len(calls) == 1 and not calls[0].prompt and not frame.is_guess:
            calls[0].prompt, calls[0].answer = frame.prompt, calls[0].answer or frame.answer
        frame.kind = "agent" if frame.is_guess else ""


def _nearest(span: Span, spans: dict[str, Span]) -> Span | None:
    """The agent or the tool that a span runs under, the innermost one."""
    seen = {span.key}
    key = span.parent
    while key in spans and key not in seen:
        seen.add(key)
        if spans[key].kind in ("agent", "tool"):
            return spans[key]
        key = spans[key].parent
    return None


def _frames(spans: dict[str, Span]) -> set[str]:
    """Tools that ask models: sub-agents of programs that have no spans for those."""
    asking = [_nearest(span, spans) for span in spans.values() if _is_asked(span)]
    direct = {above.key for above in asking if above is not None and above.kind == "tool"}
    found: set[str] = set()
    for key in direct:
        outer = spans[key]
        seen = {key}
        while (above := _nearest(outer, spans)) is not None and above.kind == "tool":
            if above.key in direct or above.key in seen:
                break
            seen.add(above.key)
            outer = above
        found.add(outer.key)
    return found


def _keep_outermost(spans: dict[str, Span], frames: set[str]) -> None:
    """A framework, its client of a tool and the tool's server may all have a span for one call."""
    inner: list[Span] = []
    for span in spans.values():
        above = _nearest(span, spans) if span.kind == "tool" else None
        if above is not None and above.kind == "tool" and above.key not in frames:
            inner.append(span)
    for span in inner:
        span.kind = ""


def _leave_out_waiting(spans: dict[str, Span]) -> None:
    """A tool took as long as it ran; that somebody was asked before is part of the pause alone."""
    for span in spans.values():
        tool = spans.get(span.parent) if span.kind == "execution" else None
        if tool is not None and tool.kind == "tool":
            tool.begun_s, tool.ended_s = span.begun_s, span.ended_s


@dataclass(slots=True)
class _Thread:
    """One conversation: its calls and tools."""

    name: str
    agent: str = ""
    parent: _Thread | None = None
    #: The tool span that the agent runs under, if any.
    started_by: str = ""
    calls: list[Span] = field(default_factory=list)
    tools: list[Span] = field(default_factory=list)
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
                    reasoning_tokens=span.reasoning_tokens,
                    begun_s=span.begun_s,
                    ended_s=span.ended_s,
                    ttft_s=span.ttft_s,
                )
            )
        self._place_tools(list(zip(order, conversation.calls, strict=True)))
        begun = order[0].begun_s
        owner = self.parent
        recording = conversation.recording(
            session_id=self.name,
            source=options.source or order[0].service or "otel",
            keeps_text=options.keeps_text,
            agent=self.agent or None,
            model=order[0].model or None,
            token_source=_token_source(order),
            parent=None if owner is None else owner.name,
            parent_t_s=None if owner is None else max(0.0, round(begun - owner.begun_s, 6)),
        )
        if recording is not None:
            yield Imported(recording=recording, epoch_s=begun)

    @property
    def begun_s(self) -> float:
        return min(span.begun_s for span in self.calls)

    def _place_tools(self, calls: Sequence[tuple[Span, Call]]) -> None:
        for span in sorted(self.tools, key=lambda s: (s.begun_s, s.ended_s, s.key)):
            found = next((pair for pair in reversed(calls) if _may_ask(pair[0], span)), None)
            if found is None:
                continue
            asking, call = found
            if not _is_over(asking, span):
                call.ended_s = min(asking.ended_s, span.begun_s, call.ended_s or span.begun_s)
            call.tools.append(
                RecordedTool(
                    name=span.name,
                    duration_s=None if span.is_untimed else round(span.ended_s - span.begun_s, 6),
                    result_tokens=span.result_tokens,
                    command=span.command,
                    call_id=span.call_id or None,
                    is_error=span.is_error,
                    child=self.children.get(span.key),
                )
            )


def _may_ask(call: Span, tool: Span) -> bool:
    """Whether a tool began after a call, or ran beside its answer, from beginning to end."""
    is_beside = tool.parent in (call.parent, call.key)
    is_inside = call.begun_s + _SLACK_S < tool.begun_s and tool.ended_s <= call.ended_s + _SLACK_S
    return _is_over(call, tool) or (is_beside and is_inside)


def _is_over(call: Span, tool: Span) -> bool:
    return call.ended_s <= tool.begun_s + _SLACK_S


def _token_source(calls: Sequence[Span]) -> dict[str, str | None]:
    def of(counted: int) -> str:
        whole = counted == len(calls)
        return "recorded" if whole else ("recorded, partly" if counted else "estimated")

    return {
        "input": of(sum(call.input_tokens is not None for call in calls)),
        "output": of(sum(call.output_tokens is not None for call in calls)),
        "result": None,
    }


def _threads(spans: dict[str, Span], frames: set[str]) -> list[_Thread]:
    """Conversations with at least one call, parents before their sub-agents."""
    threads: dict[str, _Thread] = {}
    order = [
        span for span in sorted(spans.values(), key=lambda s: (s.begun_s, s.key)) if _counts(span)
    ]
    above = {span.key: _agents_above(span, spans, frames) for span in order}
    bases: dict[str, set[str]] = {}
    for span in order:
        if span.kind == "call":
            bases.setdefault(span.trace, set()).add(_base(span, above[span.key]))
    lanes = _lanes(order, above)
    for span in order:
        agents = above[span.key]
        base = _base(span, agents)
        told = bases.get(span.trace, set())
        if span.kind == "tool" and base == span.trace and len(told) == 1:
            # Of some programs' spans only the calls name their conversation.
            (base,) = told
        if agents:
            base = lanes.get((base, agents[0].key), base)
        thread = _thread(base, agents, threads, spans)
        (thread.calls if span.kind == "call" else thread.tools).append(span)
    found = [thread for thread in threads.values() if thread.calls]
    for thread in found:
        while thread.parent is not None and not thread.parent.calls:
            thread.parent = thread.parent.parent
        if thread.parent is not None and thread.started_by:
            thread.parent.children[thread.started_by] = thread.name
    return found


def _counts(span: Span) -> bool:
    return span.kind == "tool" or _is_asked(span)


def _is_asked(span: Span) -> bool:
    return span.kind == "call" and (span.input_tokens is not None or bool(span.prompt))


def _base(span: Span, agents: Sequence[Span]) -> str:
    return span.conversation or (agents[0].conversation if agents else "") or span.trace


def _lanes(order: Sequence[Span], above: dict[str, list[Span]]) -> dict[tuple[str, str], str]:
    """Names for agents beside others: by what would be their conversation, and their span.

    Agents without one above them go on with one conversation after the other, as in a handoff;
    those that ask while another one still does have their own.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for span in order:
        agents = above[span.key]
        if span.kind == "call" and agents and not any(one.kind == "tool" for one in agents):
            runs = found.setdefault(_base(span, agents), {})
            begun_s, ended_s = runs.get(agents[0].key, (span.begun_s, span.ended_s))
            runs[agents[0].key] = (begun_s, max(ended_s, span.ended_s))
    lanes: dict[tuple[str, str], str] = {}
    for base, runs in found.items():
        free_s = -math.inf
        for key, (begun_s, ended_s) in runs.items():
            if begun_s + _SLACK_S < free_s:
                lanes[base, key] = f"{base}/{key.rsplit('/', 1)[-1]}"
            else:
                free_s = ended_s
    return lanes


def _agents_above(span: Span, spans: dict[str, Span], frames: set[str]) -> list[Span]:
    """The agents that a span runs under, outermost first; also tools that are as good as one."""
    found: list[Span] = []
    seen: set[str] = set()
    key = span.parent
    while key in spans and key not in seen:
        seen.add(key)
        if spans[key].kind == "agent" or key in frames:
            found.append(spans[key])
        key = spans[key].parent
    found.reverse()
    return found


def _thread(
    base: str, agents: Sequence[Span], threads: dict[str, _Thread], spans: dict[str, Span]
) -> _Thread:
    is_own = bool(agents) and agents[0].kind == "agent"
    thread = threads.setdefault(base, _Thread(base, agent=agents[0].name if is_own else ""))
    for agent in agents[1:] if is_own else agents:
        name = f"{base}/{agent.key.rsplit('/', 1)[-1]}"
        known = threads.get(name)
        if known is None:
            known = _Thread(name, agent=agent.name, parent=thread)
            above = agent if agent.kind == "tool" else spans.get(agent.parent)
            known.started_by = above.key if above is not None and above.kind == "tool" else ""
            threads[name] = known
        thread = known
    return thread
