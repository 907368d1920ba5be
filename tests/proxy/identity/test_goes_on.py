"""Requests that show by themselves that their program was begun before them: to a new index."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched_bench.clients.acting import Wire, result, said, system, user

CALL = ("call_1", "bash", "{}")
FIRST = [system(), user("fix it")]


@pytest.mark.parametrize(
    ("more", "goes_on"),
    [
        ([], False),
        ([user("and that")], False),
        ([said("done"), user("now this")], True),
        ([said("", CALL), result("call_1")], True),
        # A client that begins the answer itself has not been answered yet.
        ([said("Thought:")], False),
        ([said("done"), user("now this"), said("Thought:")], True),
    ],
)
def test_answers_in_a_prompt_show_it(wire: Wire, more: list[dict[str, Any]], goes_on: bool) -> None:
    assert wire.chat([*FIRST, *more]).goes_on is goes_on


def test_a_greeting_is_no_answer(wire: Wire) -> None:
    assert not wire.chat([system(), said("How may I help?"), user("fix it")]).goes_on


@pytest.mark.parametrize("is_dry", [False, True])
def test_messages_and_responses_show_it_as_well(wire: Wire, is_dry: bool) -> None:
    told = {"model": "m", "messages": [user("fix it"), said("done"), user("go on")]}
    assert wire.send(told, api="messages", is_dry=is_dry).goes_on
    called = {"type": "function_call", "call_id": "c", "name": "bash", "arguments": "{}"}
    back = {"type": "function_call_output", "call_id": "c", "output": "ok"}
    items = {"model": "m", "input": [user("fix it"), called, back]}
    assert wire.send(items, api="responses", is_dry=is_dry).goes_on
    assert not wire.send({"model": "m", "input": "fix it"}, api="responses", is_dry=is_dry).goes_on


@pytest.mark.parametrize(("step", "goes_on"), [("1", False), ("2", True)])
def test_a_step_beyond_the_first_shows_it(wire: Wire, step: str, goes_on: bool) -> None:
    ours = {"x-agentsched-program": "p", "x-agentsched-step": step}
    assert wire.chat(FIRST, headers=ours).goes_on is goes_on


def test_a_sub_agent_shows_that_its_parent_was_begun(wire: Wire) -> None:
    context = {"session_id": "s", "parent_trajectory_id": "main", "trajectory_id": "side"}
    body = {"model": "m", "messages": FIRST, "nvext": {"agent_context": context}}
    assert wire.send(body).goes_on
