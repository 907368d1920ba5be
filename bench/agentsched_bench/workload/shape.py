"""From a recorded program to a plan that can be replayed: what each prompt is made of, and when.

A plan has no text. A prompt is described by what it shares: it *keeps* tokens of an earlier prompt
of the same conversation, *echoes* tokens of the answer to it, and adds *pieces*, each a stretch of
a named stream of tokens. Equal names give equal tokens, so what programs shared when they were
recorded (an agent's system prompt, prefix blocks with the same hash) they share when replayed.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from agentsched.model import ConfigError
from agentsched_bench.workload.hashes import HashedPrompt, scaled_prompt
from agentsched_bench.workload.trace import (
    RecordedMessage,
    RecordedProgram,
    RecordedStep,
    Recording,
    ToolDefinition,
)

#: A sub-agent that ended at most this long after its parent went on is taken as waited for:
#: several sources record whole seconds.
_JOIN_SLACK_S: Final = 2.0
#: At least this share of an agent's recordings must have met a warm cache to speak for the others,
_HITS_SHARE_MIN: Final = 0.1
#: and half of them must lie this near to their median. Counts of different kinds agree as well.
_NEAR: Final = 0.1
#: A prompt that was cut, and has this share of the one before, was not made anew of a summary.
_ELIDED_SHARE_MIN: Final = 0.4


#: No pause is longer: a cap beyond it cuts none.
_GAP_S_MAX: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """How a recording is made smaller and faster.

    Tokens are divided by `scale_tokens`; pauses are first cut to `gap_cap_s` and then divided by
    `scale_time`. `steps_max` and `context_tokens_max` (scaled prompt + answer) end a conversation
    early. `cycle_tokens_per_s` is the speed assumed for the recorded model where only call + tool
    time is known: what exceeds reasoning + answer at that speed is taken as the pause.
    """

    scale_tokens: float = 8.0
    scale_time: float = 2.0
    gap_cap_s: float = 60.0
    steps_max: int | None = None
    context_tokens_max: int | None = None
    cycle_tokens_per_s: float = 60.0

    def __post_init__(self) -> None:
        if not (0 < self.scale_tokens < inf and 0 < self.scale_time < inf):
            raise ConfigError("scales must be more than 0")
        if not self.gap_cap_s >= 0:
            raise ConfigError(f"the cap on gaps must be 0 or more, not {self.gap_cap_s}")
        if self.steps_max is not None and self.steps_max < 1:
            raise ConfigError(f"at least 1 step is needed, not {self.steps_max}")
        if not self.cycle_tokens_per_s > 0:
            raise ConfigError("the assumed model speed must be more than 0 tokens/s")

    def said(self) -> str:
        """In what a load differs from its recordings, for people; empty where in nothing."""
        parts = []
        if self.scale_tokens != 1:
            parts.append(f"tokens / {self.scale_tokens:g}")
        cap = f"of at most {self.gap_cap_s:g} s" if self.gap_cap_s < _GAP_S_MAX else ""
        if self.scale_time != 1:
            parts.append(f"pauses / {self.scale_time:g}" + (f" ({cap})" if cap else ""))
        elif cap:
            parts.append(f"pauses {cap}")
        if self.steps_max is not None:
            parts.append(f"at most {self.steps_max} steps")
        if self.context_tokens_max is not None:
            parts.append(f"contexts up to {self.context_tokens_max:,} tokens")
        return ", ".join(parts)

    def tokens(self, recorded: float) -> int:
        return round(recorded / self.scale_tokens)

    def pause(self, recorded_s: float) -> float:
        return min(max(recorded_s, 0.0), self.gap_cap_s) / self.scale_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`tokens` tokens of the stream called `stream`, from its `start`-th on."""

    stream: str
    tokens: int
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCall:
    """One LLM call.

    The prompt is the first `keep_tokens` of the prompt of call `base` (None: a fresh prompt), then
    `echo_tokens` of the answer to `base` (only if all of its prompt was kept), then `pieces`.
    `pause_s` is the time the tools take after it, without sub-agents that are waited for. `elides`:
    of the prompt before something was made shorter where it was cut, and what follows stands behind
    it, the answers too; otherwise all of that is gone. Where texts were recorded, `prompt` are runs
    of the conversation's messages, and `answer` is one.
    """

    base: int | None
    keep_tokens: int
    echo_tokens: int
    pieces: tuple[Piece, ...]
    prompt_tokens: int
    output_tokens: int
    pause_s: float
    tools: tuple[str, ...] = ()
    elides: bool = False
    prompt: tuple[tuple[int, int], ...] = ()
    answer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedText:
    """The messages of a conversation as they were recorded, unscaled.

    `shared_stream` names the tokens that stand for what was not recorded and all programs of the
    kind have in common: the system prompt of some clients.
    """

    messages: tuple[RecordedMessage, ...]
    scale_tokens: float
    shared_stream: str
    tool_definitions: tuple[ToolDefinition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedConversation:
    """A program's main conversation, or a sub-agent's.

    A sub-agent starts `start_delay_s` after its parent's call number `parent_call` has ended. If
    `joins`, the parent's next call waits for it, and only then does the rest of the pause begin.
    `system_tokens` is how much of the first prompt is the agent's own (system prompt, tools).
    `text` is there where every prompt's messages were recorded.
    """

    conversation: str
    calls: tuple[PlannedCall, ...]
    system_tokens: int = 0
    parent: str | None = None
    parent_call: int | None = None
    start_delay_s: float = 0.0
    joins: bool = False
    text: RecordedText | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedProgram:
    """One agent run. `arrival_s` is the scaled recorded start, None where it was not recorded.

    The rest is what a composed workload says: whose it is, what it is (agent, chat or batch), if
    its calls say who they are, and the closed loop that it belongs to.
    """

    program: str
    main: PlannedConversation
    children: tuple[PlannedConversation, ...] = ()
    arrival_s: float | None = None
    tenant: str | None = None
    traffic: str = "agent"
    has_ids: bool = True
    pool: str | None = None

    @property
    def conversations(self) -> tuple[PlannedConversation, ...]:
        return (self.main, *self.children)

    @property
    def calls(self) -> int:
        return sum(len(conversation.calls) for conversation in self.conversations)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompts:
    """How many tokens of the first prompt an agent's programs have in common, by kind of recording.

    A first step that recorded 0 met a provider's cold cache; its prompt was no other than its
    siblings'. So 0 and None stand for the median of what the same agent's other recordings have,
    if enough of them have anything and most of those agree: hits by chance are left alone.
    """

    medians: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def learn(cls, recordings: Iterable[Recording]) -> SharedPrompts:
        seen: dict[str, list[int]] = {}
        for recording in recordings:
            seen.setdefault(_kind(recording), []).append(recording.steps[0].prefix_tokens or 0)
        medians = {kind: _agreed(recorded) for kind, recorded in seen.items()}
        return cls(medians={kind: tokens for kind, tokens in medians.items() if tokens})

    def tokens(self, recording: Recording) -> int:
        """Unscaled tokens that the first prompt of `recording` shares; less than all of it."""
        first = recording.steps[0]
        recorded = first.prefix_tokens or self.medians.get(_kind(recording), 0)
        return max(0, min(recorded, first.input_tokens - 1))


def _agreed(recorded: Sequence[int]) -> int:
    """The median of what is not 0, or 0 if too few have anything or they do not agree."""
    hits = [tokens for tokens in recorded if tokens]
    if len(hits) < _HITS_SHARE_MIN * len(recorded) or not hits:
        return 0
    median = statistics.median(hits)
    near = sum(abs(tokens - median) <= _NEAR * median for tokens in hits)
    return int(median) if 2 * near >= len(hits) else 0


def _kind(recording: Recording) -> str:
    role = "main" if recording.parent is None else "sub-agent"
    return f"{recording.source}/{recording.agent}/{recording.model}/{role}"


def plan_programs(
    programs: Sequence[RecordedProgram], options: ShapeOptions, *, shared: SharedPrompts
) -> list[PlannedProgram]:
    """Plans for `programs`, in the same order; those without any call left are dropped."""
    plans = (plan_program(program, options, shared=shared) for program in programs)
    return [plan for plan in plans if plan.main.calls]


def plan_program(
    program: RecordedProgram, options: ShapeOptions, *, shared: SharedPrompts
) -> PlannedProgram:
    """The plan of one program with its sub-agents. What a composed workload says goes first."""
    load = program.main.load
    if load is not None:
        options = replace(
            options,
            scale_tokens=load.scale_tokens,
            scale_time=load.scale_time,
            gap_cap_s=options.gap_cap_s if load.gap_cap_s is None else load.gap_cap_s,
        )
    main = _plan_conversation(program.main, options, shared=shared)
    planned = {main.conversation: main}
    sources = {program.main.session_id: program.main}
    for child in _parents_first(program.children):
        sources[child.session_id] = child
        conversation = _plan_conversation(child, options, shared=shared)
        parent = sources.get(child.parent or "", program.main)
        placed = _place(conversation, child=child, parent=parent, options=options)
        if placed.parent_call is None or not placed.calls:
            continue
        # The parent may have been shortened, or left out, so that this one never begins.
        owner = planned.get(parent.session_id)
        if owner is not None and placed.parent_call < len(owner.calls):
            planned[placed.conversation] = placed
    children = tuple(c for c in planned.values() if c.parent is not None)
    main, children = _share_pauses(main, children, sources=sources, options=options)
    start_s = program.main.start_s
    arrival_s = start_s if start_s is None or load is not None else start_s / options.scale_time
    return PlannedProgram(
        program=program.main.session_id,
        main=main,
        children=children,
        arrival_s=arrival_s,
        tenant=program.main.tenant,
        traffic="agent" if load is None else load.traffic,
        has_ids=load is None or load.has_ids,
        pool=None if load is None else load.pool,
    )


def _parents_first(children: Sequence[Recording]) -> Iterator[Recording]:
    """Sub-agents as the file has them, but each behind the one that started it."""
    known = {child.session_id: child for child in children}
    taken: set[str] = set()
    for child in children:
        above: list[Recording] = []
        row: Recording | None = known[child.session_id]
        while row is not None and row.session_id not in taken:
            taken.add(row.session_id)
            above.append(row)
            row = known.get(row.parent or "")
        yield from reversed(above)


def _place(
    plan: PlannedConversation, *, child: Recording, parent: Recording, options: ShapeOptions
) -> PlannedConversation:
    """Tie a sub-agent to the call of its parent that started it."""
    if child.parent_step is not None:
        return replace(
            plan,
            parent=parent.session_id,
            parent_call=child.parent_step,
            joins=child.join_step is not None and child.join_step >= child.parent_step,
        )
    offset_s = offset_in_parent(child, parent)
    starts = [step.t_s for step in parent.steps if step.t_s is not None]
    if offset_s is None or len(starts) != len(parent.steps):
        call, delay_s, joins = 0, 0.0, False
    else:
        call = max(0, bisect_right(starts, offset_s) - 1)
        call_end_s = starts[call] + (parent.steps[call].llm_s or 0.0)
        delay_s = max(0.0, offset_s - call_end_s)
        next_s = starts[call + 1] if call + 1 < len(starts) else None
        joins = next_s is not None and offset_s + _length_s(child) <= next_s + _JOIN_SLACK_S
    return replace(
        plan,
        parent=parent.session_id,
        parent_call=call,
        start_delay_s=options.pause(delay_s),
        joins=joins,
    )


def offset_in_parent(child: Recording, parent: Recording) -> float | None:
    """Seconds from the beginning of a recording to that of its sub-agent; None: it was not told."""
    if child.parent_t_s is not None:
        return child.parent_t_s
    if child.start_s is not None and parent.start_s is not None:
        return max(0.0, child.start_s - parent.start_s)
    return None


def _length_s(recording: Recording) -> float:
    last = recording.steps[-1]
    return (last.t_s or 0.0) + (last.llm_s or 0.0)


def _share_pauses(
    main: PlannedConversation,
    children: tuple[PlannedConversation, ...],
    *,
    sources: Mapping[str, Recording],
    options: ShapeOptions,
) -> tuple[PlannedConversation, tuple[PlannedConversation, ...]]:
    """Take the time of sub-agents that are waited for out of the pauses of their parents."""
    waited: dict[tuple[str, int], float] = {}
    for child in children:
        if child.joins and child.parent is not None and child.parent_call is not None:
            recording, parent = sources[child.conversation], sources[child.parent]
            if recording.parent_step is not None:
                # The source tells the pause after the join, not the time from end to beginning.
                continue
            step = parent.steps[child.parent_call]
            begun_s = (offset_in_parent(recording, parent) or 0.0) - (step.t_s or 0.0)
            busy_s = begun_s - (step.llm_s or 0.0) + _length_s(recording)
            key = (child.parent, child.parent_call)
            waited[key] = max(waited.get(key, 0.0), busy_s)

    def corrected(plan: PlannedConversation) -> PlannedConversation:
        calls = list(plan.calls)
        for index, call in enumerate(calls):
            busy_s = waited.get((plan.conversation, index))
            if busy_s is not None:
                gap_s = pause_after_s(sources[plan.conversation].steps[index], options)
                calls[index] = replace(call, pause_s=options.pause(gap_s - busy_s))
        return replace(plan, calls=tuple(calls))

    return corrected(main), tuple(corrected(child) for child in children)


def pause_after_s(step: RecordedStep, options: ShapeOptions) -> float:
    """The recorded pause after a step, or what tools' times or the cycle say of it."""
    if step.gap_s is not None:
        return step.gap_s
    durations = [tool.duration_s for tool in step.tools if tool.duration_s is not None]
    if durations:
        return sum(durations)
    if step.cycle_s is not None:
        thought = (step.output_tokens + step.reasoning_tokens) / options.cycle_tokens_per_s
        return max(0.0, step.cycle_s - thought)
    return 0.0


def _plan_conversation(
    recording: Recording, options: ShapeOptions, *, shared: SharedPrompts
) -> PlannedConversation:
    steps = recording.steps[: options.steps_max]
    shared_tokens = shared.tokens(recording)
    exact_prefix = prefix_is_exact(recording)
    prompts: list[HashedPrompt | None] = [
        scaled_prompt(recording, step, scale=options.scale_tokens) for step in steps
    ]
    calls: list[PlannedCall] = []
    for index, step in enumerate(steps):
        base, keep, echo = _lineage(
            index,
            recording=recording,
            prompts=prompts,
            calls=calls,
            exact_prefix=exact_prefix,
            floor_tokens=options.tokens(shared_tokens),
            options=options,
        )
        prompt_tokens = max(keep + echo + 1, options.tokens(step.input_tokens))
        output_tokens = max(1, options.tokens(step.output_tokens))
        limit = options.context_tokens_max
        if limit is not None and prompt_tokens + output_tokens > limit:
            break
        pieces = _pieces(
            recording,
            index,
            start=keep + echo,
            end=prompt_tokens,
            shared_tokens=options.tokens(shared_tokens) if base is None else 0,
            prompt=prompts[index],
        )
        calls.append(
            PlannedCall(
                base=base,
                keep_tokens=keep,
                echo_tokens=echo,
                pieces=pieces,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                pause_s=options.pause(pause_after_s(step, options)),
                tools=tuple(tool.name for tool in step.tools),
                elides=base is not None
                and prompts[index] is None
                and keep < calls[base].prompt_tokens
                and _elides(index, steps),
                prompt=step.prompt or (),
                answer=step.answer,
            )
        )
    system = recording.tool_tokens, recording.system_tokens
    system_tokens = sum(part for part in system if part is not None) or shared_tokens
    system_tokens = min(system_tokens, recording.steps[0].input_tokens - 1)
    return PlannedConversation(
        conversation=recording.session_id,
        calls=tuple(calls),
        system_tokens=max(0, options.tokens(system_tokens)),
        text=_text_of(recording, options),
    )


def _text_of(recording: Recording, options: ShapeOptions) -> RecordedText | None:
    if not recording.messages or not all(step.prompt for step in recording.steps):
        return None
    return RecordedText(
        messages=recording.messages,
        scale_tokens=options.scale_tokens,
        shared_stream=f"shared/{_kind(recording)}",
        tool_definitions=recording.tool_definitions,
    )


def prefix_is_exact(recording: Recording) -> bool:
    """Whether `prefix_tokens` tells where a prompt was cut.

    Some sources give what a provider's cache answered instead, which is less even on steps that
    only appended; there it says nothing about cuts.
    """
    slack = recording.block_size or 64
    right = wrong = 0
    for before, step in zip(recording.steps, recording.steps[1:], strict=False):
        if step.new_input_tokens is None or step.prefix_tokens is None:
            continue
        if step.prefix_tokens + slack >= before.input_tokens:
            right += 1
        else:
            wrong += 1
    return right > wrong


def _lineage(
    index: int,
    *,
    recording: Recording,
    prompts: Sequence[HashedPrompt | None],
    calls: Sequence[PlannedCall],
    exact_prefix: bool,
    floor_tokens: int,
    options: ShapeOptions,
) -> tuple[int | None, int, int]:
    """(base, keep, echo) of call `index`, in scaled tokens."""
    if index == 0:
        return None, 0, 0
    step, before = recording.steps[index], recording.steps[index - 1]
    base = calls[index - 1]
    if step.new_input_tokens is not None:
        return index - 1, base.prompt_tokens, base.output_tokens
    prompt = prompts[index]
    if prompt is not None:
        return _hashed_lineage(index, prompt, prompts=prompts, calls=calls, step=step)
    target = options.tokens(step.input_tokens)
    grown = step.input_tokens - before.input_tokens
    slack = recording.block_size or 64
    is_cut = grown < 0 or (
        exact_prefix
        and step.prefix_tokens is not None
        and step.prefix_tokens + slack < before.input_tokens
    )
    if is_cut:
        kept = options.tokens(step.prefix_tokens or 0)
        keep = min(max(kept, floor_tokens), base.prompt_tokens, max(0, target - 1))
        return index - 1, keep, 0
    # Reasoning was dropped, or the tools' results were counted otherwise: the answer came back
    # shorter than it was.
    echo = options.tokens(max(0, grown - _heard_tokens(before)))
    return index - 1, base.prompt_tokens, min(echo, base.output_tokens)


def _elides(index: int, steps: Sequence[RecordedStep]) -> bool:
    """Whether a prompt that was cut lost only a part of the one before: a summary is far shorter.

    However large, one message may be made a short one: no more went than the longest before it.
    """
    step, before = steps[index], steps[index - 1]
    if step.is_compaction:
        return False
    if step.input_tokens >= _ELIDED_SHARE_MIN * before.input_tokens:
        return True
    longest = max(steps[0].input_tokens, *(_heard_tokens(earlier) for earlier in steps[:index]))
    whole = before.input_tokens + before.output_tokens + _heard_tokens(before)
    return whole - step.input_tokens <= (1 + _NEAR) * longest


def _heard_tokens(step: RecordedStep) -> int:
    """Tokens of what a step's tools said."""
    return sum(tool.result_tokens or 0 for tool in step.tools)


def _hashed_lineage(
    index: int,
    prompt: HashedPrompt,
    *,
    prompts: Sequence[HashedPrompt | None],
    calls: Sequence[PlannedCall],
    step: RecordedStep,
) -> tuple[int | None, int, int]:
    """The earlier call whose prompt has most in common with this one; the latest of equals."""
    best, keep = index - 1, 0
    for earlier in range(index - 1, -1, -1):
        other = prompts[earlier]
        common = 0 if other is None else prompt.common_tokens(other)
        common = min(common, calls[earlier].prompt_tokens)
        if common > keep:
            best, keep = earlier, common
    base = calls[best]
    # Prefix blocks are whole: within a block of the end, all of the earlier prompt was kept.
    if keep and keep + prompt.block_tokens > base.prompt_tokens:
        room = max(0, prompt.tokens - base.prompt_tokens - 1)
        return best, base.prompt_tokens, min(base.output_tokens, room)
    return best, min(keep, max(0, prompt.tokens - 1)), 0


def _pieces(
    recording: Recording,
    index: int,
    *,
    start: int,
    end: int,
    shared_tokens: int,
    prompt: HashedPrompt | None,
) -> tuple[Piece, ...]:
    """What the prompt of step `index` holds from token `start` up to `end`."""
    pieces: list[Piece] = []
    at = start
    if prompt is not None:
        for stream, offset, tokens in prompt.stretches(start, end):
            pieces.append(Piece(stream=stream, start=offset, tokens=tokens))
            at += tokens
    elif shared_tokens > start:
        tokens = min(shared_tokens, end) - start
        pieces.append(Piece(stream=f"shared/{_kind(recording)}", start=start, tokens=tokens))
        at += tokens
    if at < end:
        pieces.append(Piece(stream=f"own/{recording.session_id}/{index}", tokens=end - at))
    return tuple(pieces)
