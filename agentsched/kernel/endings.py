"""What a finished step leaves in the books: its program's sums, its conversation, engine prices."""

from __future__ import annotations

from dataclasses import replace

from agentsched.kernel.books import Books
from agentsched.kernel.records import ConversationRecord, StepRecord
from agentsched.model import Instant, StepClass, StepFinished, Usage, between


def account(
    books: Books,
    step: StepRecord,
    event: StepFinished,
    usage: Usage,
    conversation: ConversationRecord,
    *,
    now: Instant,
) -> None:
    """Charge the step, and take its answer into the conversation where it is part of the work.

    `usage` is the event's, as `completed` has it.
    """
    program = books.programs[step.program]
    program.prompt_tokens += usage.prompt_tokens
    program.cached_tokens += usage.cached_tokens or 0
    untold = usage.prompt_tokens if usage.cached_tokens is None else 0
    program.untold_tokens += untold
    program.output_tokens += usage.output_tokens
    program.served_tokens += books.shares.charge(
        tenant=program.tenant,
        usage=usage,
        missing_tokens=step.missing_tokens,
        untold_tokens=untold,
    )
    if step.step_class.is_work or step.step_class is StepClass.BATCH:
        books.serve(program)
    if not step.step_class.is_work:
        return
    assert step.dispatched_at is not None
    books.pace.ended(between(step.dispatched_at, now))
    program.steps_done += 1
    prompt_tokens = usage.prompt_tokens or step.prompt_tokens
    conversation.grow(context_tokens=prompt_tokens + usage.output_tokens)
    conversation.prefixes = (
        (*step.prefixes, event.prefix) if event.prefix is not None else step.prefixes
    )
    books.grow(conversation)
    conversation.is_over = event.is_last_word
    limit = books.limits.tools_per_program_max
    for call in event.tool_calls:
        conversation.tools[call.call_id] = call.tool
        if len(conversation.tools) > limit:
            del conversation.tools[next(iter(conversation.tools))]


def completed(books: Books, step: StepRecord, usage: Usage) -> Usage:
    """A step's usage, with what its engine means by saying nothing of what was cached.

    SGLang and earlier versions of vLLM leave the number out where it would be 0.
    """
    if usage.cached_tokens is not None or not usage.prompt_tokens or step.engine is None:
        return usage
    is_told = books.engines[step.engine].capabilities.cached_tokens
    return replace(usage, cached_tokens=0) if is_told else usage


def learn_cost(books: Books, step: StepRecord, usage: Usage, *, now: Instant) -> None:
    """Streamed steps show when their first token came; those teach the engine's prices."""
    if step.engine is None or usage.cached_tokens is None:
        return
    if step.started_at is None or step.dispatched_at is None or step.started_at == now:
        return
    engine = books.engines[step.engine]
    engine.cost.learn(
        uncached_tokens=usage.prompt_tokens - usage.cached_tokens,
        given_up_tokens=step.given_up_tokens,
        fresh_tokens=step.missing_tokens - step.given_up_tokens,
        output_tokens=usage.output_tokens,
        to_first_token=between(step.dispatched_at, step.started_at),
        to_last_token=between(step.started_at, now),
        prompt_tokens=usage.prompt_tokens,
        ahead_tokens=step.ahead_tokens,
        running_steps=engine.running_steps + 1,
    )
