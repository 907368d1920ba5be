"""What must hold between the scheduler's records, whatever happened: for tests and simulations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentsched.model import ConversationId, StepClass, StepState

if TYPE_CHECKING:
    from agentsched.kernel.books import Books


def check(books: Books) -> None:
    """Assert every invariant that ties the records together."""
    waiting = {s.step for s in books.steps.values() if s.state is StepState.WAITING}
    assert waiting == {s.step for s in books.ready}
    assert all(books._is_newcomer(s) for s in books.ready if s.step in books.ready.newcomers)
    books.ready.check()
    assert len(books.steps) >= len(waiting)
    for record in books._engines.values():
        running = list(record.running.values())
        assert all(s.engine == record.engine for s in running)
        assert all(s.state in (StepState.DISPATCHED, StepState.RUNNING) for s in running)
        assert record.running_tokens == sum(s.prompt_tokens for s in running)
        background = [s for s in running if s.step_class is StepClass.BATCH]
        assert record.background_steps == len(background)
        starting = [s for s in running if s.state is StepState.DISPATCHED]
        assert record.starting_tokens == sum(s.prompt_tokens for s in starting)
        assert record.pinned_tokens == books.pins.tokens(record.engine)
        record.cold.check()
    on_engines = {step for e in books._engines.values() for step in e.running}
    assert on_engines | waiting == set(books.steps)
    assert not on_engines & waiting
    books._closing.check(books._programs)
    assert len(books._programs) <= books.limits.programs_max
    # Steps that come back are let in beyond the limit; their number is bounded by what ran.
    assert sum(not s.attempts for s in books.ready) <= books.limits.ready_steps_max
    _check_programs(books)
    _check_shares(books)
    books.pins.check()


def _check_shares(books: Books) -> None:
    books.shares.check()
    assert sorted(books.shares.who_waits()) == sorted({step.tenant for step in books.ready})
    for key, account in books.shares.accounts().items():
        programs = [p for p in books._programs.values() if p.tenant == key]
        assert set(account.live) == {p.program for p in programs}
        assert account.live_children == sum(account.live.values())
        kept = sum(c.kept_tokens for p in programs for c in p.conversations.values())
        assert account.idle_tokens == kept
        steps = [s for s in books.steps.values() if s.tenant == key]
        running = [s for s in steps if s.state is not StepState.WAITING]
        assert account.waiting_steps == len(steps) - len(running)
        batch = sum(s.step_class is StepClass.BATCH for s in steps)
        batch -= sum(s.step_class is StepClass.BATCH for s in running)
        assert account.waiting_batch == batch
        assert account.running_steps == len(running)
        assert account.pending_uncached == sum(s.uncached_charged for s in running)
        assert account.pending_output == sum(s.output_charged for s in running)


def _check_programs(books: Books) -> None:
    active: dict[ConversationId, int] = {}
    running: dict[ConversationId, int] = {}
    for step in books.steps.values():
        if step.state is not StepState.WAITING:
            running[step.conversation] = running.get(step.conversation, 0) + 1
        assert step.program in books._programs
        assert step.conversation in books._programs[step.program].conversations
        active[step.conversation] = active.get(step.conversation, 0) + 1
    idle = [p for p in books._programs.values() if not p.active_steps]
    assert books._unserved.keys() == {p.program for p in idle if not p.was_served}
    for program in books._programs.values():
        assert all(books._programs[key].parent == program.program for key in program.children)
        conversations = program.conversations.values()
        assert program.active_steps == sum(c.active_steps for c in conversations)
        for conversation in conversations:
            assert conversation.active_steps == active.get(conversation.conversation, 0)
            assert (conversation.paused_at is None) or not conversation.active_steps
            assert conversation.running_steps == running.get(conversation.conversation, 0)
            assert books.conversations[conversation.conversation] is conversation
    books.residency.check()
    for conversation in books.conversations.values():
        home = books.residency.home(conversation.conversation)
        assert home == (conversation.engine if conversation.is_resident else None)
    for engine in books._engines:
        resting = [
            key
            for key in books.residency.conversations(engine)
            if not books.conversations[key].running_steps
        ]
        assert list(books.residency.resting(engine)) == resting
    known = [key for p in books._programs.values() for key in p.conversations]
    assert sorted(known) == sorted(books.conversations)
    for pin in books.pins:
        assert pin.conversation in books._programs[pin.program].conversations
