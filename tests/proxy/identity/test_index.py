"""Inference: programs are found by what they send, and strangers are never joined."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agentsched.model import Lineage, StepClass
from agentsched.model.time import SECOND, Nanos
from agentsched.proxy.answer import Answer
from agentsched.proxy.answers import read_answer
from agentsched.proxy.identity import Evidence, IdentityLimits
from agentsched.proxy.request import Dialect
from agentsched.proxy.tools import tool_call
from agentsched_bench.clients.acting import Wire, result, said, system, user

C1 = ("call_0a1b2c3d4e5f", "bash", '{"cmd" : "ls" }')
C1_BACK = ("call_0a1b2c3d4e5f", "bash", '{"cmd":"ls"}')
C2 = ("call_9f8e7d6c5b4a", "bash", '{"cmd": "pwd"}')
HEAD = [system(), user("fix the bug")]


def test_a_continuation_is_known_by_the_call_id_that_we_handed_out(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "Let me look.", [C1])
    second = wire.chat([*HEAD, said("Let me look.", C1_BACK), result(C1[0])])
    assert second.program == first.program
    assert second.conversation == first.conversation
    assert second.lineage is Lineage.EXTENDS
    assert second.evidence is Evidence.CALL_ID
    assert second.answers == (C1[0],)
    assert (first.step, second.step) == (1, 2)
    assert first.lineage is Lineage.NEW


def test_text_beside_calls_may_be_dropped_and_results_reordered(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "Let me look.", [C1, C2])
    turn = [*HEAD, said("", C1, C2), result(C2[0], "b"), result(C1[0], "a")]
    second = wire.chat(turn)
    wire.answer(second, "Done.")
    back = [*HEAD, said("", C1, C2), result(C1[0], "a"), result(C2[0], "b"), said("Done.")]
    third = wire.chat([*back, user("thanks")])
    assert third.conversation == first.conversation
    assert third.evidence is Evidence.PREFIX
    assert third.step == 3


def test_a_text_answer_is_known_again(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "What bug?")
    second = wire.chat([*HEAD, said("What bug? "), user("that one")])
    assert (second.program, second.evidence) == (first.program, Evidence.PREFIX)


@pytest.mark.parametrize("is_first_whole", [False, True])
def test_blocks_may_be_joined_and_parted(wire: Wire, is_first_whole: bool) -> None:
    blocks = [{"type": "text", "text": text} for text in ("Fix the ", "bug, please")]
    forms = [blocks, "Fix the bug, please"]
    asked, again = reversed(forms) if is_first_whole else forms
    first = wire.chat([system(), {"role": "user", "content": asked}])
    wire.answer(first, "Ok.")
    told = [system(), {"role": "user", "content": again}, said("Ok."), user("more")]
    second = wire.chat(told)
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)


def test_equal_heads_are_two_programs(wire: Wire) -> None:
    one, other = wire.chat(HEAD), wire.chat(HEAD)
    wire.answer(one, "", [C1])
    wire.answer(other, "", [C2])
    third = wire.chat(HEAD)
    assert len({one.program, other.program, third.program}) == 3
    assert wire.chat([*HEAD, said("", C2), result(C2[0])]).program == other.program
    assert wire.chat([*HEAD, said("", C1), result(C1[0])]).program == one.program


def test_a_shared_beginning_joins_nobody(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "What bug?")
    longer = wire.chat([*HEAD, user("a second paragraph")])
    foreign = wire.chat([*HEAD, said("An answer that we never gave."), user("go on")])
    assert len({first.program, longer.program, foreign.program}) == 3


def test_a_greeting_before_the_first_words_makes_no_history(wire: Wire) -> None:
    """As of a service agent, whose application has one cache key for all its users."""
    key, hello = {"prompt_cache_key": "app"}, said("Hi! How can I help you today?")
    steps = [wire.chat([system(), hello, user(f"task {n}")], **key) for n in range(20)]
    assert len({step.conversation for step in steps}) == 20
    assert len({step.program for step in steps[9:]}) == 11


def test_tenants_never_share_history(wire: Wire) -> None:
    first = wire.chat(HEAD, tenant="a")
    wire.answer(first, "", [C1])
    thief = wire.chat([*HEAD, said("", C1), result(C1[0])], tenant="b")
    assert thief.program != first.program
    assert thief.evidence is Evidence.NONE


def test_equal_programs_with_equal_answers_each_go_on_once(wire: Wire) -> None:
    one, other = wire.chat(HEAD), wire.chat(HEAD)
    for identity in (one, other):
        wire.answer(identity, "What bug?")
    turn = [*HEAD, said("What bug?"), user("that one")]
    found = {wire.chat(turn).program, wire.chat(turn).program}
    assert found == {one.program, other.program}
    third = wire.chat(turn)
    assert third.lineage is Lineage.FORKS


def test_of_two_runs_one_after_the_other_it_is_the_second(wire: Wire) -> None:
    old = wire.chat(HEAD)
    wire.answer(old, "What bug?")
    new = wire.chat(HEAD)
    wire.answer(new, "What bug?")
    assert wire.chat([*HEAD, said("What bug?"), user("x")]).program == new.program


def test_an_edited_question_forks(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [C1])
    told = [*HEAD, said("", C1), result(C1[0])]
    second = wire.chat(told)
    wire.answer(second, "Done.")
    fork = wire.chat([*told[:-1], result(C1[0], "another result")])
    wire.answer(fork, "Odd.")
    assert fork.program == first.program
    assert fork.lineage is Lineage.FORKS
    assert fork.parent_conversation == first.conversation != fork.conversation
    main = wire.chat([*told, said("Done."), user("more")])
    assert (main.conversation, main.lineage) == (first.conversation, Lineage.EXTENDS)
    branch = wire.chat([*told[:-1], result(C1[0], "another result"), said("Odd."), user("x")])
    assert (branch.conversation, branch.lineage) == (fork.conversation, Lineage.EXTENDS)


def test_a_retry_is_the_same_step(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.abandon(first)
    again = wire.chat(HEAD, stream=True)
    assert (again.program, again.conversation) == (first.program, first.conversation)
    assert again.is_retry
    assert again.step == first.step == 1
    wire.answer(again, "", [C1])
    told = [*HEAD, said("", C1), result(C1[0])]
    second = wire.chat(told)
    wire.answer(second, "par", is_complete=False)
    retry = wire.chat(told)
    assert retry.is_retry
    assert retry.step == second.step == 2
    assert retry.conversation == first.conversation


def test_each_failure_is_retried_once(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.abandon(first)
    assert wire.chat(HEAD).program == first.program
    assert wire.chat(HEAD).program != first.program


def test_a_head_that_failed_long_ago_is_not_retried() -> None:
    wire = Wire(IdentityLimits(head_retry_ns_max=Nanos(10 * SECOND)))
    first = wire.chat(HEAD)
    wire.abandon(first)
    wire.seconds += 11
    assert wire.chat(HEAD).program != first.program


def test_a_client_that_says_that_it_sends_again_is_believed(wire: Wire) -> None:
    first = wire.chat(HEAD)
    again = wire.chat(HEAD, headers={"x-stainless-retry-count": "1"})
    assert again.program == first.program
    assert again.is_retry


def test_what_is_asked_instead_of_a_retry_stays_in_the_conversation(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "What bug?")
    told = [*HEAD, said("What bug?")]
    second = wire.chat([*told, user("that one")])
    wire.abandon(second)
    instead = wire.chat([*told, user("this one")])
    assert (instead.conversation, instead.lineage) == (first.conversation, Lineage.EXTENDS)


def test_a_partial_answer_sent_back_continues_its_step(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "All ", is_complete=False)
    prefilled = wire.chat([*HEAD, said("All ")])
    assert prefilled.program == first.program
    assert prefilled.is_retry


def test_an_agent_that_stops_naming_itself_is_still_known(wire: Wire) -> None:
    first = wire.chat(HEAD, headers={"x-agentsched-program": "p"})
    wire.answer(first, "", [C1])
    second = wire.chat([*HEAD, said("", C1), result(C1[0])])
    assert second.program == "p"
    assert second.evidence is Evidence.CALL_ID


def test_another_system_prompt_over_the_same_history_is_a_handoff(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [("call_transfer_77aa01", "transfer_to_helper", "{}")])
    told = [user("fix the bug"), said("", ("call_transfer_77aa01", "transfer_to_helper", "{}"))]
    told.append(result("call_transfer_77aa01", '{"assistant": "helper"}'))
    helper = wire.chat([system("You are a helper."), *told])
    wire.answer(helper, "I help.")
    assert helper.program == first.program
    assert helper.conversation != first.conversation
    assert helper.parent_conversation == first.conversation
    assert helper.lineage is Lineage.FORKS
    on = wire.chat([system("You are a helper."), *told, said("I help."), user("go on")])
    assert on.conversation == helper.conversation


def test_a_handed_over_history_in_quotes_is_found_by_its_first_message(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [("call_transfer_77aa02", "transfer_to_agent", "{}")])
    quoted = [system("You are a helper."), user("fix the bug"), user("For context: <<<BEGIN")]
    assert wire.chat(quoted).program == first.program


def test_a_system_prompt_that_always_changes_does_not_scatter_a_program(wire: Wire) -> None:
    told: list[dict[str, Any]] = [user("fix the bug")]
    names = set()
    for turn in range(12):
        identity = wire.chat([system(f"The time is {turn}."), *told])
        call = (f"call_{turn:04d}abcdef{turn:02d}", "bash", "{}")
        wire.answer(identity, "", [call])
        told += [said("", call), result(call[0])]
        names.add((identity.program, identity.conversation))
    assert len({program for program, _ in names}) == 1
    assert len(names) <= 6


def test_a_sub_agent_is_found_by_the_prompt_that_called_it(wire: Wire) -> None:
    main = wire.chat(HEAD)
    prompt = "Search the code for callers of parse()"
    wire.answer(main, "", [("call_5a5a5a5a5a5a", "Agent", f'{{"prompt": "{prompt}"}}')])
    child = wire.chat([system("You search."), user(f"<env/>\n{prompt}\n")], tools=["grep"])
    assert child.program == main.program
    assert child.conversation != main.conversation
    assert child.parent_conversation == main.conversation
    assert child.step_class is StepClass.SUBAGENT
    assert (child.lineage, child.evidence) == (Lineage.SPAWNED, Evidence.CONTAINMENT)
    wire.answer(child, "", [C1])
    history = [system("You search."), user(f"<env/>\n{prompt}\n"), said("", C1), result(C1[0])]
    on = wire.chat(history, tools=["grep"])
    assert (on.conversation, on.step_class) == (child.conversation, StepClass.SUBAGENT)


def test_a_sub_agent_that_two_programs_may_have_called_is_nobodys(wire: Wire) -> None:
    prompt = '{"prompt": "Search the code for callers"}'
    mains = [wire.chat(HEAD) for _ in range(2)]
    for number, main in enumerate(mains):
        wire.answer(main, "", [(f"call_5a5a5a5a5a5{number}", "Agent", prompt)])
    child = wire.chat([system("You search."), user("Search the code for callers")], tools=["grep"])
    assert child.program not in {main.program for main in mains}


def test_a_run_of_the_prompt_that_a_tool_was_given_is_no_sub_agent(wire: Wire) -> None:
    task = "What is the capital city of France?"
    first = wire.chat([system(), user(task)])
    wire.answer(first, "", [("call_77aa55cc33", "search", f'{{"query": "{task}"}}')])
    assert wire.chat([system(), user(task)]).program != first.program


def test_short_words_of_a_spawning_call_join_nobody(wire: Wire) -> None:
    main = wire.chat(HEAD)
    wire.answer(main, "", [("call_5b5b5b5b5b5b", "Agent", '{"prompt": "run tests"}')])
    same_agent = wire.chat([system(), user("run tests")])
    longer = wire.chat([system("You search."), user("please run tests for me")], tools=["grep"])
    child = wire.chat([system("You search."), user("run tests")], tools=["grep"])
    assert main.program not in (same_agent.program, longer.program)
    assert child.program == main.program


def test_a_compaction_and_what_follows_it(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [C1])
    told = [*HEAD, said("", C1), result(C1[0])]
    second = wire.chat(told)
    wire.answer(second, "Done.")
    ask = user("Your task is to create a detailed summary of the conversation so far.")
    compaction = wire.chat([*told, said("Done."), ask])
    assert compaction.step_class is StepClass.COMPACTION
    assert compaction.conversation == first.conversation
    assert compaction.step == 2
    wire.answer(compaction, "<analysis>x</analysis><summary>\nThe bug sits in parse.\n</summary>")
    start = "This conversation is continued.\nSummary:\nThe bug sits in parse.\n"
    after = wire.chat([system(), user(start), user("go on")])
    assert (after.conversation, after.lineage) == (first.conversation, Lineage.COMPACTS)
    assert after.step == 3
    stranger = wire.chat([system(), user(start), user("go on")])
    assert stranger.program != first.program


def test_after_a_compaction_the_newest_call_links(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [C1])
    after = wire.chat([system(), user("summary of old things"), said("", C1), result(C1[0])])
    assert (after.conversation, after.lineage) == (first.conversation, Lineage.COMPACTS)
    assert after.evidence is Evidence.CALL_ID


def test_repeated_call_ids_are_noticed_and_not_relied_on(wire: Wire) -> None:
    weak, strong = ("call_1", "bash", "{}"), ("call_aa11bb22cc", "bash", "{}")
    for call in (weak, strong):
        for task in ("one", "two"):
            wire.answer(wire.chat([system(), user(task)]), "", [call])
        stray = wire.chat([system(), user("other"), said("", call), result(call[0])])
        assert stray.evidence is Evidence.NONE
        second = wire.chat([system(), user("two"), said("", call), result(call[0])])
        assert second.evidence is not Evidence.NONE
    assert wire.index.statistics().repeated_call_ids == 2


def test_a_counted_call_id_of_a_stranger_joins_nobody(wire: Wire) -> None:
    wire.answer(wire.chat(HEAD), "", [("call_1", "bash", "{}")])
    stray = wire.chat([system(), user("x"), said("", ("call_1", "bash", "{}")), result("call_1")])
    assert stray.evidence is Evidence.NONE


def test_a_response_id_carries_the_history(wire: Wire) -> None:
    first = wire.send({"model": "m", "input": "fix the bug"}, api="responses")
    wire.answer(first, "What bug?", response_id="resp_1")
    delta = {"model": "m", "input": "that one", "previous_response_id": "resp_1"}
    second = wire.send(delta, api="responses")
    assert second.program == first.program
    assert second.evidence is Evidence.RESPONSE_ID
    wire.answer(second, "I see.", response_id="resp_2")
    whole = [user("fix the bug"), said("What bug?"), user("that one"), said("I see."), user("x")]
    third = wire.send({"model": "m", "input": whole}, api="responses")
    assert third.conversation == first.conversation
    foreign = wire.send(delta, api="responses", tenant="b")
    assert foreign.program != first.program


def test_a_response_id_brings_the_size_of_its_history(wire: Wire) -> None:
    ask = {"model": "m", "instructions": "be kind", "input": "x" * 8_000}
    first = wire.send(ask, api="responses")
    wire.answer(first, "y" * 4_000, response_id="resp_1")
    delta = {**ask, "input": "z" * 400, "previous_response_id": "resp_1"}
    second = wire.send(delta, api="responses")
    assert (first.is_told, second.is_told) == (True, False)
    assert 3_090 < second.prompt_tokens < 3_120
    wire.answer(second, "y" * 4_000, response_id="resp_2")
    third = wire.send({**delta, "previous_response_id": "resp_2"}, api="responses")
    assert 4_190 < third.prompt_tokens < 4_230


def response(*output: dict[str, Any]) -> Answer:
    body = {"id": "resp_1", "status": "completed", "output": output}
    return read_answer(Dialect.RESPONSES, json.dumps(body).encode())


def message(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [part]}


@pytest.mark.parametrize("more", [{}, {"id": "msg_1", "status": "completed"}])
def test_an_answer_of_several_messages_is_known_again(wire: Wire, more: dict[str, str]) -> None:
    texts = "I shall look.", " Done: it was the sign.", " "
    first = wire.send({"model": "m", "input": [user("fix")]}, api="responses")
    wire.index.answered(first, response(*map(message, texts)), now=wire.now)
    items = [user("fix"), *({**message(t), **more} for t in texts), user("more")]
    second = wire.send({"model": "m", "input": items}, api="responses")
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)
    assert second.step == 2


@pytest.mark.parametrize("size", [100, 513, 100_000])
def test_a_call_is_answered_by_its_id_however_long(wire: Wire, size: int) -> None:
    """Some proxies pack a model's signed thoughts into the id."""
    call = ("call_0a1b__thought__" + "x" * size, "bash", "{}")
    first = wire.chat(HEAD)
    body = {"choices": [{"message": said("", call), "finish_reason": "tool_calls"}]}
    answer = read_answer(Dialect.CHAT, json.dumps(body).encode())
    wire.index.answered(first, answer, now=wire.now)
    second = wire.chat([*HEAD, said("", call), result(call[0])])
    assert (second.program, second.evidence) == (first.program, Evidence.CALL_ID)
    assert second.answers == (tool_call(answer.calls[0]).call_id,)


