"""From what clients did to plans that the simulator plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentsched.model import (
    ConversationId,
    Instant,
    Nanos,
    ProgramId,
    between,
    in_seconds,
)
from agentsched_bench.sim.clients import Endings, Start
from agentsched_bench.whatif.beginnings import Beginning, beginnings_of
from agentsched_bench.whatif.past import Past, PastStep
from agentsched_bench.workload.shape import (
    Piece,
    PlannedCall,
    PlannedConversation,
    PlannedProgram,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastPlan:
    """A program as a plan, when it began, how long it took, and how its end was known."""

    start: Start
    jct_s: float
    steps: Sequence[PastStep]
    ending: Endings


def plans_of(past: Past) -> list[PastPlan]:
    """One plan for each program with at least one answered call, in the order of their starts."""
    begun = beginnings_of(past)
    found: list[PastPlan] = []
    for program, conversations in past.programs.items():
        found.append(_program(program, conversations, begun, past))
    return sorted(found, key=lambda plan: (plan.start.at, plan.start.plan.program))


def _program(
    program: ProgramId,
    conversations: dict[ConversationId, list[PastStep]],
    begun: Mapping[str, Beginning],
    past: Past,
) -> PastPlan:
    ordered = sorted(conversations.items(), key=lambda item: (item[1][0].asked_at, item[0]))
    main_key, main_steps = ordered[0]
    main = _conversation(str(main_key), main_steps, begun[str(main_key)])
    children: list[PlannedConversation] = []
    joined: dict[int, float] = {}
    for key, steps in ordered[1:]:
        child = _child(_conversation(str(key), steps, begun[str(key)]), main, main_steps, steps)
        children.append(child)
        if child.joins and child.parent_call is not None:
            length_s = _span(main_steps[child.parent_call], steps[-1])
            joined[child.parent_call] = max(joined.get(child.parent_call, 0.0), length_s)
    calls = tuple(_less(call, joined.get(index, 0.0)) for index, call in enumerate(main.calls))
    main = PlannedConversation(
        conversation=main.conversation, calls=calls, system_tokens=main.system_tokens
    )
    everything = [step for steps in conversations.values() for step in steps]
    first = min(step.asked_at for step in everything)
    last = max(step.finished_at for step in everything)
    arrived = main_steps[0].arrived
    start = Start(
        plan=PlannedProgram(program=str(program), main=main, children=tuple(children)),
        at=Instant(first - past.began_at),
        agent=arrived.agent,
        tenant=str(arrived.tenant),
        model=arrived.model,
        deadline_s=_deadline_s(everything, begun=first),
    )
    return PastPlan(
        start=start,
        jct_s=in_seconds(between(first, last)),
        steps=everything,
        ending=_ending(main_steps[-1], is_closed=program in past.closed),
    )


def _deadline_s(steps: Sequence[PastStep], *, begun: Instant) -> float | None:
    """When the first call that said so wanted its program done, in seconds from its beginning."""
    told = [
        (step.asked_at, step.arrived.deadline)
        for step in steps
        if step.arrived.deadline is not None
    ]
    return in_seconds(between(begun, min(told)[1])) if told else None


def _ending(last: PastStep, *, is_closed: bool) -> Endings:
    """Whether anything told that a program's last call was that."""
    if last.arrived.is_last:
        return Endings.DECLARED
    if last.finished.is_last_word:
        return Endings.SPOKEN
    if is_closed:
        return Endings.DECLARED
    return Endings.RECORDED if last.finished.tool_calls else Endings.SILENT


def _less(call: PlannedCall, joined_s: float) -> PlannedCall:
    """The pause that is left after sub-agents that were waited for."""
    if not joined_s:
        return call
    return PlannedCall(
        base=call.base,
        keep_tokens=call.keep_tokens,
        echo_tokens=call.echo_tokens,
        pieces=call.pieces,
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        pause_s=max(0.0, call.pause_s - joined_s),
        tools=call.tools,
    )


def _span(begin: PastStep, end: PastStep) -> float:
    return max(0.0, in_seconds(Nanos(end.finished_at - begin.finished_at)))


def _child(
    child: PlannedConversation,
    main: PlannedConversation,
    main_steps: Sequence[PastStep],
    steps: Sequence[PastStep],
) -> PlannedConversation:
    """Tie a further conversation to the call of the main one after whose answer it began."""
    call = 0
    for index, step in enumerate(main_steps):
        if step.finished_at <= steps[0].asked_at:
            call = index
    delay_s = in_seconds(Nanos(max(0, steps[0].asked_at - main_steps[call].finished_at)))
    has_next = call + 1 < len(main_steps)
    joins = has_next and steps[-1].finished_at <= main_steps[call + 1].asked_at
    return PlannedConversation(
        conversation=child.conversation,
        calls=child.calls,
        system_tokens=child.system_tokens,
        parent=main.conversation,
        parent_call=call,
        start_delay_s=delay_s,
        joins=joins,
    )


def _conversation(name: str, steps: Sequence[PastStep], begun: Beginning) -> PlannedConversation:
    calls: list[PlannedCall] = []
    for index, step in enumerate(steps):
        base, keep, echo = _lineage(index, steps, calls)
        prompt = max(step.prompt_tokens, keep + echo + 1)
        pieces = (
            begun.pieces
            if base is None
            else (Piece(stream=f"own/{name}/{index}", tokens=prompt - keep - echo),)
        )
        following = steps[index + 1] if index + 1 < len(steps) else None
        pause = following.asked_at - step.finished_at if following is not None else 0
        calls.append(
            PlannedCall(
                base=base,
                keep_tokens=keep,
                echo_tokens=echo,
                pieces=pieces,
                prompt_tokens=prompt,
                output_tokens=max(1, step.finished.usage.output_tokens),
                pause_s=in_seconds(Nanos(max(0, pause))),
                tools=tuple(str(call.tool) for call in step.finished.tool_calls),
            )
        )
    return PlannedConversation(
        conversation=name, calls=tuple(calls), system_tokens=begun.system_tokens
    )


def _lineage(
    index: int, steps: Sequence[PastStep], calls: Sequence[PlannedCall]
) -> tuple[int | None, int, int]:
    """What the prompt took over from the call before it: base, kept and echoed tokens.

    Names of prefixes tell. Where an answer came back changed, the engine's own count of cached
    tokens tells how much of it had stayed the same, at least.
    """
    if index == 0:
        return None, 0, 0
    step, before, last = steps[index], calls[-1], steps[index - 1]
    names = {prefix.prefix: prefix.tokens for prefix in step.arrived.prefixes}
    room = step.prompt_tokens - before.prompt_tokens - 1
    answered = last.finished.prefix
    if answered is not None and answered.prefix in names and room >= 0:
        return index - 1, before.prompt_tokens, min(before.output_tokens, room)
    sent = last.arrived.prefixes
    if sent and sent[-1].prefix in names and room >= 0:
        seen = (step.finished.usage.cached_tokens or 0) - before.prompt_tokens
        return index - 1, before.prompt_tokens, max(0, min(seen, before.output_tokens, room))
    kept = [prefix.tokens for prefix in sent if prefix.prefix in names]
    scale = before.prompt_tokens / max(1, last.arrived.prompt_tokens)
    keep = min(round(max(kept, default=0) * scale), before.prompt_tokens, step.prompt_tokens - 1)
    if not sent and room > before.output_tokens:
        # Nothing is named here; then a longer prompt is taken for one that goes on.
        return index - 1, before.prompt_tokens, before.output_tokens
    return index - 1, max(0, keep), 0
