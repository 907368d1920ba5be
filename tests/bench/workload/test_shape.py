"""Plans: whatever the scale, what was shared stays shared and lengths stay true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.model import ConfigError
from agentsched_bench.workload.shape import (
    PlannedConversation,
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_program,
    plan_programs,
    prefix_is_exact,
)
from agentsched_bench.workload.text import token_ids
from agentsched_bench.workload.trace import (
    RecordedProgram,
    RecordedStep,
    RecordedTool,
    Recording,
    group_programs,
    read_trace,
)

_EXACT = ShapeOptions(scale_tokens=1, scale_time=1)


def _plan(recording: Recording, options: ShapeOptions = _EXACT) -> PlannedConversation:
    program = RecordedProgram(main=recording)
    return plan_program(program, options, shared=SharedPrompts()).main


def _render(plan: PlannedConversation) -> list[list[int]]:
    """The prompts as token ids, with a made-up answer for each call."""
    prompts: list[list[int]] = []
    for call in plan.calls:
        prompt: list[int] = []
        if call.base is not None:
            base = plan.calls[call.base]
            assert call.keep_tokens <= base.prompt_tokens
            assert call.echo_tokens <= base.output_tokens
            assert call.echo_tokens == 0 or call.keep_tokens == base.prompt_tokens
            answer = [-1 - call.base] * base.output_tokens
            prompt = prompts[call.base][: call.keep_tokens] + answer[: call.echo_tokens]
        prompts.append(prompt + token_ids(call.pieces, salt="test"))
    return prompts


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """Conversations that grow, drop reasoning and are cut, with and without prefix counts."""
    tokens = draw(st.integers(1, 5_000))
    knows_prefix = draw(st.booleans())
    steps: list[RecordedStep] = []
    prefix = draw(st.integers(0, tokens))
    new: int | None = None
    for index in range(draw(st.integers(1, 12))):
        output = draw(st.integers(0, 600))
        steps.append(
            RecordedStep(
                step=index,
                input_tokens=tokens,
                output_tokens=output,
                new_input_tokens=new,
                prefix_tokens=prefix if knows_prefix else None,
                gap_s=draw(st.floats(0, 200)),
            )
        )
        kind = draw(st.sampled_from(["grow", "grow", "grow", "drop", "cut"]))
        if kind == "grow":
            new = draw(st.integers(0, 900))
            prefix, tokens = tokens, tokens + output + new
        elif kind == "drop":
            new, prefix = None, tokens
            tokens += draw(st.integers(0, output))
        else:
            new = None
            prefix = draw(st.integers(0, tokens))
            tokens = max(1, prefix + draw(st.integers(0, 800)))
    return Recording(session_id="p", source="test", agent="a", model="m", steps=tuple(steps))


@given(recordings(), st.floats(0.5, 64))
def test_prompts_are_what_the_plan_says_at_any_scale(recording: Recording, scale: float) -> None:
    plan = _plan(recording, ShapeOptions(scale_tokens=scale))

    prompts = _render(plan)

    assert len(prompts) == len(recording.steps)
    drift = 0
    for index, (prompt, call, step) in enumerate(
        zip(prompts, plan.calls, recording.steps, strict=True)
    ):
        assert len(prompt) == call.prompt_tokens
        assert call.output_tokens == max(1, round(step.output_tokens / scale))
        # Each call adds at least one token and one of an answer: that is all that may be added.
        drift += 2
        assert 0 <= call.prompt_tokens - round(step.input_tokens / scale) <= drift + 1
        if index and step.new_input_tokens is not None:
            before = prompts[index - 1]
            assert prompt[: len(before)] == before, "an append-only step extends its prompt"


@given(recordings())
def test_pauses_are_capped_and_then_scaled(recording: Recording) -> None:
    plan = _plan(recording, ShapeOptions(scale_time=4, gap_cap_s=10))

    for call, step in zip(plan.calls, recording.steps, strict=True):
        assert call.pause_s == pytest.approx(min(step.gap_s or 0.0, 10) / 4)


def test_a_cut_rewrites_from_the_cut(recording: Callable[..., Recording]) -> None:
    source = recording((100, 10, None), (150, 20, 40), (120, 5, None))
    steps = [*source.steps]
    steps[1] = msgspec.structs.replace(steps[1], prefix_tokens=100)
    steps[2] = msgspec.structs.replace(steps[2], prefix_tokens=60)
    plan = _plan(msgspec.structs.replace(source, steps=tuple(steps)))

    _, second, third = _render(plan)

    assert third[:60] == second[:60]
    assert third[60] != second[60]
    assert len(third) == 120


def test_dropped_reasoning_shortens_the_echo(recording: Callable[..., Recording]) -> None:
    plan = _plan(recording((100, 50, None), (130, 5, None)))

    assert (plan.calls[1].keep_tokens, plan.calls[1].echo_tokens) == (100, 30)
    assert plan.calls[1].prompt_tokens == 131, "something new always comes"


def test_a_providers_cache_counts_do_not_cut_a_prompt(
    recording: Callable[..., Recording],
) -> None:
    source = recording((2000, 50, None), (2450, 5, 400), (2600, 5, None))
    steps = tuple(msgspec.structs.replace(s, prefix_tokens=0) for s in source.steps)
    vague = msgspec.structs.replace(source, steps=steps)

    assert not prefix_is_exact(vague)
    assert _plan(vague).calls[2].keep_tokens == 2450


def test_programs_of_one_agent_share_their_first_tokens(
    recording: Callable[..., Recording],
) -> None:
    rows = []
    for name, shared in (("a", 80), ("b", 80), ("cold", 0)):
        row = recording((100, 5, None), name=name)
        step = msgspec.structs.replace(row.steps[0], prefix_tokens=shared)
        rows.append(msgspec.structs.replace(row, steps=(step,)))
    plans = plan_programs(group_programs(rows), _EXACT, shared=SharedPrompts.learn(rows))

    a, b, cold = (_render(plan.main)[0] for plan in plans)

    assert a[:80] == b[:80] == cold[:80]
    assert a[80:] != b[80:]
    assert plans[0].main.system_tokens == 80


def test_a_hit_by_chance_is_not_taken_for_a_shared_prompt(
    recording: Callable[..., Recording],
) -> None:
    rows = [recording((100, 5, None), name=f"p{i}") for i in range(30)]
    lucky = msgspec.structs.replace(rows[0].steps[0], prefix_tokens=90)
    rows[0] = msgspec.structs.replace(rows[0], steps=(lucky,))

    assert SharedPrompts.learn(rows).tokens(rows[1]) == 0


def _hashed(recording: Callable[..., Recording], name: str, *runs: tuple[int, ...]) -> Recording:
    row = recording(*((len(run) * 64, 10, None) for run in runs), name=name, block_size=64)
    steps = tuple(
        msgspec.structs.replace(step, hash_ids=tuple((block, block) for block in run))
        for step, run in zip(row.steps, runs, strict=True)
    )
    return msgspec.structs.replace(row, steps=steps)


def test_equal_hashes_are_equal_tokens_across_programs(
    recording: Callable[..., Recording],
) -> None:
    rows = [_hashed(recording, "a", (1, 2, 3)), _hashed(recording, "b", (1, 2, 9))]
    options = ShapeOptions(scale_tokens=8)
    plans = plan_programs(group_programs(rows), options, shared=SharedPrompts())

    a, b = (_render(plan.main)[0] for plan in plans)

    assert len(a) == len(b) == 24
    assert a[:16] == b[:16]
    assert a[16:] != b[16:]


def test_a_return_to_an_older_prompt_is_found_by_its_hashes(
    recording: Callable[..., Recording],
) -> None:
    row = _hashed(recording, "a", (1, 2, 3, 4), (1, 7, 8), (1, 2, 3, 4, 5, 6))

    plan = _plan(row)

    assert plan.calls[1].keep_tokens == 64
    assert plan.calls[2].base == 0
    assert plan.calls[2].keep_tokens == 256


def _timed(recording: Recording, *times: tuple[float, float, float]) -> Recording:
    steps = tuple(
        msgspec.structs.replace(step, t_s=t, llm_s=llm, gap_s=gap)
        for step, (t, llm, gap) in zip(recording.steps, times, strict=True)
    )
    return msgspec.structs.replace(recording, steps=steps)


def test_a_sub_agent_that_was_waited_for_joins(recording: Callable[..., Recording]) -> None:
    main = _timed(
        recording((100, 10, None), (150, 10, 40), (200, 10, 40), name="main"),
        (0, 1, 1),
        (2, 1, 12),
        (15, 1, 0),
    )
    child = _timed(
        recording((50, 5, None), name="child", parent="main", parent_t_s=3.5), (0, 10, 0)
    )
    program = RecordedProgram(main=main, children=(child,))

    plan = plan_program(program, _EXACT, shared=SharedPrompts())

    (planned,) = plan.children
    assert (planned.parent, planned.parent_call, planned.joins) == ("main", 1, True)
    assert planned.start_delay_s == pytest.approx(0.5)
    # 12 s of pause, of which the sub-agent took the first 10.5.
    assert plan.main.calls[1].pause_s == pytest.approx(1.5)


def test_a_sub_agent_in_the_background_does_not_join(
    recording: Callable[..., Recording],
) -> None:
    main = _timed(
        recording((100, 10, None), (150, 10, 40), name="main", start_s=100.0), (0, 1, 1), (2, 1, 0)
    )
    child = _timed(recording((50, 5, None), name="child", parent="main", start_s=101.0), (0, 60, 0))
    program = RecordedProgram(main=main, children=(child,))

    plan = plan_program(program, _EXACT, shared=SharedPrompts())

    assert plan.children[0].joins is False
    assert plan.children[0].parent_call == 0
    assert plan.main.calls[0].pause_s == 1
    short = ShapeOptions(steps_max=1)
    assert plan_program(program, short, shared=SharedPrompts()).calls == 2


def test_a_sub_agents_sub_agent_may_stand_before_it_in_the_file(
    recording: Callable[..., Recording],
) -> None:
    main = _timed(
        recording((100, 10, None), (150, 10, 40), (200, 10, 40), name="main"),
        (0, 1, 1),
        (2, 1, 30),
        (33, 1, 0),
    )
    child = _timed(
        recording((50, 5, None), (80, 5, 25), name="child", parent="main", parent_t_s=3.5),
        (0, 2, 9),
        (11, 2, 0),
    )
    inner = _timed(
        recording((40, 5, None), name="inner", parent="child", parent_t_s=2.5), (0, 8, 0)
    )

    def plan(*children: Recording) -> PlannedProgram:
        program = RecordedProgram(main=main, children=children)
        return plan_program(program, _EXACT, shared=SharedPrompts())

    ordered = plan(child, inner)
    placed = {c.conversation: (c.parent, c.parent_call, c.joins) for c in ordered.children}
    assert placed == {"child": ("main", 1, True), "inner": ("child", 0, True)}
    assert plan(inner, child) == ordered


def test_limits_end_a_conversation_early(recording: Callable[..., Recording]) -> None:
    row = recording((100, 10, None), (150, 10, 40), (200, 10, 40))

    by_steps = _plan(row, ShapeOptions(scale_tokens=1, steps_max=2))
    by_context = _plan(row, ShapeOptions(scale_tokens=1, context_tokens_max=160))

    assert len(by_steps.calls) == 2
    assert len(by_context.calls) == 2
    none_left = ShapeOptions(scale_tokens=1, context_tokens_max=50)
    programs = [RecordedProgram(main=row)]
    assert plan_programs(programs, none_left, shared=SharedPrompts()) == []


def test_pauses_come_from_the_best_record_there_is(recording: Callable[..., Recording]) -> None:
    row = recording(*[(100, 60, None)] * 3)
    tools = (RecordedTool(name="a", duration_s=2.0), RecordedTool(name="b", duration_s=1.0))
    steps = (
        msgspec.structs.replace(row.steps[0], tools=tools, cycle_s=50.0),
        msgspec.structs.replace(row.steps[1], cycle_s=5.0, reasoning_tokens=60),
        row.steps[2],
    )
    plan = _plan(msgspec.structs.replace(row, steps=steps))

    # The third: 5 s less 120 tokens at the assumed 60 tokens/s.
    assert [call.pause_s for call in plan.calls] == [3.0, 3.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [{"scale_tokens": 0}, {"scale_time": -1}, {"gap_cap_s": -1}, {"steps_max": 0}],
)
def test_senseless_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ShapeOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.traces
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept_share"),
    [
        ("agentcgroup-swe-rebench", 0.9),
        ("miniswe-gemini3-swebench-verified", 0.85),
        ("sweagent-swebench-verified", 0.6),
        ("weka-claude-code", 0.85),
    ],
)
def test_recorded_programs_can_be_planned(name: str, kept_share: float, traces: Path) -> None:
    rows = list(read_trace(traces / f"{name}.jsonl.gz"))
    options = ShapeOptions(steps_max=20)
    plans = plan_programs(group_programs(rows), options, shared=SharedPrompts.learn(rows))

    calls = [call for plan in plans for c in plan.conversations for call in c.calls]
    kept = sum(call.keep_tokens for call in calls)
    assert kept / sum(call.prompt_tokens for call in calls) > kept_share
    for plan in plans[:3]:
        for conversation in plan.conversations:
            for prompt, call in zip(_render(conversation), conversation.calls, strict=True):
                assert len(prompt) == call.prompt_tokens


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ShapeOptions(scale_tokens=1, scale_time=1, gap_cap_s=1e9), ""),
        (ShapeOptions(), "tokens / 8, pauses / 2 (of at most 60 s)"),
        (ShapeOptions(scale_tokens=1, gap_cap_s=0), "pauses / 2 (of at most 0 s)"),
        (
            ShapeOptions(scale_time=1, steps_max=16, context_tokens_max=7_936),
            "tokens / 8, pauses of at most 60 s, at most 16 steps, contexts up to 7,936 tokens",
        ),
    ],
)
def test_what_was_made_smaller_is_said(options: ShapeOptions, said: str) -> None:
    assert options.said() == said