def test_an_answer_that_nobody_can_name_leaves_no_id(wire: Wire) -> None:
    first = wire.chat(HEAD)
    answer = Answer(text="So.", response_id="chatcmpl-1", is_complete=True)
    wire.index.answered(first, answer, now=wire.now, can_be_named=False)
    delta = {"model": "m", "input": "x", "previous_response_id": "chatcmpl-1"}
    assert wire.send(delta, api="responses").program != first.program


def test_a_title_call_opens_its_program(wire: Wire) -> None:
    ask = [system("You are a title generator."), user("Title this:"), user('"fix the bug"')]
    title = wire.chat(ask, tools=[])
    assert title.step_class is StepClass.AUXILIARY
    main = wire.chat([system(), user("fix the bug")])
    assert main.program == title.program
    assert main.conversation != title.conversation
    assert (title.step, main.step) == (0, 1)
    assert wire.chat([system(), user("fix the bug")]).program != title.program


def test_a_finished_program_may_wake(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "All done.")
    wire.seconds += 3_000
    woken = wire.chat([*HEAD, said("All done."), user("<task-notification>")])
    assert woken.conversation == first.conversation


def test_counting_and_probing_leave_no_trace(wire: Wire) -> None:
    count = wire.send({"model": "m", "messages": HEAD}, api="count")
    probe = wire.chat([user("hi")], tools=[], max_tokens=1)
    other = wire.send({}, api="other")
    assert count.step_class is StepClass.TOKEN_COUNT
    assert probe.step_class is other.step_class is StepClass.PROBE
    assert len(wire.index) == 0
    wire.answer(probe, "Hello.")


