"""A dry run: what one more step would meet, decided by the very code that would decide it.

A twin of the scheduler is made, which has its own copy of whatever a turn may change; idle
programs and everything that never changes are shared with it. The policies are shared as well,
and the twin does not let them learn: their decisions are queries, so nothing remembers the dry run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    Instant,
    Lineage,
    Reject,
    StepArrived,
)

if TYPE_CHECKING:
    from agentsched.kernel.books import Books
    from agentsched.kernel.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What an engine would have to do for the step. Tokens; nanoseconds."""

    engine: EngineId
    is_up: bool
    #: Whether it answers nothing, so that what is new goes elsewhere.
    is_silent: bool
    running_steps: int
    missing_tokens: int
    prefill_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would happen to a step that came now.

    `verdict` is None for a step that would be held; then `held_for` says why, `ahead` how many
    waiting steps would go before it as things stand, and `due_at` when the wait bound would bring
    its turn whatever the policies say. `commands` are all that the turn would lead to.
    """

    verdict: Dispatch | Reject | None
    held_for: str = ""
    ahead: int = 0
    due_at: Instant | None = None
    engines: tuple[Outlook, ...] = ()
    commands: tuple[Command, ...] = ()


def rehearse(scheduler: Scheduler, event: StepArrived, *, now: Instant) -> Plan:
    """Handle `event` on a twin. Takes time that grows with live programs (10,000: some 0.1 s)."""
    twin = _twin(scheduler, event)
    engines = tuple(_outlooks(twin._books, event))
    commands = twin.handle(event, now=now)
    verdicts = [c for c in commands if isinstance(c, Dispatch | Reject)]
    verdict = next((c for c in verdicts if c.step == event.step), None)
    if verdict is not None:
        return Plan(verdict=verdict, engines=engines, commands=commands)
    books = twin._books
    record = books.steps.get(event.step)
    if record is None:  # a duplicate of a live step, or of what the kernel does not know
        return Plan(verdict=None, held_for="ignored", engines=engines, commands=commands)
    in_turn = [step.step for step in twin._guarded.in_turn(now=now)]
    return Plan(
        verdict=None,
        held_for=record.held_for or "no engine has room",
        ahead=in_turn.index(event.step) if event.step in in_turn else 0,
        due_at=books.ready.due_at(record),
        engines=engines,
        commands=commands,
    )


def _twin(scheduler: Scheduler, event: StepArrived) -> Scheduler:
    policies, books = scheduler.policies, scheduler._books
    stories = scheduler._stories  # a dry run tells none
    shared = [policies, scheduler.latest, stories, books.graph_builder, *_lasting(scheduler, event)]
    shared += [getattr(policies, point) for point in policies.names]
    twin = copy.deepcopy(scheduler, {id(part): part for part in shared})
    twin._guarded.stop_learning()
    twin.stop_telling()
    return twin


def _lasting(scheduler: Scheduler, event: StepArrived) -> Iterator[object]:
    """What no turn of the twin changes, and idle programs that this one cannot reach."""
    books, is_planned = scheduler._books, scheduler._retention.is_planned
    yield books.limits
    for step in books.steps.values():
        yield step.arrived
    near = {step.program for step in books.steps.values()} | {event.program, event.parent}
    for program in books.programs.values():
        yield program.story
        conversations = program.conversations.values()
        # A parent's record changes with its children, which may come and go in this turn.
        is_reached = program.program in near or bool(program.children)
        # Time alone may bring a warm-up.
        is_reached |= any(c.is_resident or is_planned(c.conversation) for c in conversations)
        if is_reached:
            for conversation in conversations:
                yield conversation.prefixes
        else:
            yield program
            yield from conversations


def _outlooks(books: Books, event: StepArrived) -> Iterator[Outlook]:
    conversation = books.conversations.get(event.conversation)
    is_kept = conversation is not None and conversation.is_resident
    is_kept = is_kept and event.lineage is not Lineage.COMPACTS
    for engine in books.engines.values():
        if not engine.serves(event.model):
            continue
        if conversation and is_kept and conversation.engine == engine.engine:
            missing = max(0, event.prompt_tokens - conversation.context_tokens)
        else:
            missing = books.residency.missing_tokens(
                engine.engine, prefixes=event.prefixes, prompt_tokens=event.prompt_tokens
            )
        yield Outlook(
            engine=engine.engine,
            is_up=engine.is_up,
            is_silent=engine.silent_since is not None,
            running_steps=engine.running_steps,
            missing_tokens=missing,
            prefill_ns=round(missing * engine.prefill_ns),
        )
