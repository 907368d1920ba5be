"""Background work gives way: what an engine has not begun to answer goes back into the queue.

Batch steps fill gaps. When other work is held for an engine that computes some of them, the newest
are stopped and wait again, as if they had never been sent: no byte has reached their clients. Those
that began to answer run on, and so do those that a bound forced in, by their wait or by how many
went before them: its promise is kept once, and who is due would be sent again at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from agentsched.kernel.books import Books
from agentsched.kernel.records import EngineRecord
from agentsched.model import Cancel, CancelReason, EngineId, Instant, StepClass, StepState


def make_way(books: Books, wanted: Collection[EngineId], *, now: Instant) -> list[Cancel]:
    """Stop batch steps on engines that other work is held for: one for each step that waits, on an
    engine that serves its model."""
    engines = [e for e in books.engines.values() if e.background_steps and e.engine in wanted]
    if not engines:
        return []
    waiting = Counter(s.model for s in books.ready if s.step_class is not StepClass.BATCH)
    for engine in engines:
        for step in engine.running.values():
            if step.is_yielding:
                _take_one(waiting, engine)
    commands: list[Cancel] = []
    for engine in engines:
        for step in reversed(engine.running.values()):
            is_idle_work = step.step_class is StepClass.BATCH and step.state is StepState.DISPATCHED
            if not is_idle_work or step.is_yielding or books.ready.is_due(step, now=now):
                continue
            if not _take_one(waiting, engine):
                break
            step.is_yielding = True
            commands.append(Cancel(step=step.step, reason=CancelReason.YIELDED))
    return commands


def _take_one(waiting: Counter[str], engine: EngineRecord) -> bool:
    """One of the steps that wait has room coming on this engine; False: none could use it."""
    model = next((m for m, steps in waiting.items() if steps and engine.serves(m)), None)
    if model is None:
        return False
    waiting[model] -= 1
    return True
