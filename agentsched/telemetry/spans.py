"""OpenTelemetry spans, projected from the journal: `invoke_agent` > `chat`, `execute_tool`.

One program is one trace: the client's, where its first request brought one, else one that every
replica derives from the program's id. Its span `invoke_agent` is open for as long as the program is
live, and goes out when it ends; each LLM call is a `chat` below it, each tool call an
`execute_tool`. A sub-agent inside a program has an `invoke_agent` of its own below its parent's; a
sub-program has a trace of its own that links to its parent's. A request with a `traceparent`
becomes a child of the client's span and links to its program's. Names: OpenTelemetry's semantic
conventions for generative AI.

No texts of prompts, answers or errors, and no keys: nothing of those is in the journal's events but
what an engine says in an error, and that is left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    CallId,
    Cancel,
    CancelReason,
    ConversationId,
    Dispatch,
    EngineReported,
    Instant,
    Lineage,
    Pin,
    ProgramClosed,
    ProgramId,
    Reject,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    TimerFired,
    ToolFinished,
    ToolName,
    ToolStarted,
    between,
    in_seconds,
)
from agentsched.telemetry.context import TraceContext, is_chosen, trace_of
from agentsched.telemetry.notes import Notes
from agentsched.telemetry.span import Span, Value

_TEXT_MAX: Final = 256
_TOOLS_MAX: Final = 256
_SUB_AGENTS_MAX: Final = 128
#: Calls whose tools have ended, of one program: a report about one of them may still come.
_ENDED_KEPT: Final = 16
#: Programs that are looked at in one turn to find those that are over.
_SWEEP: Final = 32


@dataclass(slots=True, kw_only=True)
class _Tool:
    tool: ToolName
    agent: Span
    begin: Instant
    is_reported: bool = False


@dataclass(slots=True, kw_only=True)
class _Program:
    agent: Span
    last_at: Instant
    #: Sub-agents inside the program, by conversation.
    subs: dict[ConversationId, Span] = field(default_factory=dict)
    tools: dict[CallId, _Tool] = field(default_factory=dict)
    #: Calls whose tools have ended, the latest last: each is one tool.
    ended: dict[CallId, None] = field(default_factory=dict)
    live_steps: int = 0
    is_over: bool = False
    inference_calls: int = 0
    tool_calls: int = 0


@dataclass(slots=True, kw_only=True)
class _Step:
    span: Span
    program: ProgramId
    conversation: ConversationId
    agent: Span
    arrived: Instant
    dispatched: Instant | None = None
    started: Instant | None = None
    #: It was told to make way for other work.
    is_yielding: bool = False


class SpanSink:
    """An `EventSink` that makes spans and hands each over when it has ended.

    Memory is bounded by live steps and `programs_max` programs; the one that is idle for longest
    ends early. `emit` must not block.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        notes: Notes,
        emit: Callable[[Span], None],
        *,
        provider: str,
        sample: float = 1.0,
        programs_max: int = 20_000,
        is_exported: bool = True,
        random: Random | None = None,
    ) -> None:
        """Spans that are not to be exported serve metrics alone: no engine is told of them."""
        self._is_exported = is_exported
        self._scheduler = scheduler
        self._notes = notes
        self._emit = emit
        self._provider = provider
        self._sample = sample
        self._programs_max = programs_max
        self._random = random or Random()
        #: The one idle for longest first; those at work may stand anywhere.
        self._programs: OrderedDict[ProgramId, _Program] = OrderedDict()
        self._steps: dict[StepId, _Step] = {}

    @property
    def open_programs(self) -> int:
        """Programs whose span is open."""
        return len(self._programs)

    def write(self, entry: JournalEntry) -> None:
        """Take in one turn of the scheduler."""
        event, now = entry.event, entry.now
        match event:
            case StepArrived():
                self._arrive(event, now)
            case StepStarted():
                self._start(event.step, now)
            case StepFinished():
                for command in entry.commands:
                    if isinstance(command, Pin):
                        self._pinned(event, command, now)
                self._finish(event, now)
            case StepFailed() | StepCancelled():
                self._fail(event, now)
            case ToolStarted():
                self._tool_started(event, now)
            case ToolFinished():
                self._tool_finished(event, now)
            case ProgramClosed():
                self._say_over(event.program, now)
            case EngineReported() | TimerFired():
                self._sweep(now)
            case _:
                pass
        for command in entry.commands:
            match command:
                case Dispatch():
                    self._dispatch(command, now)
                case Cancel(reason=CancelReason.YIELDED):
                    yielding = self._steps.get(command.step)
                    if yielding is not None:
                        yielding.is_yielding = True
                case Reject():
                    self._end_step(command.step, now, error=command.reason.value)
                case _:
                    pass

    def close(self, now: Instant) -> None:
        """End every span that is open: this process ends."""
        for step in list(self._steps):
            self._end_step(step, now, error="shutdown")
        for program in list(self._programs):
            self._end_program(program, now)

    # -- programs ----------------------------------------------------------------------------------

    def _program(self, event: StepArrived, now: Instant) -> _Program:
        program = self._programs.get(event.program)
        if program is not None:
            self._programs.move_to_end(event.program)
            program.last_at = now
            return program
        if len(self._programs) >= self._programs_max:
            self._end_program(next(iter(self._programs)), now)
        note = self._notes.of(event.step)
        theirs = note.theirs if note is not None else None
        trace = theirs.trace_id if theirs is not None else trace_of(event.program)
        above = self._programs.get(event.parent) if event.parent is not None else None
        if theirs is not None:
            is_sampled = theirs.is_sampled
        elif above is not None:
            is_sampled = above.agent.context.is_sampled  # a link should lead somewhere
        else:
            is_sampled = is_chosen(trace, self._sample)
        agent = self._agent_span(event, now, parent=theirs, trace=trace, is_sampled=is_sampled)
        if above is not None:
            agent.links.append(above.agent.context)
        program = _Program(agent=agent, last_at=now)
        self._programs[event.program] = program
        return program

    def _agent_span(
        self,
        event: StepArrived,
        now: Instant,
        *,
        parent: TraceContext | None,
        trace: int,
        is_sampled: bool,
    ) -> Span:
        name = event.agent[:_TEXT_MAX]
        span = Span(
            name=f"invoke_agent {name}" if name else "invoke_agent",
            context=self._below(TraceContext(trace, 1, is_sampled)),
            parent=parent,
            begin=now,
        )
        span.attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": self._provider,
            "gen_ai.agent.id": str(event.program),
            "gen_ai.conversation.id": str(event.conversation),
            "agentsched.tenant": str(event.tenant),
        }
        if name:
            span.attributes["gen_ai.agent.name"] = name
        return span

    def _agent_of(self, event: StepArrived, program: _Program, now: Instant) -> Span:
        """The agent that a step belongs to: the program's, or a sub-agent's inside it."""
        known = program.subs.get(event.conversation)
        if known is not None:
            return known
        if event.lineage is not Lineage.SPAWNED or event.parent_conversation is None:
            return program.agent
        if len(program.subs) >= _SUB_AGENTS_MAX:
            return program.agent
        above = program.subs.get(event.parent_conversation, program.agent)
        context = program.agent.context
        span = self._agent_span(
            event,
            now,
            parent=above.context,
            trace=context.trace_id,
            is_sampled=context.is_sampled,
        )
        program.subs[event.conversation] = span
        return span

    def _say_over(self, key: ProgramId, now: Instant) -> None:
        program = self._programs.get(key)
        if program is None:
            return
        program.is_over = True
        if not program.live_steps:
            self._end_program(key, now)

    def _sweep(self, now: Instant) -> None:
        """End programs that the scheduler has forgotten without an event of its own."""
        live = self._scheduler.programs
        for key in [k for _, k in zip(range(_SWEEP), self._programs, strict=False)]:
            if key not in live:
                self._end_program(key, now)
            elif self._programs[key].live_steps:
                self._programs.move_to_end(key)  # it is at work, and keeps nobody back
            else:
                break  # forgotten programs are idle for longer than any that is not

    def _end_program(self, key: ProgramId, now: Instant) -> None:
        program = self._programs.pop(key)
        for call in list(program.tools):
            self._end_tool(program, call, program.last_at, error="abandoned")
        end = program.last_at if program.last_at < now else now
        for sub in program.subs.values():
            self._end(sub, max(end, sub.begin))
        program.agent.attributes["agentsched.inference_calls"] = program.inference_calls
        program.agent.attributes["agentsched.tool_calls"] = program.tool_calls
        self._end(program.agent, end)

    # -- steps -------------------------------------------------------------------------------------

    def _arrive(self, event: StepArrived, now: Instant) -> None:
        if event.step in self._steps:
            return
        program = self._program(event, now)
        agent = self._agent_of(event, program, now)
        for call in event.answers:
            if call in program.tools:
                self._end_tool(program, call, now)
        program.live_steps += 1
        program.is_over |= event.is_last
        note = self._notes.of(event.step)
        theirs = note.theirs if note is not None else None
        above = theirs if theirs is not None else agent.context
        model = event.model[:_TEXT_MAX]
        span = Span(
            name=f"chat {model}" if model else "chat",
            context=self._below(above),
            parent=above,
            begin=now,
            is_client=True,
        )
        if theirs is not None:
            span.links.append(agent.context)
        span.attributes = {"gen_ai.operation.name": "chat"}
        if model:
            span.attributes["gen_ai.request.model"] = model
        if self._is_told(above):
            self._describe(span, event)
        if note is not None:
            span.attributes["agentsched.request.id"] = note.request_id
            if self._is_exported and (span.context.is_sampled or theirs is None):
                note.ours = span.context
        self._steps[event.step] = _Step(
            span=span,
            program=event.program,
            conversation=event.conversation,
            agent=agent,
            arrived=now,
        )

    def _describe(self, span: Span, event: StepArrived) -> None:
        found: dict[str, Value] = {
            "gen_ai.provider.name": self._provider,
            "gen_ai.agent.id": str(event.program),
            "gen_ai.conversation.id": str(event.conversation),
            "agentsched.step.id": str(event.step),
            "agentsched.step.class": event.step_class.value,
            "agentsched.lineage": event.lineage.value,
            "agentsched.tenant": str(event.tenant),
        }
        if event.agent:
            found["gen_ai.agent.name"] = event.agent[:_TEXT_MAX]
        if event.output_tokens_max is not None:
            found["gen_ai.request.max_tokens"] = event.output_tokens_max
        span.attributes |= found

    def _dispatch(self, command: Dispatch, now: Instant) -> None:
        step = self._steps.get(command.step)
        if step is None:
            return
        step.dispatched, step.started = now, None
        waited = in_seconds(between(step.arrived, now))
        step.span.attributes["agentsched.wait"] = waited
        if not self._is_told(step.span.context):
            return
        decision: dict[str, Value] = {
            "agentsched.engine": str(command.engine),
            "agentsched.order": command.order,
            "agentsched.place": command.place,
            "agentsched.pin": command.pin,
            "agentsched.bypassed": command.bypassed,
            "agentsched.wait": waited,
        }
        step.span.attributes |= decision
        step.span.happened("agentsched.dispatch", now, decision)

    def _start(self, key: StepId, now: Instant) -> None:
        step = self._steps.get(key)
        if step is not None and step.started is None and step.dispatched is not None:
            step.started = now
            to_first = in_seconds(between(step.dispatched, now))
            step.span.attributes["gen_ai.response.time_to_first_chunk"] = to_first
            if self._is_told(step.span.context):
                step.span.happened("agentsched.first_token", now, {})

    def _finish(self, event: StepFinished, now: Instant) -> None:
        step = self._steps.get(event.step)
        if step is None:
            return
        said = step.span.attributes
        said["gen_ai.usage.input_tokens"] = event.usage.prompt_tokens
        said["gen_ai.usage.output_tokens"] = event.usage.output_tokens
        if event.usage.cached_tokens is not None:
            said["gen_ai.usage.cache_read.input_tokens"] = event.usage.cached_tokens
        if event.finish_reason and self._is_told(step.span.context):
            said["gen_ai.response.finish_reasons"] = (event.finish_reason[:64],)
        program = self._programs.get(step.program)
        if program is not None:
            program.inference_calls += 1
            for call in event.tool_calls:
                self._open_tool(program, call.call_id, call.tool, step.agent, now)
        self._end_step(event.step, now)

    def _fail(self, event: StepFailed | StepCancelled, now: Instant) -> None:
        if isinstance(event, StepFailed) and event.is_retryable:
            step = self._steps.get(event.step)
            if step is not None:
                self._put_back(step, event, now)
            return
        self._end_step(event.step, now, error=error_type(event))

    def _put_back(self, step: _Step, event: StepFailed, now: Instant) -> None:
        """A try came to nothing; until there is another, it is at no engine."""
        step.dispatched = None
        for name in ("gen_ai.response.time_to_first_chunk", "agentsched.wait"):
            step.span.attributes.pop(name, None)
        if step.is_yielding:
            step.is_yielding = False
            step.span.happened("agentsched.yield", now, {})
        else:
            step.span.happened("agentsched.retry", now, {"error.type": error_type(event)})

    def _end_step(self, key: StepId, now: Instant, *, error: str = "") -> None:
        step = self._steps.pop(key, None)
        if step is None:
            return
        step.span.error = error
        self._end(step.span, now)
        program = self._programs.get(step.program)
        if program is None:
            return
        program.live_steps -= 1
        program.last_at = now
        self._programs.move_to_end(step.program)
        if program.is_over and not program.live_steps:
            self._end_program(step.program, now)

    # -- tools -------------------------------------------------------------------------------------

    def _open_tool(
        self, program: _Program, call: CallId, tool: ToolName, agent: Span, now: Instant
    ) -> _Tool:
        if len(program.tools) >= _TOOLS_MAX:
            self._end_tool(program, next(iter(program.tools)), now, error="abandoned")
        program.ended.pop(call, None)  # some engines number the calls of each answer anew
        opened = program.tools[call] = _Tool(tool=tool, agent=agent, begin=now)
        return opened

    def _tool_started(self, event: ToolStarted, now: Instant) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        self._programs.move_to_end(event.program)  # as the scheduler counts who is idle
        tool = program.tools.get(event.call_id)
        if tool is None:
            if event.call_id in program.ended:
                return
            tool = self._open_tool(program, event.call_id, event.tool, program.agent, now)
        elif not tool.is_reported:
            tool.begin = now
        tool.is_reported = True

    def _tool_finished(self, event: ToolFinished, now: Instant) -> None:
        program = self._programs.get(event.program)
        if program is None:
            return
        self._programs.move_to_end(event.program)
        tool = program.tools.get(event.call_id)
        if tool is None:
            if event.call_id in program.ended:
                return  # its result came first, or it was told twice: it is no second tool
            tool = self._open_tool(program, event.call_id, event.tool, program.agent, now)
        if event.took is not None:
            tool.begin = Instant(max(0, now - event.took))
            tool.is_reported = True
        error = "tool_error" if event.is_error else ""
        program.last_at = now
        self._end_tool(program, event.call_id, now, error=error)

    def _end_tool(self, program: _Program, key: CallId, now: Instant, *, error: str = "") -> None:
        tool = program.tools.pop(key)
        program.tool_calls += 1
        if not key.startswith("report:"):  # that is a tool without a call, which may run again
            program.ended[key] = None
            if len(program.ended) > _ENDED_KEPT:
                del program.ended[next(iter(program.ended))]
        name = tool.tool.partition(" ")[0][:_TEXT_MAX]
        context = tool.agent.context
        span = Span(
            name=f"execute_tool {name}" if name else "execute_tool",
            context=self._below(context),
            parent=context,
            begin=tool.begin,
            error=error,
        )
        span.attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
        if self._is_told(context):
            span.attributes |= {
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": str(key)[:_TEXT_MAX],
                # Else it is the time from the answer to the request that brings the result.
                "agentsched.tool.is_reported": tool.is_reported,
            }
        self._end(span, max(now, tool.begin))

    def _pinned(self, event: StepFinished, pin: Pin, now: Instant) -> None:
        """Its answer is retained: that is told with the call that led to it."""
        step = self._steps.get(event.step)
        if step is not None and step.conversation == pin.conversation:
            step.span.attributes["agentsched.pin.ttl"] = in_seconds(between(now, pin.expires_at))

    # -- spans -------------------------------------------------------------------------------------

    def _below(self, above: TraceContext) -> TraceContext:
        """A new span's place below another one. Metrics alone need no ids."""
        if not self._is_exported:
            return above
        return TraceContext(above.trace_id, self._random.getrandbits(64) or 1, above.is_sampled)

    def _is_told(self, context: TraceContext) -> bool:
        """Whether anybody will see the span's details; metrics need few of them."""
        return self._is_exported and context.is_sampled

    def _end(self, span: Span, now: Instant) -> None:
        span.end = now
        if span.error:
            span.attributes["error.type"] = span.error
        self._emit(span)


def error_type(event: StepFailed | StepCancelled) -> str:
    """A short word for what went wrong: the texts of engines may repeat what they were asked."""
    if isinstance(event, StepCancelled):
        return "cancelled"
    word, _, status = event.reason.partition(" ")
    if word == "status" and status.isdecimal() and len(status) == 3:
        return status
    return "engine_error"
