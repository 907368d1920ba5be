"""Identification at its ceilings, and where two kinds of evidence disagree."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import SECOND, Lineage, StepClass
from agentsched.model.time import Nanos
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.identity import Evidence, IdentityLimits
from agentsched_bench.clients.acting import Wire, result, said, system, user

C1 = ("call_0a1b2c3d4e5f", "bash", '{"cmd" : "ls" }')
HEAD = [system(), user("fix the bug")]
LONG = "I looked at the parser and the bug is in the second branch, where the sign is lost."


def named(program: str = "p", **more: str) -> dict[str, str]:
    return {"x-agentsched-program": program, **more}


class TestBounds:
    def test_of_too_many_turns_the_oldest_is_not_known_again(self) -> None:
        wire = Wire(IdentityLimits(turns_per_program_max=2))
        told: list[dict[str, Any]] = [*HEAD]
        names = []
        for number in range(4):
            names.append(wire.chat(told))
            call = (f"call_{number}f3e2a9b8", "bash", "{}")
            wire.answer(names[-1], "", [call])
            told += [said("", call), result(call[0])]
        assert len({name.program for name in names}) == 1
        assert wire.index.statistics().turns == 2
        calls = wire.index._books[names[0].tenant].calls
        assert list(calls) == ["call_2f3e2a9b8", "call_3f3e2a9b8"]

    def test_messages_of_many_blocks_take_the_room_of_many(self) -> None:
        wire = Wire(IdentityLimits(messages_max=1_000))
        for number in range(40):
            blocks = [
                {"type": "tool_result", "tool_use_id": f"toolu_{number}_{n}", "content": "x"}
                for n in range(100)
            ]
            wire.send({"model": "m", "messages": [{"role": "user", "content": blocks}]})
        assert wire.index.statistics().messages <= 10
        prose = "Calling tools:" + "".join(f"'id': '{n:0>100}'" for n in range(50))
        for number in range(40):
            wire.chat([user("x"), said(f"{number} {prose}")])
        assert wire.index.statistics().messages <= 50

    def test_a_turn_that_is_dropped_while_open_has_no_end(self) -> None:
        wire = Wire(IdentityLimits(turns_per_program_max=1))
        first = wire.chat(HEAD, headers=named())
        second = wire.chat([system(), user("another")], headers=named())
        wire.answer(first, "", [C1])  # nobody knows it any more
        assert not wire.index._books[first.tenant].calls
        wire.answer(second, "", [C1])
        assert list(wire.index._books[first.tenant].calls) == [C1[0]]

    def test_of_too_many_turns_in_all_the_idlest_program_goes(self) -> None:
        wire = Wire(IdentityLimits(turns_max=3))
        names = [wire.chat([system(), user(f"task {number}")]) for number in range(5)]
        assert [name.program in wire.index for name in names] == [False] * 2 + [True] * 3
        assert wire.index.statistics().turns == 3
        # One program alone may have more than that: its own ceiling bounds it.
        alone = Wire(IdentityLimits(turns_max=1))
        for number in range(3):
            alone.chat([system(), user(f"task {number}")], headers=named())
        assert alone.index.statistics().turns == 3

    @pytest.mark.parametrize("ceiling", ["programs_max", "turns_max"])
    def test_newcomers_that_are_refused_push_out_no_program_that_was_served(
        self, ceiling: str
    ) -> None:
        limits = {"programs_max": IdentityLimits(programs_max=4), "turns_max": None}
        wire = Wire(limits[ceiling] or IdentityLimits(turns_max=4))
        served = wire.chat(HEAD)
        wire.answer(served, "", [C1])
        flood = []
        for number in range(20):
            flood.append(wire.chat([system(), user(f"task {number}")]))
            wire.abandon(flood[-1])
        # Of those that were refused the latest stay, for they may come again.
        left = [name.program in wire.index for name in flood]
        assert left == [False] * 17 + [True] * 3
        again = wire.chat([system(), user("task 18")])
        assert again.is_retry
        assert again.program == flood[18].program
        after = wire.chat([*HEAD, said("", C1), result(C1[0])])
        assert after.program == served.program

    def test_who_is_served_after_all_keeps_its_place(self) -> None:
        wire = Wire(IdentityLimits(programs_max=2))
        first = wire.chat(HEAD)
        wire.abandon(first)
        again = wire.chat(HEAD)
        assert again.retries
        wire.answer(again, "", [C1])
        idle = wire.chat([system(), user("another")])
        wire.abandon(idle)
        wire.chat([system(), user("a third")])
        assert (first.program in wire.index, idle.program in wire.index) == (True, False)

    def test_a_served_program_whose_turn_fails_is_still_served(self) -> None:
        wire = Wire(IdentityLimits(programs_max=2))
        served, other = wire.chat(HEAD), wire.chat([system(), user("another")])
        wire.answer(served, "", [C1])
        wire.answer(other, "", [("call_9f3e2a9b8", "bash", "{}")])
        wire.abandon(wire.chat([*HEAD, said("", C1), result(C1[0])]))
        wire.chat([system(), user("a third")])
        # As ever: of those that were served the one that was idle for longest goes.
        assert (served.program in wire.index, other.program in wire.index) == (True, False)

    def test_of_too_many_threads_the_one_unused_longest_is_forgotten(self) -> None:
        wire = Wire(IdentityLimits(programs_max=2))
        for session in ("s1", "s2", "s1", "s3"):
            wire.chat(HEAD, headers={"x-claude-code-session-id": session})
        [book] = wire.index._books.values()
        assert len(book.threads) <= 2

    def test_an_answer_of_nothing_or_of_too_much_ends_nowhere(self, wire: Wire) -> None:
        now = wire.now
        for answer in (
            Answer(text="", is_complete=True),
            Answer(text="x" * 100, is_complete=True, is_truncated=True),
        ):
            asked = wire.chat(HEAD, headers=named())
            assert wire.index.answered(asked, answer, now=now) is None
        whole = wire.chat(HEAD, headers=named())
        assert wire.index.answered(whole, Answer(text="x", is_complete=True), now=now) is not None

    def test_calls_of_one_answer_are_indexed_up_to_a_number(self) -> None:
        wire = Wire(IdentityLimits(calls_per_turn_max=2))
        asked = wire.chat(HEAD)
        wire.answer(asked, "", [(f"call_{n}f3e2a9b8", "bash", "{}") for n in range(4)])
        [book] = wire.index._books.values()
        assert len(book.calls) == 2

    @pytest.mark.parametrize("size", [0, 257])
    def test_a_response_id_of_no_use_is_not_kept(self, wire: Wire, size: int) -> None:
        asked = wire.chat(HEAD)
        wire.answer(asked, "x", response_id="r" * size)
        [book] = wire.index._books.values()
        assert not book.responses

    def test_a_response_id_names_the_turn_that_had_it_first(self, wire: Wire) -> None:
        first, second = wire.chat(HEAD), wire.chat([system(), user("another")])
        for asked in (first, second):
            wire.answer(asked, "x", response_id="resp_1")
        body = {"model": "m", "input": "go on", "previous_response_id": "resp_1"}
        assert wire.send(body, api="responses").program == first.program


class TestRetries:
    def respond(self, wire: Wire, text: str, **more: Any) -> Any:
        body = {"model": "m", "input": text, "previous_response_id": "resp_1", **more}
        return wire.send(body, api="responses")

    def test_what_goes_on_by_response_id_may_be_sent_again(self, wire: Wire) -> None:
        first = wire.send({"model": "m", "input": "begin"}, api="responses")
        wire.answer(first, "x", response_id="resp_1")
        second = self.respond(wire, "go on")
        wire.abandon(second)
        again = self.respond(wire, "go on")
        assert again.is_retry
        assert (again.step, again.conversation) == (second.step, first.conversation)
        assert again.evidence is Evidence.RESPONSE_ID
        wire.answer(again, "y")
        fork = self.respond(wire, "otherwise")
        assert (fork.lineage, fork.program) == (Lineage.FORKS, first.program)

    def test_an_unknown_response_id_is_passed_over(self, wire: Wire) -> None:
        first = wire.send({"model": "m", "input": "begin"}, api="responses")
        wire.answer(first, "x", response_id="resp_1")
        for other in ("resp_2", 5, "r" * 2_000):
            found = self.respond(wire, "go on", previous_response_id=other)
            assert found.program != first.program

    def test_a_response_id_of_another_program_than_the_named_one(self, wire: Wire) -> None:
        first = wire.send({"model": "m", "input": "begin"}, api="responses")
        wire.answer(first, "x", response_id="resp_1")
        wire.chat(HEAD, headers=named("mine"))
        body = {"model": "m", "input": "on", "previous_response_id": "resp_1"}
        found = wire.send(body, api="responses", headers=named("mine"))
        assert found.program == "mine"

    def test_a_title_is_asked_for_twice_and_is_no_retry(self, wire: Wire) -> None:
        title = [system("You are a title generator."), user("fix the bug in the parser")]
        first = wire.chat(title, tools=(), headers=named())
        wire.answer(first, "Parser")
        again = wire.chat(title, tools=(), headers=named())
        assert again.step_class is StepClass.AUXILIARY
        assert not again.is_retry

    def test_an_answered_later_turn_is_not_sent_again_after_too_long(self) -> None:
        limits = IdentityLimits(head_retry_ns_max=Nanos(60 * SECOND))
        found = []
        for wait in (30, 90):
            wire = Wire(limits)
            first = wire.chat(HEAD)
            wire.answer(first, "", [C1])
            told = [*HEAD, said("", C1), result(C1[0])]
            second = wire.chat(told)
            wire.answer(second, LONG)
            wire.seconds += wait
            found.append(wire.chat(told).is_retry)
        assert found == [True, False]


class TestDisagreement:
    def test_a_call_id_of_another_program_than_the_named_one(self, wire: Wire) -> None:
        first = wire.chat(HEAD, headers=named("one"))
        wire.answer(first, "", [C1])
        wire.chat([system(), user("other")], headers=named("two"))
        stolen = [system("Another."), user("x"), said("", C1), result(C1[0])]
        assert wire.chat(stolen, headers=named("two")).program == "two"
        stolen[1] = user("z")
        assert wire.chat(stolen).program == first.program

    def test_a_text_of_another_program_than_the_named_one(self, wire: Wire) -> None:
        first = wire.chat(HEAD, headers=named("one"))
        wire.answer(first, LONG)
        wire.chat([system(), user("other")], headers=named("two"))
        quoted = [system("Another."), user("x"), said(LONG), user("y")]
        assert wire.chat(quoted, headers=named("two")).program == "two"
        found = wire.chat(quoted)
        assert (found.program, found.evidence) == (first.program, Evidence.TEXT)

    def test_a_counted_id_proves_a_named_programs_own_history_alone(self, wire: Wire) -> None:
        weak = ("call_1", "bash", "{}")
        first = wire.chat(HEAD, headers=named("one"))
        wire.answer(first, "", [weak])
        # Other arguments than were answered: the chain does not match, the id does.
        changed = [*HEAD, said("", ("call_1", "bash", '{"cmd": "ls"}')), result("call_1")]
        assert wire.chat(changed).program != first.program
        on = wire.chat(changed, headers=named("one"))
        assert (on.program, on.conversation) == (first.program, first.conversation)

    def test_a_title_after_the_first_step_is_joined_by_nobody(self, wire: Wire) -> None:
        words = "fix the bug in the parser, please"
        title = wire.chat([system("You are a title generator."), user(words)], tools=())
        wire.answer(title, "Parser")
        step = wire.chat([system(), user(words)])
        assert step.program == title.program
        later = wire.chat([system(), user(words)])
        assert later.program != title.program

    def test_an_empty_title_call_or_summary_is_looked_for_nowhere(self, wire: Wire) -> None:
        wire.chat([system("You are a title generator."), user("''")], tools=())
        asked = wire.chat([user("Please create a detailed summary of the conversation so far")])
        assert asked.step_class is StepClass.COMPACTION
        wire.answer(asked, "short")
        [book] = wire.index._books.values()
        assert len(book.needles) == 0


def test_a_completion_that_says_nothing_is_known_by_its_prompt(wire: Wire) -> None:
    body = {"model": "m", "prompt": "def f(n):"}
    first = wire.send(body, api="completions")
    wire.answer(first, " \n")
    [book] = wire.index._books.values()
    assert not book.lengths
    second = wire.send(body, api="completions")
    wire.answer(second, "  return n\n")
    [lengths] = book.lengths.values()
    # As it was, without its end, without both ends: templates differ.
    assert sorted(lengths) == [9 + 8, 9 + 10, 9 + 11]


def test_calls_of_an_answer_that_broke_off_are_learnt_all_the_same(wire: Wire) -> None:
    first = wire.chat(HEAD)
    calls = (AnsweredCall(call_id=C1[0], name="bash", arguments="{"),)
    cut = Answer(text="", calls=calls, is_complete=False)
    assert wire.index.answered(first, cut, now=wire.now) is None
    on = wire.chat([*HEAD, said("", C1), result(C1[0])])
    assert on.program == first.program


def test_idle_programs_expire() -> None:
    wire = Wire(IdentityLimits(program_idle_ns_max=Nanos(60 * SECOND)))
    first = wire.chat(HEAD)
    wire.seconds += 3_600  # as long as its answer comes it is not idle
    assert wire.index.expire(now=wire.now) == ()
    wire.answer(first, "There is nothing in there.")
    wire.seconds += 59
    assert wire.index.expire(now=wire.now) == ()
    wire.seconds += 2
    assert wire.index.expire(now=wire.now) == (first.program,)
    assert len(wire.index) == 0
