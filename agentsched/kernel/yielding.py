"""Background work gives way: what an engine has not begun to answer goes back into the queue.

Batch steps fill gaps. When other work is held for an engine that computes some of them, the newest
are stopped and wait again, as if they had never been sent: no byte has reached their clients. Those
that began to answer run on, and so do those that a bound forced in, by their wait or by how many
went before them: its promise is kept once, and who is due would be sent again at once.
"""

from __future__ import annotations

from collections.abc import Collection

from agentsched.kernel.books import Books
from agentsched.model import Cancel, CancelReason, EngineId, Instant, StepClass, StepState


def make_way(books: Books, wanted: Collection[EngineId], *, now: Instant) -> list[Cancel]:
    """Stop batch steps on the engines that other work is held for, one for each step that waits."""
    engines = [e for e in books.engines.values() if e.background_steps and e.engine in wanted]
    if not engines:
        return []
    short = sum(s.step_class is not StepClass.BATCH for s in books.ready)
    short -= sum(s.is_yielding for engine in engines for s in engine.running.values())
    commands: list[Cancel] = []
    for engine in engines:
        for step in reversed(engine.running.values()):
            if len(commands) >= short:
                return commands
            is_idle_work = step.step_class is StepClass.BATCH and step.state is StepState.DISPATCHED
            if not is_idle_work or step.is_yielding or books.ready.is_due(step, now=now):
                continue
            step.is_yielding = True
            commands.append(Cancel(step=step.step, reason=CancelReason.YIELDED))
    return commands
