"""Answers that their clients change: with calls that they read out of the text, or shortened."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from agentsched.model import Lineage
from agentsched.proxy.identity import Evidence, Identity
from agentsched.proxy.identity.prompt import Digester, Said
from agentsched_bench.clients.acting import Wire, result, said, system, user

APIS = ("chat", "messages", "responses")


def _turn(api: str, text: str, call: str) -> list[dict[str, Any]]:
    """Our text, the call that the client found in it, and what came of that."""
    arguments = {"cmd": "ls"}
    match api:
        case "chat":
            asked = said(text, (call, "bash", json.dumps(arguments)))
            return [asked, {"role": "tool", "tool_call_id": call, "content": f"ran {call}"}]
        case "messages":
            block = {"type": "tool_use", "id": call, "name": "bash", "input": arguments}
            seen = {"type": "tool_result", "tool_use_id": call, "content": f"ran {call}"}
            return [
                {"role": "assistant", "content": [{"type": "text", "text": text}, block]},
                {"role": "user", "content": [seen]},
            ]
        case _:
            asked = {"type": "function_call", "call_id": call, "name": "bash"}
            asked["arguments"] = json.dumps(arguments)
            seen = {"type": "function_call_output", "call_id": call, "output": f"ran {call}"}
            return [said(text), asked, seen]


def _ask(wire: Wire, api: str, messages: list[dict[str, Any]]) -> Identity:
    name = "input" if api == "responses" else "messages"
    return wire.send({"model": "m", name: messages}, api=api)


@pytest.mark.parametrize("is_plain_first", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_text_beside_calls_of_the_clients_own_is_known(
    wire: Wire, api: str, is_plain_first: bool
) -> None:
    told: list[dict[str, Any]] = [user("fix the bug")]
    last = _ask(wire, api, told)
    if is_plain_first:
        wire.answer(last, "Which one?")
        told += [said("Which one?"), user("that one")]
        last = _ask(wire, api, told)
    for number in range(4):
        text = f"Ok {number}: <tool>ls</tool>"
        wire.answer(last, text)
        told += _turn(api, text, f"made-up-{number}-0a1b2c3d")
        following = _ask(wire, api, told)
        assert (following.conversation, following.lineage, following.evidence) == (
            last.conversation,
            Lineage.EXTENDS,
            Evidence.PREFIX,
        )
        last = following


@pytest.mark.parametrize("api", APIS)
def test_equal_programs_with_calls_of_their_own_stay_two(wire: Wire, api: str) -> None:
    head = [user("fix the bug")]
    begun = [_ask(wire, api, head) for _ in range(2)]
    texts = ["I look: <tool>ls</tool>", "I try: <tool>make</tool>"]
    for identity, text in zip(begun, texts, strict=True):
        wire.answer(identity, text)
    found = [_ask(wire, api, [*head, *_turn(api, text, "c0ffee-1")]) for text in reversed(texts)]
    assert [identity.program for identity in found] == [one.program for one in reversed(begun)]
    stranger = [*head, *_turn(api, "I never said that.", "c0ffee-2")]
    assert _ask(wire, api, stranger).evidence is Evidence.NONE


def test_a_branch_off_an_answer_with_calls_of_the_clients_own_is_its_programs(wire: Wire) -> None:
    told, text = [user("fix the bug")], "Ok: <tool>ls</tool>"
    first = wire.chat(told)
    wire.answer(first, text)
    wire.answer(wire.chat([*told, *_turn("chat", text, "one-0a1b2c3d")]), "Done.")
    other = wire.chat([*told, *_turn("chat", text, "two-0a1b2c3d")])
    assert (other.program, other.lineage) == (first.program, Lineage.FORKS)


@pytest.mark.parametrize("is_calling", [True, False])
def test_of_a_history_that_nobody_knows_one_answer_is_decoded_at_most(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, is_calling: bool
) -> None:
    """Some clients write theirs anew at each request: to decode all of them took half its time."""
    decoded: list[object] = []
    spoken_in = Digester.spoken_in

    def count(self: Digester, one: Said) -> str:
        decoded.append(one)
        return spoken_in(self, one)

    monkeypatch.setattr(Digester, "spoken_in", count)
    told = [user("fix the bug")]
    for number in range(20):
        text = f"answer {number}"
        told += _turn("chat", text, f"c{number}-c0ffee") if is_calling else [said(text), user("?")]
    assert wire.chat(told).evidence is Evidence.NONE
    assert len(decoded) == is_calling


def test_the_ids_that_we_handed_out_come_first(wire: Wire) -> None:
    first = wire.chat([user("fix the bug")])
    wire.answer(first, "I look.", [("call_0a1b2c3d4e5f", "bash", '{"cmd": "ls"}')])
    told = [user("fix the bug"), *_turn("chat", "I look.", "call_0a1b2c3d4e5f")]
    assert wire.chat(told).evidence is Evidence.CALL_ID


_TASK = [user("fix the bug that is told of below. " * 40)]
_SAID = "I will look at the parser first, then at its tests, and only then at what calls it. "


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("kept", [80, len(_SAID) * 2])
def test_an_answer_that_comes_back_shortened_is_known(wire: Wire, api: str, kept: int) -> None:
    """Of the later ones, behind what only this program said, little is enough."""
    told = list(_TASK)
    first = _ask(wire, api, told)
    wire.answer(first, _SAID * 3)
    told += [said((_SAID * 3)[:kept]), user("go on")]
    second = _ask(wire, api, told)
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)
    wire.answer(second, "What else is there to say?")
    third = _ask(wire, api, [*told, said("What else is there"), user("go on")])
    assert (third.conversation, third.step) == (first.conversation, 3)


def test_how_an_answer_begins_is_kept_until_it_was_gone_on_from(wire: Wire) -> None:
    first = wire.chat(_TASK)
    wire.answer(first, _SAID)
    [turn] = wire.index._programs[first.program].turns
    assert turn.begun
    wire.chat([*_TASK, said(_SAID), user("go on")])
    assert (turn.prompt, turn.begun) == (b"", b"")


def test_an_answer_that_its_client_wrote_more_behind_is_known(wire: Wire) -> None:
    first = _ask(wire, "chat", _TASK)
    wire.answer(first, _SAID)
    told = [*_TASK, said(_SAID + "[stopped by the user]"), user("go on")]
    assert _ask(wire, "chat", told).conversation == first.conversation


def _shortened(task: str, left: str, *heads: str) -> list[dict[str, Any]]:
    return [*map(system, heads), user(task), said(left), user("go on")]


@pytest.mark.parametrize(
    ("task", "left", "why"),
    [
        ("hello", _SAID[:70], "many say so"),
        (str(_TASK[0]["content"]), _SAID[:40], "too little of it is left"),
        (str(_TASK[0]["content"]), _SAID[:16] + _SAID[:60], "something else was said"),
    ],
)
def test_a_first_answer_in_part_joins_nobody_where_it_could_be_anothers(
    wire: Wire, task: str, left: str, why: str
) -> None:
    first = wire.chat([user(task)])
    wire.answer(first, _SAID)
    assert wire.chat(_shortened(task, left)).evidence is Evidence.NONE, why


def test_what_all_programs_of_an_agent_are_told_makes_no_task_a_long_one(wire: Wire) -> None:
    head = "You are an agent. " * 200
    first = wire.chat([system(head), user("hello")], tools=["bash" * 300])
    wire.answer(first, _SAID * 20)
    left = _shortened("hello", _SAID * 2, head)
    assert wire.chat(left, tools=["bash" * 300]).evidence is Evidence.NONE


@pytest.mark.parametrize("other", ["answered alike", "not answered", "broke off"])
def test_of_equal_tasks_nothing_says_whose_part_of_an_answer_it_is(wire: Wire, other: str) -> None:
    task = str(_TASK[0]["content"])
    one, two = wire.chat([user(task)]), wire.chat([user(task)])
    wire.answer(one, _SAID * 2)
    if other == "answered alike":
        wire.answer(two, _SAID + "But no.")
    elif other == "broke off":
        wire.answer(two, _SAID[:70], is_complete=False)
        wire.seconds += 600
    found = wire.chat(_shortened(task, _SAID[:70]))
    assert found.program not in (one.program, two.program)


def test_another_agents_part_of_an_answer_is_not_meant(wire: Wire) -> None:
    task = str(_TASK[0]["content"])
    first = wire.chat([system("You write."), user(task)])
    wire.answer(first, _SAID * 2)
    assert wire.chat(_shortened(task, _SAID[:80], "You judge.")).evidence is Evidence.NONE


@pytest.mark.parametrize("call", ["functions.bash:0", "call.A1:b2/c3=="])
def test_ids_whose_odd_characters_a_client_wrote_anew_are_ours(wire: Wire, call: str) -> None:
    """Kimi's engines count calls up like this, and several clients keep no dots and colons."""
    written = re.sub("[^0-9A-Za-z_-]", "_", call)
    told = [system(), user("fix the bug")]
    first = wire.chat(told)
    wire.answer(first, "", [(call, "bash", "{}")])
    told += [said("", (written, "bash", "{}")), result(written)]

    second = wire.chat(told)

    assert (second.program, second.conversation) == (first.program, first.conversation)
    assert second.lineage is Lineage.EXTENDS
    wire.answer(second, "", [(call.replace("0", "1"), "bash", "{}")])
    again = re.sub("[^0-9A-Za-z_-]", "_", call.replace("0", "1"))
    third = wire.chat([*told, said("", (again, "bash", "{}")), result(again)])
    assert third.conversation == first.conversation
    assert (third.program, third.step) == (first.program, first.step + 2)
