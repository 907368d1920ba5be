"""What a policy that takes over at run time is told: the present, as the events that made it.

The whole past is not kept, and a policy only learns from events. So the books are retold: the
engines, each program with its conversations as far as they got, and the steps that wait and run.
What was learnt from programs that ended is not in the books, and is learnt anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentsched.kernel.books import Books
from agentsched.kernel.records import ConversationRecord, EngineRecord, ProgramRecord
from agentsched.model import (
    EngineDrained,
    EngineReported,
    Event,
    Instant,
    Lineage,
    Prefix,
    ProgramOpened,
    StepArrived,
    StepFinished,
    StepId,
    StepStarted,
    ToolCall,
    Usage,
)


def briefing(books: Books) -> Iterator[tuple[Event, Instant]]:
    """Events that bring a newcomer up to date, each with when it happened, oldest first."""
    told: list[tuple[Instant, Event]] = []
    for program in books.programs.values():
        told += _program(program)
    for step in books.steps.values():
        told.append((step.arrived_at, step.arrived))
        if step.started_at is not None:
            told.append((step.started_at, StepStarted(step=step.step)))
    # Stable: what has one instant stays in the order in which it was told.
    told.sort(key=lambda pair: pair[0])
    start = told[0][0] if told else Instant(0)
    for engine in books.engines.values():
        if engine.is_alive:
            report = EngineReported(
                engine=engine.engine, capabilities=engine.capabilities, load=engine.load
            )
            yield report, start
        if engine.is_draining:
            yield _drained(engine), start
    for at, event in told:
        yield event, at


def _drained(engine: EngineRecord) -> EngineDrained:
    return EngineDrained(engine=engine.engine, is_draining=True, is_lasting=engine.is_drain_lasting)


def _program(program: ProgramRecord) -> Iterator[tuple[Instant, Event]]:
    opened = ProgramOpened(
        program=program.program,
        tenant=program.tenant,
        parent=program.parent,
        agent=program.agent,
        deadline=program.deadline,
    )
    yield program.opened_at, opened
    for conversation in program.conversations.values():
        if conversation.steps_done:
            yield from _conversation(program, conversation)


def _conversation(
    program: ProgramRecord, conversation: ConversationRecord
) -> Iterator[tuple[Instant, Event]]:
    """Its steps so far, as one from the program's beginning to the end of the latest of them.

    When the conversation began is not in the books; at its end it would have taken no time at all.
    """
    at = conversation.paused_at if conversation.paused_at is not None else conversation.last_at
    step = StepId(f"briefing-{conversation.conversation}")
    yield (
        program.opened_at,
        StepArrived(
            step=step,
            program=program.program,
            conversation=conversation.conversation,
            tenant=program.tenant,
            prompt_tokens=conversation.context_tokens,
            prefixes=conversation.prefixes,
            parent=program.parent,
            parent_conversation=conversation.parent,
            agent=program.agent,
            deadline=program.deadline,
            # That there were several steps before is all that is left of them here.
            lineage=Lineage.EXTENDS if conversation.steps_done > 1 else Lineage.NEW,
        ),
    )
    # What it waits for; whoever came back brought the answers, and a last word asked for nothing.
    is_away = not (conversation.active_steps or conversation.is_over)
    calls = conversation.tools.items() if is_away else ()
    prefix: Prefix | None = conversation.prefixes[-1] if conversation.prefixes else None
    yield (
        at,
        StepFinished(
            step=step,
            usage=Usage(prompt_tokens=conversation.context_tokens),
            prefix=prefix,
            tool_calls=tuple(ToolCall(call_id=call, tool=tool) for call, tool in calls),
            finish_reason="stop" if conversation.is_over else "tool_calls",
        ),
    )