@pytest.mark.parametrize(
    "headers", [{"x-agentsched-program": "p"}, {"x-claude-code-session-id": "s1"}]
)
def test_a_probe_is_in_none_of_its_programs_conversations(
    wire: Wire, headers: dict[str, str]
) -> None:
    """Else the main one would seem to go on with it, and what is kept for it would be let go."""
    first = wire.chat(HEAD, headers=headers)
    wire.answer(first, "", [C1])
    probe = wire.chat([user("hi")], tools=[], max_tokens=1, headers=headers)
    assert (probe.step_class, probe.program) == (StepClass.PROBE, first.program)
    assert probe.conversation != first.conversation
    assert probe.lineage is Lineage.NEW
    told = [*HEAD, said("", C1), result(C1[0])]
    assert wire.chat(told, headers=headers).conversation == first.conversation


def test_a_dry_run_changes_nothing(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [C1])
    before = wire.index.statistics()
    turn = {"model": "m", "messages": [*HEAD, said("", C1), result(C1[0])]}
    turn["tools"] = [{"type": "function", "function": {"name": "bash"}}]
    dry = wire.send(turn, is_dry=True)
    assert (dry.program, dry.conversation) == (first.program, first.conversation)
    after = wire.index.statistics()
    assert replace(after, messages=0) == replace(before, messages=0)  # normalisations may stay
    wet = wire.send(turn)
    assert wet.lineage is Lineage.EXTENDS


