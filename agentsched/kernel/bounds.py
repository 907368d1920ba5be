"""Which wait bound the engines can hold: what is sensible, and what a newcomer would meet.

Programs take turns in an engine's memory. A program that is out waits until one of those that are
in makes room: at worst, all that fit come in once before it, and each costs a cold prefill and a
turn. A bound below a few times that is broken under load, by forcing steps in that throw others
out. `_TIMES` is measured: below it the tail gets worse, above it only the longest wait does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from agentsched.kernel.books import Books
from agentsched.kernel.records import EngineRecord
from agentsched.model import Instant, Nanos, StepArrived, StepClass, after

_TIMES: Final = 2.0
#: A newcomer is turned away when it would clearly not be served in time, not when it may not be.
_CLEARLY: Final = 2.0


def sensible_wait(books: Books) -> Nanos | None:
    """The least wait bound that this load allows.

    None while too little is known to say, or all that lives fits: then nobody takes turns.
    """
    spans = [span for engine in books.engines.values() if (span := _of_engine(books, engine))]
    return Nanos(max(spans)) if spans else None


def _of_engine(books: Books, engine: EngineRecord) -> int | None:
    capacity, turn_ns = engine.capabilities.kv_tokens, books.pace.turn_ns
    kept = sum(1 for _ in books.residency.conversations(engine.engine))
    if not engine.is_up or capacity is None or turn_ns is None or not kept:
        return None
    if not engine.is_contended:
        return None
    # What is shared is counted once, so this is what one more conversation needs of its own.
    own = max(1.0, books.residency.tokens(engine.engine) / kept)
    cold_ns = own * engine.prefill_ns
    return round(_TIMES * (cold_ns + turn_ns) * capacity / own)


def newcomers_wait(event: StepArrived, books: Books) -> Nanos:
    """How long a new program's first step will probably wait, by how fast the queue moves."""
    ahead = steps_ahead(event, books)
    shares = books.shares
    if shares.is_active:
        account, tenants = shares.view(event.tenant), shares.claiming_tenants
        own = account.claiming_steps
        if event.step_class is StepClass.BATCH:
            own, tenants = account.waiting_steps, shares.waiting_tenants
        ahead = min(ahead, (own + 1) * (tenants + (not own)) - 1)
    return Nanos(round(ahead * books.pace.ns_per_step))


def steps_ahead(event: StepArrived, books: Books) -> int:
    """Waiting steps that an engine with its model might be given first; all where there is none.

    Batch work goes after all other work, so it is ahead of its like alone.
    """
    ready = books.ready
    waiting: Mapping[str, int] = ready.models
    if ready.batch_steps and event.step_class is not StepClass.BATCH:
        waiting = Counter(s.model for s in ready if s.step_class is not StepClass.BATCH)
    if len(waiting) == 1 and event.model in waiting:
        return waiting[event.model]
    engines = [engine for engine in books.engines.values() if engine.is_up]
    engines = [engine for engine in engines if engine.serves(event.model)]
    if not engines:
        return sum(waiting.values())
    return sum(n for model, n in waiting.items() if any(e.serves(model) for e in engines))


def is_hopeless(event: StepArrived, books: Books, *, now: Instant) -> bool:
    """Whether a new program would clearly not be served within the wait bound."""
    wait = Nanos(round(newcomers_wait(event, books) / _CLEARLY))
    return after(now, wait) > after(now, books.limits.wait_ns_max)
