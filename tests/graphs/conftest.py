"""Events in short, and a course of them that anything may happen in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentsched.model import (
    CallId,
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    Event,
    Instant,
    Lineage,
    Prefix,
    PrefixId,
    ProgramClosed,
    ProgramId,
    Reject,
    RejectReason,
    StepArrived,
    StepFinished,
    StepId,
    StepStarted,
    TenantId,
    ToolCall,
    ToolName,
    Usage,
)
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.graph import ExecutionGraph

SECOND = 1_000_000_000


class Course:
    """Feeds a builder, a second of virtual time for each event, and checks it after each."""

    def __init__(self, builder: GraphBuilder | None = None) -> None:
        self.builder = builder or GraphBuilder()
        self.now = Instant(0)
        self.fed: list[tuple[Event | Sequence[Command], Instant]] = []

    def pass_time(self, seconds: float) -> None:
        self.now = Instant(self.now + round(seconds * SECOND))

    def feed(self, event: Event) -> None:
        self.builder.observe(event, now=self.now)
        self.fed.append((event, self.now))
        self.builder.check()

    def decide(self, *commands: Command) -> None:
        self.builder.decided(commands, now=self.now)
        self.fed.append((commands, self.now))
        self.builder.check()

    def arrive(self, step: str, conversation: str = "c", program: str = "p", **more: Any) -> None:
        prefixes = more.pop("prefixes", ())
        self.feed(
            StepArrived(
                step=StepId(step),
                program=ProgramId(program),
                conversation=ConversationId(conversation),
                tenant=TenantId("t"),
                prompt_tokens=more.pop("prompt_tokens", 100),
                lineage=more.pop("lineage", Lineage.EXTENDS),
                answers=tuple(CallId(call) for call in more.pop("answers", ())),
                prefixes=tuple(Prefix(prefix=PrefixId(p), tokens=9) for p in prefixes),
                agent=more.pop("agent", "agent"),
                **more,
            )
        )

    def dispatch(self, step: str, engine: str = "e") -> None:
        self.decide(Dispatch(step=StepId(step), engine=EngineId(engine), priority=0))

    def reject(self, step: str) -> None:
        self.decide(Reject(step=StepId(step), reason=RejectReason.QUEUE_FULL))

    def start(self, step: str) -> None:
        self.feed(StepStarted(step=StepId(step)))

    def finish(self, step: str, *tools: str, prefix: str | None = None) -> None:
        """Tools are `call:name`, or a name that is its own call."""
        pairs = [tool.partition(":") for tool in tools]
        self.feed(
            StepFinished(
                step=StepId(step),
                usage=Usage(prompt_tokens=100, cached_tokens=60, output_tokens=5),
                tool_calls=tuple(
                    ToolCall(call_id=CallId(call), tool=ToolName(name or call))
                    for call, _, name in pairs
                ),
                finish_reason="tool_calls" if tools else "stop",
                prefix=Prefix(prefix=PrefixId(prefix), tokens=9) if prefix else None,
            )
        )

    def step(self, step: str, *tools: str, conversation: str = "c", **more: Any) -> None:
        """A whole step: a second in the queue, one of prefill, one of decode."""
        self.arrive(step, conversation, **more)
        self.pass_time(1)
        self.dispatch(step)
        self.pass_time(1)
        self.start(step)
        self.pass_time(1)
        self.finish(step, *tools)

    def close(self, program: str = "p") -> None:
        self.feed(ProgramClosed(program=ProgramId(program), reason="test"))

    def graph(self, program: str = "p") -> ExecutionGraph:
        graph = self.builder.graph(ProgramId(program))
        assert graph is not None
        return graph

    def edges(self, program: str = "p") -> set[tuple[str, str, str]]:
        return {
            (source.partition(":")[2], target.partition(":")[2], kind.value)
            for source, target, kind in self.graph(program).edges()
        }


@pytest.fixture
def course() -> Course:
    return Course()


@pytest.fixture(scope="session")
def make_course() -> type[Course]:
    return Course
