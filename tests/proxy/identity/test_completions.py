"""Plain completions: a prompt is one text that begins with the old prompt and its answer."""

from __future__ import annotations

import pytest

from agentsched.model import Lineage, Prefix
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity import Identity
from agentsched.proxy.token_ids import pack
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


def ids_of(text: str) -> list[int]:
    return [ord(c) for c in text]


def answered(wire: Wire, identity: Identity, said: list[int], text: str = "") -> Prefix | None:
    packed = pack(said)
    assert packed is not None
    answer = Answer(text=text, token_ids=packed, is_complete=True)
    return wire.index.answered(identity, answer, now=wire.now)


@pytest.mark.parametrize("length", [3, 70, 300, 5_000])
@pytest.mark.parametrize("is_ended", [False, True])
def test_token_prompts_go_on_by_the_ids_of_their_answers(
    wire: Wire, length: int, is_ended: bool
) -> None:
    prompts = {name: ids_of((SYSTEM * 10)[:length] + name) for name in ("a", "b")}
    seen: dict[str, list[Identity]] = {"a": [], "b": []}
    for turn in range(4):
        for name, prompt in prompts.items():
            body = {"model": "m", "prompt": [prompt] if turn % 2 else prompt}
            identity = wire.send(body, api="completions")
            seen[name].append(identity)
            assert identity.prompt_tokens == len(prompt)
            said = [200_000 + turn, ord(name), 7, 2]
            answered(wire, identity, said)
            # Many templates end a turn with a token of their own in place of the answer's.
            prompt += (said[:-1] if is_ended else said) + ids_of(f"<|user|> and {turn}?")
    for name in prompts:
        assert [i.step for i in seen[name]] == [1, 2, 3, 4]
        assert {i.program for i in seen[name]} == {seen[name][0].program}
    assert seen["a"][0].program != seen["b"][0].program


def test_token_prompts_whose_answers_came_as_text_alone_join_nobody(wire: Wire) -> None:
    prompt = ids_of(SYSTEM)
    first = wire.send({"model": "m", "prompt": prompt}, api="completions")
    wire.answer(first, "Yes, it is.")
    more = {"model": "m", "prompt": prompt + ids_of("Yes, it is.")}
    assert wire.send(more, api="completions").program != first.program


@pytest.mark.parametrize(
    "prompt", [[-1, 2], [1 << 40], [1.5], [[1], [2]], [[]], [], [{}], ["a", 1], [None]]
)
def test_prompts_that_are_no_ids_are_programs_of_their_own(wire: Wire, prompt: object) -> None:
    one = wire.send({"model": "m", "prompt": prompt}, api="completions")
    wire.answer(one, "Yes.")
    other = wire.send({"model": "m", "prompt": prompt}, api="completions")
    assert one.program != other.program


@pytest.mark.parametrize("is_ids", [False, True])
@pytest.mark.parametrize("length", [70, 1_500, 20_000])
def test_what_the_engine_has_is_named_in_the_next_prompt(
    wire: Wire, length: int, is_ids: bool
) -> None:
    text, said = (SYSTEM * 30)[:length], " I did it. " * 9
    prompt: object = ids_of(text) if is_ids else text
    first = wire.send({"model": "m", "prompt": prompt}, api="completions")
    answer = Answer(text=said, token_ids=pack(ids_of(said)) or b"", is_complete=True)
    kept = wire.index.answered(first, answer, now=wire.now)
    assert kept is not None
    longer = text + said.strip() * (not is_ids) + said * is_ids + " Go on." * 50
    prompt = ids_of(longer) if is_ids else longer
    second = wire.send({"model": "m", "prompt": prompt}, api="completions")
    assert kept.prefix in {p.prefix for p in second.prefixes}
    sizes = [p.tokens for p in second.prefixes]
    assert sizes == sorted(sizes)
    if is_ids:
        assert kept.tokens == len(text) + len(said)
        assert second.prompt_tokens == len(longer)
