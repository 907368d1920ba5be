"""An engine that takes steps and answers nothing: it is there, and it stands still.

Looks find engines that are gone, breakers those that fail. This finds those that do neither: their
process is frozen, or their server answers while nothing behind it computes. With steps of ours
inside, an engine is *silent*

1. when a look got no answer, and no byte of any step came for as long as that look lasted; or
2. when looks are answered, but neither its gauges nor a byte have moved for `Limits.silence_ns`
   and as long again as the longest prompt inside that has no token yet may take to compute.

What is new goes elsewhere then, where another engine that has the model is well; nothing that
began is taken away, and no limit of an answer is shortened. It is well again with the first byte,
with a look that is answered after one that was not, with a gauge that moves, or when none of our
steps is inside any more: nothing can be told of it then. It eases in like one that came back.

A long prefill is no silence: the gauges of an engine that computes in chunks move with each of
them, and one that does not has the time of its prompt. An engine without gauges is judged by 1
alone, and a host that does not look judges nobody.
"""

from __future__ import annotations

from typing import Final

from agentsched.kernel.records import EngineRecord
from agentsched.model import (
    EngineLoad,
    EngineReported,
    EngineUnanswered,
    Instant,
    Limits,
    Nanos,
    after,
)

#: What a token of a prompt may take at the least: a minute for 100,000 of them. What was learnt
#: of an engine's price may come from short prompts alone, and its cache may have less of a prompt
#: than we think.
_TOKEN_NS_MIN: Final = 600_000
#: And at the most: a price that was learnt where prompts queue in the engine has the queue in it.
_TOKEN_NS_MAX: Final = 2_000_000


def begins(engine: EngineRecord, *, now: Instant) -> None:
    """A step is about to be counted in: with nothing inside, the time runs from here."""
    if not engine.running:
        engine.moved_at = now


def hear(engine: EngineRecord, *, now: Instant) -> None:
    """A byte of a step came from it."""
    engine.moved_at = now
    _judge(engine, is_silent=False, now=now)


def ends(engine: EngineRecord, *, now: Instant) -> None:
    """A step was counted out that says nothing about it: with the last one, judging ends."""
    if not engine.running:
        _judge(engine, is_silent=False, now=now)


def look_unanswered(engine: EngineRecord, event: EngineUnanswered, *, now: Instant) -> None:
    """A look got no answer."""
    engine.is_unanswered = True
    engine.moved_at = max(engine.moved_at, event.heard_at or Instant(0))
    is_silent = bool(engine.running) and engine.moved_at <= event.since
    _judge(engine, is_silent=is_silent, now=now)


def look_answered(
    engine: EngineRecord, event: EngineReported, limits: Limits, *, now: Instant
) -> None:
    """A look was answered; `engine` has the reading before this one still."""
    has_gauges = event.load.running is not None or event.load.kv_usage is not None
    if engine.is_unanswered or not has_gauges or _work(event.load) != _work(engine.load):
        engine.moved_at = now
    engine.is_unanswered = False
    engine.moved_at = max(engine.moved_at, event.heard_at or Instant(0))
    is_silent = bool(engine.running) and after(engine.moved_at, limits.silence_ns) <= now
    if is_silent:
        patience = Nanos(limits.silence_ns + _longest_prefill(engine))
        is_silent = after(engine.moved_at, patience) <= now
    _judge(engine, is_silent=is_silent, now=now)


def _work(load: EngineLoad) -> tuple[object, ...]:
    """What moves by computing alone; its queue grows also where nothing is taken out of it."""
    return load.running, load.kv_usage, load.preemptions, load.computed_tokens


def _longest_prefill(engine: EngineRecord) -> Nanos:
    """What the longest prefill that has no token yet may take; the queue's others come after it."""
    cold = [step for step in engine.running.values() if step.started_at is None]
    missing = max((step.missing_tokens for step in cold), default=0)
    prompt = max((step.prompt_tokens for step in cold), default=0)
    learnt = min(engine.cost.patience(missing), missing * _TOKEN_NS_MAX)
    return Nanos(max(learnt, prompt * _TOKEN_NS_MIN))


def _judge(engine: EngineRecord, *, is_silent: bool, now: Instant) -> None:
    if is_silent:
        if engine.silent_since is None:
            engine.silent_since = engine.moved_at
    elif engine.silent_since is not None:
        engine.silent_since = None
        engine.returned_at = now
