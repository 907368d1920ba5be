"""Plain completions: a prompt is one text that begins with the old prompt and its answer."""

from __future__ import annotations

import pytest

from agentsched.model import Lineage
from agentsched_bench.clients.acting import Wire

SYSTEM = "You are an agent. " * 40


@pytest.mark.parametrize("length", [70, 1_024, 1_500, 20_000])
def test_prompt_plus_answer_plus_more_goes_on(wire: Wire, length: int) -> None:
    text = (SYSTEM * 50)[:length]
    seen = []
    for turn in range(6):
        identity = wire.send({"model": "m", "prompt": text}, api="completions")
        seen.append(identity)
        answer = f" I did thing {turn}. \n"
        wire.answer(identity, answer)
        text += (answer if turn % 2 else answer.strip()) + f"\nUser: and {turn}?" * (turn * 40 + 1)
    assert len({i.program for i in seen}) == 1
    assert len({i.conversation for i in seen}) == 1
    assert [i.step for i in seen] == [1, 2, 3, 4, 5, 6]
    assert all(i.lineage is Lineage.EXTENDS for i in seen[1:])


def test_shared_templates_join_nobody(wire: Wire) -> None:
    programs = set()
    for number in range(40):
        prompt = f"{SYSTEM}\nTask {number}: go."
        identity = wire.send({"model": "m", "prompt": prompt}, api="completions")
        wire.answer(identity, f"Answer {number}.")
        programs.add(identity.program)
    assert len(programs) == 40
    for number in range(40):
        prompt = f"{SYSTEM}\nTask {number}: go.Answer {number}.\nMore."
        identity = wire.send({"model": "m", "prompt": [prompt]}, api="completions")
        programs.add(identity.program)
        assert identity.step == 2
    assert len(programs) == 40


def test_tenants_are_apart_and_forgetting_is_complete(wire: Wire) -> None:
    body = {"model": "m", "prompt": SYSTEM}
    first = wire.send(body, api="completions", tenant="a")
    wire.answer(first, "Yes.")
    more = {"model": "m", "prompt": SYSTEM + "Yes. More"}
    assert wire.send(more, api="completions", tenant="b").step == 1
    wire.index.forget(first.program)
    assert wire.send(more, api="completions", tenant="a").step == 1


def test_a_failed_prompt_is_retried(wire: Wire) -> None:
    body = {"model": "m", "prompt": SYSTEM}
    first = wire.send(body, api="completions")
    wire.abandon(first)
    assert wire.send(body, api="completions").is_retry


def test_token_prompts_are_programs_of_their_own(wire: Wire) -> None:
    one = wire.send({"model": "m", "prompt": [1, 2, 3]}, api="completions")
    other = wire.send({"model": "m", "prompt": [1, 2, 3]}, api="completions")
    assert one.program != other.program