def test_prefixes_are_equal_for_equal_beginnings(wire: Wire) -> None:
    one, other = wire.chat(HEAD), wire.chat([*HEAD[:1], user("another task")])
    assert one.prefixes[0] == other.prefixes[0]
    assert one.prefixes[-1] != other.prefixes[-1]
    assert wire.chat(HEAD).prefixes == one.prefixes
    assert wire.chat(HEAD, tools=["other"]).prefixes[0] != one.prefixes[0]
    wire.answer(one, "", [C1])
    two = wire.chat([*HEAD, said("", C1), result(C1[0])])
    assert one.prefixes[-1] in two.prefixes
    assert [p.tokens for p in two.prefixes] == sorted(p.tokens for p in two.prefixes)
    assert len(two.prefixes) <= 8
    assert two.prompt_tokens == two.prefixes[-1].tokens


def test_the_answers_prefix_is_among_the_next_requests(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.seconds += 1
    prefix = wire.index.answered(first, Answer(text="So.", is_complete=True), now=wire.now)
    second = wire.chat([*HEAD, said("So."), user("x")])
    assert prefix is not None
    assert prefix.prefix in {p.prefix for p in second.prefixes}


@pytest.mark.parametrize("call_id", ["chatcmpl-tool-0a1b2c3d", "call_1"])
def test_calls_written_as_prose_are_known(wire: Wire, call_id: str) -> None:
    first = wire.chat(HEAD)
    if call_id == "call_1":  # the client parsed the call out of the text itself
        wire.answer(first, "Let me look at that. \n")
    else:
        wire.answer(first, "Let me look at that. \n", [(call_id, "f", "{}")])
    prose = f"Let me look at that.\nCalling tools:\n[{{'id': '{call_id}', 'type': 'function'}}]"
    second = wire.chat([*HEAD, said(prose), user("Observation:\nok")])
    assert second.conversation == first.conversation
    wire.answer(second, "Done.")
    third = wire.chat([*HEAD, said(prose), user("Observation:\nok"), said("Done."), user("x")])
    assert (third.conversation, third.step) == (first.conversation, 3)


def test_members_of_a_team_belong_together(wire: Wire) -> None:
    first = wire.chat([system("You plan."), user("fix the bug")])
    wire.answer(first, "I would start with the parser.")
    heard = [user("fix the bug"), user("I would start with the parser.")]
    second = wire.chat([system("You criticise."), *heard])
    assert second.program == first.program
    assert second.conversation != first.conversation
    stranger = wire.chat([system("You criticise."), user("fix the bug")])
    assert stranger.program != first.program


def test_a_commit_message_call_quotes_our_answer(wire: Wire) -> None:
    first = wire.chat(HEAD, tools=[])
    text = "I changed the greeting in hello.py to something more casual."
    wire.answer(first, text)
    ask = [system("Generate a one-line commit message for it."), user(f"ASSISTANT: {text}\n+diff")]
    commit = wire.chat(ask, tools=[])
    assert (commit.program, commit.step_class) == (first.program, StepClass.AUXILIARY)
    wire.answer(commit, "feat: casual greeting")
    moved = [system(), user("other files"), user("fix the bug"), said(text), user("and now?")]
    later = wire.chat(moved, tools=[])
    assert (later.program, later.evidence) == (first.program, Evidence.TEXT)


@pytest.mark.parametrize("tools", [[], ["bash"]])
def test_a_question_that_holds_its_answer_joins_nobody(wire: Wire, tools: list[str]) -> None:
    answer = "(b) because plants need light for it"
    question = f"Why? (a) because it rains a lot there {answer} (c) who knows"
    asked = [("You answer.", question), ("You answer.", question), ("Be brief.", question)]
    asked.append(("You answer.", f"Choose one. {question}"))
    programs = set()
    for prompt, task in asked:
        identity = wire.chat([system(prompt), user(task)], tools=tools)
        wire.answer(identity, answer)
        programs.add(identity.program)
    assert len(programs) == 4


# -- limits ----------------------------------------------------------------------------------------


def test_programs_are_bounded_and_the_idlest_goes() -> None:
    wire = Wire(IdentityLimits(programs_max=3))
    kept = [wire.chat([system(), user(f"task {n}")]) for n in range(5)]
    assert len(wire.index) == 3
    assert kept[0].program not in wire.index
    assert kept[4].program in wire.index
    wire.answer(kept[0], "late")


def test_turns_and_conversations_are_bounded() -> None:
    wire = Wire(IdentityLimits(turns_per_program_max=8, conversations_per_program_max=4))
    headers = {"x-agentsched-program": "p"}
    for number in range(50):
        identity = wire.chat([system(), user(f"task {number}")], headers=headers)
        wire.answer(identity, f"answer {number}")
    statistics = wire.index.statistics()
    assert statistics.turns <= 8
    assert statistics.conversations <= 4
    assert statistics.programs == 1


def test_forgetting_leaves_nothing_behind(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "Let me tell you a long story about what I found in there.", [])
    second = wire.chat([system(), user("other")])
    wire.answer(second, "", [C1])
    assert wire.index.forget(first.program)
    assert wire.index.forget(second.program)
    assert not wire.index.forget(first.program)
    assert not wire.index._books
    statistics = wire.index.statistics()
    assert (statistics.programs, statistics.turns) == (0, 0)
    assert wire.chat([system(), user("other"), said("", C1), result(C1[0])]).step == 1


def test_ends_may_be_reported_twice(wire: Wire) -> None:
    first = wire.chat(HEAD)
    wire.answer(first, "", [C1])
    wire.abandon(first)
    wire.answer(first, "", [C2])
    again = wire.chat(HEAD)
    assert not again.is_retry


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [None, 3, "x", [], {"role": None}, {"role": "assistant"}]},
        {"messages": [{"role": "tool"}], "tools": "x", "previous_response_id": 5},
        {"messages": [{"role": "assistant", "tool_calls": [None, {"function": "f"}]}]},
    ],
)
@pytest.mark.parametrize("api", ["chat", "responses", "messages", "completions", "count"])
def test_nothing_that_a_client_sends_raises(wire: Wire, body: dict[str, Any], api: str) -> None:
    if "messages" in body and api == "responses":
        body = {"input": body["messages"]}
    identity = wire.send({"model": "m", **body}, api=api)
    wire.answer(identity, "x", [("", "", "")])
    assert wire.send(body, api=api).program
