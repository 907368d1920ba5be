"""Which turn a prompt goes on from, where a client shortens what it sent before."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import Lineage, StepClass
from agentsched.proxy.identity import Evidence, Identity
from agentsched_bench.clients.acting import Wire, result, said, system, user

ELIDED = "Old environment output: (30 lines omitted)"
CALLS = [(f"call_{n}f00dface{n}", "bash", '{"cmd": "ls"}') for n in range(5)]


def elided(count: int) -> list[dict[str, Any]]:
    """A history of so many calls, of whose results only the last one is whole."""
    prompt = [system(), user("fix the bug")]
    for number, call in enumerate(CALLS[:count]):
        told = f"output {number} " * 30 if number == count - 1 else ELIDED
        prompt += [said("so", call), result(call[0], told)]
    return prompt


@pytest.mark.parametrize(
    ("headers", "evidence"),
    [({}, Evidence.CALL_ID), ({"x-claude-code-session-id": "s1"}, Evidence.NATIVE)],
)
def test_elided_results_leave_the_conversation_what_it_was(
    wire: Wire, headers: dict[str, str], evidence: Evidence
) -> None:
    """As SWE-agent and Claude Code do: the prompt leaves the known one long before its end."""
    found: list[Identity] = []
    for count, call in enumerate(CALLS):
        found.append(wire.chat(elided(count), headers=headers))
        wire.answer(found[-1], "so", [call])
    assert len({(step.program, step.conversation) for step in found}) == 1
    assert [step.lineage for step in found] == [
        Lineage.NEW,
        Lineage.EXTENDS,
        *[Lineage.COMPACTS] * 3,
    ]
    assert {step.evidence for step in found[1:]} == {evidence}


def test_elided_texts_leave_the_conversation_what_it_was(wire: Wire) -> None:
    answers = [f"In round {number} I looked at the parser and at its tests." for number in range(4)]
    prompt: list[dict[str, Any]] = [system(), user("fix the bug")]
    found: list[Identity] = []
    for number, answer in enumerate(answers):
        found.append(wire.chat(prompt, tools=()))
        wire.answer(found[-1], answer)
        for place, message in enumerate(prompt[2:], start=2):
            if message["role"] == "user":
                prompt[place] = user(ELIDED)
        prompt += [said(answer), user(f"output {number} " * 30)]
    assert len({(step.program, step.conversation) for step in found}) == 1
    assert found[-1].lineage is Lineage.COMPACTS


@pytest.mark.parametrize("is_text", [False, True])
def test_a_branch_is_a_branch(is_text: bool, wire: Wire) -> None:
    """Who goes on from an earlier answer has not heard the later one."""
    calls = [] if is_text else CALLS
    answers = [f"In round {number} I looked at the parser and at its tests." for number in range(2)]
    prompt: list[dict[str, Any]] = [system(), user("fix the bug")]
    for number, answer in enumerate(answers):
        last = wire.chat(prompt)
        wire.answer(last, answer, calls[number : number + 1])
        prompt.append(said(answer, *calls[number : number + 1]))
        prompt.append(user("go on") if is_text else result(CALLS[number][0]))
    branch = wire.chat(
        [*prompt[:3], user("no, otherwise") if is_text else result(CALLS[0][0], "no")]
    )
    assert branch.lineage is Lineage.FORKS
    assert (branch.program, branch.conversation == last.conversation) == (last.program, False)


def test_line_ends_that_a_client_writes_anew_change_no_answer(wire: Wire) -> None:
    first = wire.chat([system(), user("fix the bug")], tools=())
    wire.answer(first, "Sure.\r\n\r\nIt is done.")
    again = [system(), user("fix the bug"), said("Sure.\n\nIt is done."), user("thanks")]
    assert wire.chat(again, tools=()).conversation == first.conversation


def test_a_call_of_the_clients_own_beside_ours_hides_nothing(wire: Wire) -> None:
    """Some answer more than they were asked: one call that we handed out says whose it is."""
    prompt = [system(), user("fix the bug")]
    first = wire.chat(prompt)
    wire.answer(first, "so", [CALLS[0]])
    told = [said("so, and so", CALLS[0], CALLS[1]), result(CALLS[0][0]), result(CALLS[1][0])]
    second = wire.chat([*prompt, *told])
    assert (second.program, second.conversation) == (first.program, first.conversation)
    assert (second.lineage, second.evidence) == (Lineage.EXTENDS, Evidence.CALL_ID)


def test_of_equal_beginnings_the_latest_that_waits_is_gone_on_from(wire: Wire) -> None:
    """Two samples of one prompt, and what comes back is neither of their texts."""
    headers = {"x-agentsched-program": "p"}
    prompt = [system(), user("fix the bug")]
    begun = wire.chat(prompt, headers=headers)
    wire.answer(begun, "I looked at the parser and at its tests, one by one.")
    other = wire.chat(prompt, headers=headers)
    wire.answer(other, "I have not looked at anything at all so far, sorry.")
    told = [*prompt, said("Shortened."), user("go on")]
    assert wire.chat(told, headers=headers).conversation == other.conversation


@pytest.mark.parametrize("headers", [{}, {"x-session-id": "s1", "x-session-affinity": "s1"}])
def test_a_short_answer_last_does_not_make_a_branch(wire: Wire, headers: dict[str, str]) -> None:
    """As OpenCode and others clear old results before they send what the user says next."""
    prompt = [system(), user("fix the bug")]
    first = wire.chat(prompt, headers=headers)
    wire.answer(first, "", CALLS[:1])
    told = [*prompt, said("", CALLS[0])]
    wire.answer(wire.chat([*told, result(CALLS[0][0], "long")], headers=headers), "Done.")
    cleared = [*told, result(CALLS[0][0], ELIDED), said("Done."), user("thanks")]
    third = wire.chat(cleared, headers=headers)
    assert (third.conversation, third.lineage) == (first.conversation, Lineage.COMPACTS)
    # It went on from there: who says the same with other words behind it is a branch.
    wire.answer(third, "Welcome.")
    branch = wire.chat([*told, result(CALLS[0][0], "b"), said("Done."), user("x")], headers=headers)
    assert branch.lineage is Lineage.FORKS
    assert (branch.program, branch.conversation == first.conversation) == (first.program, False)


def test_a_branch_behind_equal_words_is_a_branch(wire: Wire) -> None:
    """What was said last may have been said before, in the part that is known."""
    prompt: list[dict[str, Any]] = [system(), user("fix the bug")]
    for _ in range(2):
        last = wire.chat(prompt)
        wire.answer(last, "Done.")
        prompt += [said("Done."), user("and the next one")]
    branch = wire.chat([*prompt[:3], user("no, otherwise")])
    assert (branch.lineage, branch.conversation == last.conversation) == (Lineage.FORKS, False)
    main = wire.chat(prompt)
    assert (main.lineage, main.conversation) == (Lineage.EXTENDS, last.conversation)


@pytest.mark.parametrize("greeting", [[], [said("Hi! How can I help you today?")]])
@pytest.mark.parametrize("more", [[], [user("Are you there?")]])
def test_who_says_hello_after_a_transfer_is_somebody_else(
    wire: Wire, greeting: list[dict[str, Any]], more: list[dict[str, Any]]
) -> None:
    """As tau-bench ends its runs, and the next one begins with the same words."""
    one = wire.chat([system("It is 10:01."), *greeting, user("Hello")])
    wire.answer(one, "", [("call_77aa02bb03cc", "transfer_to_human_agents", "{}")])
    other = wire.chat([system("It is 10:02."), *greeting, user("Hello"), *more])
    assert other.program != one.program


def test_of_equal_runs_at_once_the_one_that_was_answered_first_goes_on_first(wire: Wire) -> None:
    """They are told apart by nothing else; one that is over before they began is not meant."""
    prompt = [system(), user("fix the bug")]
    over = wire.chat(prompt)
    wire.answer(over, "What bug?")
    begun = [wire.chat(prompt) for _ in range(3)]
    for run in (begun[1], begun[0], begun[2]):
        wire.answer(run, "What bug?")
    told = [*prompt, said("What bug?"), user("that one")]
    found = [wire.chat(told).program for _ in range(4)]
    assert found == [begun[1].program, begun[0].program, begun[2].program, over.program]


def test_a_run_that_goes_on_while_another_waits_for_its_answer_is_meant(wire: Wire) -> None:
    prompt = [system(), user("fix the bug")]
    one, other = wire.chat(prompt), wire.chat(prompt)
    wire.answer(one, "What bug?")
    told = [*prompt, said("What bug?"), user("that one")]
    assert wire.chat(told).program == one.program
    wire.answer(other, "What bug?")
    later = wire.chat(prompt)
    wire.answer(later, "What bug?")
    assert [wire.chat(told).program for _ in range(2)] == [later.program, other.program]


def test_titles_in_equal_words_are_two_programs(wire: Wire) -> None:
    """Two agents get one task at once, and each asks for a title first."""
    ask = [system("You are a title generator."), user("Title this:"), user('"fix the bug"')]
    titles = [wire.chat(ask, tools=()) for _ in range(2)]
    assert [title.step_class for title in titles] == [StepClass.AUXILIARY] * 2
    assert titles[0].program != titles[1].program
    mains = [wire.chat([system(), user("fix the bug")]) for _ in range(2)]
    assert mains[0].program != mains[1].program
    # What else is asked about the same words before the work begins is beside the title.
    ask = [system("You are a title generator."), user("find the leak in the pool")]
    title = wire.chat(ask, tools=())
    topic = [
        system("Analyze if this message indicates a new conversation topic."),
        user("find the leak in the pool"),
    ]
    assert wire.chat(topic, tools=()).program == title.program
    assert wire.chat([system(), user("find the leak in the pool")]).program == title.program
