"""Clients that begin the answer themselves: the next prompt goes on from what both said."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import Lineage
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity import Evidence, Identity
from agentsched_bench.clients.acting import Wire, result, said, system, user

HEAD = [user("what is it?")]
BEGUN = "Thought: "
CALL = ("call_0a1b2c3d4e5f", "bash", '{"cmd": "ls"}')


def _ask(wire: Wire, api: str, *messages: dict[str, Any]) -> Identity:
    body: dict[str, Any] = {"model": "m"}
    match api:
        case "chat":
            body["messages"] = [system(), *messages]
        case "messages":
            body |= {"system": "You are an agent.", "messages": list(messages)}
        case _:
            body |= {"instructions": "You are an agent.", "input": list(messages)}
    return wire.send(body, api=api)


def _kept(form: str, answer: str) -> list[dict[str, Any]]:
    """Both as a client keeps them."""
    match form:
        case "together":
            return [said(BEGUN + answer)]
        case "in blocks":
            return [said() | {"content": [{"type": "text", "text": BEGUN + answer}]}]
        case "apart":
            return [said(BEGUN), said(answer)]
        case _:
            return [said(answer)]


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
@pytest.mark.parametrize("form", ["together", "in blocks", "apart", "the answer alone"])
def test_an_answer_that_its_prompt_began_is_known_again(wire: Wire, api: str, form: str) -> None:
    told = list(HEAD)
    first = _ask(wire, api, *told, said(BEGUN))
    for number in range(4):
        answer = f"step {number}. "
        wire.answer(first, answer)
        told += [*_kept(form, answer), user(f"observation {number}")]
        following = _ask(wire, api, *told, said(BEGUN))
        assert (following.conversation, following.lineage, following.evidence) == (
            first.conversation,
            Lineage.EXTENDS,
            Evidence.PREFIX,
        )
        assert following.step == number + 2
        first = following


def test_equal_programs_that_begin_their_answers_stay_two(wire: Wire) -> None:
    one, other = (_ask(wire, "chat", *HEAD, said(BEGUN)) for _ in range(2))
    wire.answer(one, "this")
    wire.answer(other, "that")
    third = _ask(wire, "chat", *HEAD, said(BEGUN))
    assert len({one.program, other.program, third.program}) == 3
    for identity, answer in ((other, "that"), (one, "this")):
        told = [*HEAD, said(BEGUN + answer), user("go on"), said(BEGUN)]
        assert _ask(wire, "chat", *told).program == identity.program
    stranger = [*HEAD, said(BEGUN + "something else"), user("go on"), said(BEGUN)]
    assert _ask(wire, "chat", *stranger).evidence is Evidence.NONE


def test_calls_behind_a_begun_answer_go_on_from_it(wire: Wire) -> None:
    first = wire.chat([system(), *HEAD, said("Let me see: ")])
    wire.answer(first, "I look.", [CALL])
    told = [system(), *HEAD, said("Let me see: I look.", CALL), result(CALL[0])]
    second = wire.chat(told)
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)


def test_an_answer_that_broke_off_and_was_ended_is_one(wire: Wire) -> None:
    first = wire.chat([system(), *HEAD])
    wire.answer(first, "All ", is_complete=False)
    again = wire.chat([system(), *HEAD, said("All ")])
    assert again.is_retry
    wire.answer(again, "done.")
    second = wire.chat([system(), *HEAD, said("All done."), user("thanks")])
    assert (second.conversation, second.step) == (first.conversation, 2)


@pytest.mark.parametrize("ends", ["whole", "cut at its length", "broken off", "abandoned"])
def test_text_of_a_prompt_is_held_no_longer_than_its_request(wire: Wire, ends: str) -> None:
    first = _ask(wire, "chat", *HEAD, said(BEGUN))
    [turn] = wire.index._programs[first.program].turns
    assert turn.prefill is not None
    if ends == "abandoned":
        wire.abandon(first)
    else:
        is_complete, is_cut = ends != "broken off", ends == "cut at its length"
        answer = Answer(text="It is so", is_complete=is_complete, is_truncated=is_cut)
        wire.index.answered(first, answer, now=wire.now)
    assert turn.prefill is None


@pytest.mark.parametrize("how", ["forgotten", "nothing said", "abandoned", "very long"])
def test_what_was_begun_is_kept_no_longer_than_its_answer(wire: Wire, how: str) -> None:
    begun = "word " * 10_000 if how == "very long" else BEGUN
    first = _ask(wire, "chat", *HEAD, said(begun))
    if how == "abandoned":
        wire.abandon(first)
    else:
        wire.answer(first, "" if how == "nothing said" else "It is so.")
    if how == "forgotten":
        assert wire.index.forget(first.program)
    told = [*HEAD, said(begun + "It is so."), user("go on")]
    assert _ask(wire, "chat", *told).program != first.program
