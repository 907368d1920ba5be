"""A turn that is sent again although we saw no failure: known by a name or an id of ours only."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.model import Lineage
from agentsched.model.time import SECOND, Nanos
from agentsched.proxy.identity import IdentityLimits
from agentsched_bench.clients.acting import Wire, result, said, system, user

C1 = ("call_0a1b2c3d4e5f", "bash", '{"cmd": "ls"}')
C2 = ("call_9f8e7d6c5b4a", "bash", '{"cmd": "pwd"}')
HEAD = [system(), user("fix the bug")]
TOLD = [*HEAD, said("", C1), result(C1[0])]
CLAUDE = {"x-claude-code-session-id": "s1", "x-stainless-retry-count": "0"}
OURS = {"x-agentsched-program": "p", "x-agentsched-conversation": "c"}
#: As SDKs say it, of whatever they send again.
AGAIN = {"x-stainless-retry-count": "1"}


def test_an_answered_first_turn_of_a_named_thread_is_sent_again(wire: Wire) -> None:
    first = wire.chat(HEAD, headers=CLAUDE)
    wire.answer(first, "", [C1])
    again = wire.chat(HEAD, headers=CLAUDE)
    assert again.is_retry
    assert (again.conversation, again.step) == (first.conversation, 1)
    wire.answer(again, "", [C2])
    later = wire.chat([*HEAD, said("", C2), result(C2[0])], headers=CLAUDE)
    assert (later.conversation, later.step) == (first.conversation, 2)


def test_the_first_answer_may_have_come_through_after_all(wire: Wire) -> None:
    first = wire.chat(HEAD, headers=CLAUDE)
    wire.answer(first, "", [C1])
    wire.answer(wire.chat(HEAD, headers=CLAUDE), "", [C2])
    later = wire.chat(TOLD, headers=CLAUDE)
    assert (later.conversation, later.step) == (first.conversation, 2)


def test_an_answered_later_turn_is_sent_again_not_forked(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [C1])
    second = wire.chat(TOLD)
    wire.answer(second, "Done.")
    again = wire.chat(TOLD)
    assert again.is_retry
    assert (again.conversation, again.step) == (first.conversation, 2)


def test_a_turn_that_went_on_is_not_sent_again(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [C1])
    second = wire.chat(TOLD)
    wire.answer(second, "Done.")
    wire.chat([*TOLD, said("Done."), user("more")])
    assert not wire.chat(TOLD).is_retry


def test_a_resend_overtakes_the_hang_up(wire: Wire) -> None:
    first = wire.chat(HEAD, headers=CLAUDE)
    again = wire.chat(HEAD, headers=CLAUDE)
    assert again.is_retry
    wire.abandon(first)  # the hang-up arrives at last
    wire.answer(again, "", [C1])
    second = wire.chat(TOLD, headers=CLAUDE)
    assert (second.conversation, second.step) == (first.conversation, 2)


def test_an_answer_long_ago_is_not_asked_for_again() -> None:
    wire = Wire(IdentityLimits(head_retry_ns_max=Nanos(10 * SECOND)))
    first = wire.chat(HEAD, headers=CLAUDE)
    wire.answer(first, "", [C1])
    wire.seconds += 10
    assert not wire.chat(HEAD, headers=CLAUDE).is_retry


def test_samples_of_one_prompt_that_come_at_once_are_not_retries(wire: Wire) -> None:
    one = wire.chat(HEAD, headers=OURS)
    wire.seconds -= 0.99
    assert not wire.chat(HEAD, headers=OURS).is_retry
    wire.answer(one, "", [C1])
    wire.chat(TOLD)
    wire.seconds -= 0.99
    assert not wire.chat(TOLD).is_retry


def test_what_is_said_after_an_answer_cut_short_is_a_step_of_its_own(wire: Wire) -> None:
    """As after Esc in Claude Code: what came so far stays, and the user says something else."""
    first = wire.chat(HEAD)
    wire.answer(first, "I will delete ", is_complete=False)
    second = wire.chat([*HEAD, said("I will delete "), user("No, keep it all.")])
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)
    assert (second.is_retry, second.step) == (False, 2)


def test_an_answer_that_is_asked_to_go_on_is_the_same_step(wire: Wire) -> None:
    """As Qwen Code does it."""
    first = wire.chat(HEAD)
    wire.answer(first, "I will delete ", is_complete=False)
    resume = user("The connection dropped mid-response. Resume directly from where you stopped.")
    second = wire.chat([*HEAD, said("I will delete "), resume])
    assert (second.conversation, second.is_retry, second.step) == (first.conversation, True, 1)


def test_of_two_runs_of_one_prompt_the_one_that_failed_is_sent_again(wire: Wire) -> None:
    one, twin = wire.chat(HEAD), wire.chat(HEAD)
    wire.abandon(one)
    again = wire.chat(HEAD, headers=AGAIN)
    assert (again.is_retry, again.retries, again.program) == (True, one.turn, one.program)
    wire.answer(again, "", [C1])
    wire.answer(twin, "", [C2])
    later = wire.chat([*HEAD, said("", C2), result(C2[0])])
    assert (later.program, later.step) == (twin.program, 2)


def test_of_several_that_are_under_way_nothing_says_which_is_sent_again(wire: Wire) -> None:
    runs = [wire.chat(HEAD) for _ in range(2)]
    again = wire.chat(HEAD, headers=AGAIN)
    assert not again.is_retry
    assert again.program not in {run.program for run in runs}


def test_sub_agents_of_one_prompt_are_not_each_others_retries(wire: Wire) -> None:
    one = wire.chat(HEAD, headers=CLAUDE | {"x-claude-code-agent-id": "a"})
    other = wire.chat(HEAD, headers=CLAUDE | {"x-claude-code-agent-id": "b"})
    assert not other.is_retry
    assert one.conversation != other.conversation


def test_two_programs_that_name_themselves_are_not_each_others_retries(wire: Wire) -> None:
    one = wire.chat(HEAD, headers=CLAUDE)
    other = wire.chat(HEAD, headers=CLAUDE | {"x-claude-code-session-id": "s2"})
    assert not other.is_retry
    assert one.program != other.program


def test_call_ids_that_we_did_not_hand_out_prove_nothing(wire: Wire) -> None:
    one, other = wire.chat(TOLD), wire.chat(TOLD)
    assert not other.is_retry
    assert one.conversation != other.conversation


@settings(max_examples=30, deadline=None)  # a busy machine is no defect
@given(answered=st.lists(st.booleans(), min_size=2, max_size=6))
def test_runs_of_one_prompt_without_ids_never_merge(answered: list[bool]) -> None:
    wire = Wire()
    programs = []
    for at, is_answered in enumerate(answered):
        run = wire.chat(HEAD)
        if is_answered:
            wire.answer(run, "", [(f"call_{at:012x}aa", "bash", "{}")])
        programs.append(run.program)
    assert len(set(programs)) == len(answered)
