"""Prompts of noise: what was cut, and what of it comes back behind the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from agentsched.proxy.request import Dialect
from agentsched_bench.live.calibrate import Calibration
from agentsched_bench.live.client import Outcome
from agentsched_bench.live.prompts import TextPrompts
from agentsched_bench.workload.shape import (
    PlannedConversation,
    ShapeOptions,
    SharedPrompts,
    plan_program,
)
from agentsched_bench.workload.trace import RecordedProgram, RecordedStep, RecordedTool, Recording

_SHAPE = ShapeOptions(scale_tokens=1.0, scale_time=1.0)


def planned(*rows: tuple[int, int | None, int, int], **last: Any) -> PlannedConversation:
    """A plan of steps (input, prefix, output, its tool's result); `last` changes the last one."""
    steps = []
    for index, (tokens, prefix, output, result) in enumerate(rows):
        before = rows[index - 1] if index else None
        grown = None if before is None else tokens - before[0] - before[2]
        is_cut = before is None or (prefix is not None and prefix < before[0])
        steps.append(
            RecordedStep(
                step=index,
                input_tokens=tokens,
                output_tokens=output,
                prefix_tokens=prefix,
                new_input_tokens=None if is_cut else grown,
                tools=(RecordedTool(name="bash", result_tokens=result),),
            )
        )
    steps[-1] = RecordedStep(
        **{f: getattr(steps[-1], f) for f in steps[-1].__struct_fields__} | last
    )
    main = Recording(session_id="p", source="swe-agent", steps=tuple(steps))
    program = RecordedProgram(main=main, children=())
    return plan_program(program, _SHAPE, shared=SharedPrompts()).main


def sent(plan: PlannedConversation) -> list[list[dict[str, Any]]]:
    """The messages of each call, answered with words that say whose they are."""
    made = TextPrompts(plan, dialect=Dialect.CHAT, calibration=Calibration(), salt="s")
    bodies: list[list[dict[str, Any]]] = []
    for index, call in enumerate(plan.calls):
        body = made.body(index, model="m")
        messages: Any = body["messages"]
        bodies.append(messages)
        made.answered(
            index,
            Outcome(
                text=" ".join([f"answer{index}"] * call.output_tokens),
                prompt_tokens=counted(messages),
                output_tokens=call.output_tokens,
            ),
        )
    return bodies


def counted(messages: Sequence[dict[str, Any]]) -> int:
    """As the calibration says that the target counts."""
    return 3 + sum(5 + len(message["content"].split()) for message in messages)


def test_answers_behind_an_elided_observation_come_back() -> None:
    """SWE-agent shortens what a tool said some steps ago. All that followed was left out."""
    plan = planned((400, None, 20, 300), (720, 400, 30, 50), (800, 720, 10, 60), (620, 450, 10, 0))

    *_, before, after = sent(plan)

    assert [message["role"] for message in after] == [message["role"] for message in before] + [
        "assistant",
        "user",
    ]
    assert [m for m in after if m["role"] == "assistant"][:-1] == [
        m for m in before if m["role"] == "assistant"
    ]
    assert after[-2]["content"] == " ".join(["answer2"] * 10)
    changed = [n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old != new]
    assert changed == [2], "what the first tool said, alone"
    assert before[2]["content"].startswith(after[2]["content"].rstrip())
    assert len(after[2]["content"].split()) < 40 < 280 < len(before[2]["content"].split())
    assert abs(counted(after) - 620) <= 3


def test_one_message_may_be_most_of_what_was_elided() -> None:
    plan = planned((300, None, 20, 4_000), (4_320, 300, 30, 40), (450, 340, 10, 0))

    *_, after = sent(plan)

    answers = [m["content"].split()[0] for m in after if m["role"] == "assistant"]
    assert answers == ["answer0", "answer1"]
    assert abs(counted(after) - 450) <= 3


@pytest.mark.parametrize("told", ["by its size", "by the recording"])
def test_of_what_was_summed_up_nothing_comes_back(told: str) -> None:
    rows = [
        (400, None, 20, 300),
        (720, 400, 300, 700),
        (1_720, 720, 300, 700),
        (2_720, 1_720, 9, 9),
    ]
    if told == "by its size":
        plan = planned(*rows, (500, 390, 10, 0))
    else:
        plan = planned(*rows, (2_000, 390, 10, 0), is_compaction=True)

    *_, after = sent(plan)

    assert not [message for message in after if message["role"] == "assistant"]


def test_without_room_for_the_answers_they_are_gone() -> None:
    plan = planned((400, None, 20, 300), (720, 400, 200, 50), (970, 720, 10, 60), (600, 450, 10, 0))
    short = replace(plan.calls[-1], prompt_tokens=460)
    plan = replace(plan, calls=(*plan.calls[:-1], short))
    assert short.elides

    *_, after = sent(plan)

    assert [m["content"].split()[0] for m in after if m["role"] == "assistant"] == ["answer0"]


def test_only_what_was_cut_is_elided() -> None:
    plan = planned((400, None, 20, 300), (720, 400, 30, 50), (800, 720, 10, 60), (620, 450, 10, 0))

    assert [call.elides for call in plan.calls] == [False, False, False, True]
