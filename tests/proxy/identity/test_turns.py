"""What a request leaves behind on the turn that it goes on from."""

from __future__ import annotations

import pytest

from agentsched.model import Lineage, StepClass
from agentsched.proxy.identity import Identity
from agentsched_bench.clients.acting import Wire, result, said, system, user

SESSION = {"x-claude-code-session-id": "s"}
FORK = SESSION | {"x-claude-code-agent-id": "a1"}
CALLS = [("toolu_f0a1b2c3d4e5", "Agent", "{}"), ("toolu_f1a1b2c3d4e5", "Bash", "{}")]
OWN = ("toolu_f2a1b2c3d4e5", "Bash", "{}")
HEAD = [system(), user("fix the bug")]
TOLD = [*HEAD, said("", *CALLS)]
STAND_INS = [result(call[0], "Fork started") for call in CALLS]


def begun(wire: Wire) -> Identity:
    """A main agent that called for a fork of its own, and for another tool."""
    main = wire.chat(HEAD, headers=SESSION)
    wire.answer(main, "", CALLS)
    return main


@pytest.mark.parametrize("forks", [1, 2])
def test_a_thread_that_begins_with_anothers_history_leaves_it_in_its_place(
    wire: Wire, forks: int
) -> None:
    """As a fork of Claude Code: its parent's prompt, and a stand-in for each result."""
    main = begun(wire)
    for number in range(forks):
        fork = wire.chat(
            [*TOLD, *STAND_INS, user(f"look into part {number}")],
            headers=SESSION | {"x-claude-code-agent-id": f"a{number}"},
        )
        assert fork.parent_conversation == main.conversation != fork.conversation
        assert (fork.lineage, fork.step_class) == (Lineage.SPAWNED, StepClass.SUBAGENT)
        assert fork.answers == ()  # they are not its calls
    second = wire.chat([*TOLD, *(result(call[0]) for call in CALLS)], headers=SESSION)
    assert (second.conversation, second.lineage) == (main.conversation, Lineage.EXTENDS)
    assert set(second.answers) == {call[0] for call in CALLS}


def test_a_fork_that_is_sent_again_answers_nothing_either(wire: Wire) -> None:
    begun(wire)
    first = [*TOLD, *STAND_INS, user("look into it")]
    fork = wire.chat(first, headers=FORK)
    wire.abandon(fork)
    again = wire.chat(first, headers=FORK)
    assert (again.is_retry, again.answers) == (True, ())
    wire.answer(again, "", [OWN])
    told = [*first, said("", OWN), result(OWN[0])]
    second = wire.chat(told, headers=FORK)
    assert (second.conversation, second.answers) == (fork.conversation, (OWN[0],))
    wire.abandon(second)
    assert wire.chat(told, headers=FORK).answers == (OWN[0],)


def test_threads_of_one_history_leave_each_other_in_place(wire: Wire) -> None:
    """As a client branches that names each branch: the trunk goes on as the trunk."""
    ours = {"x-agentsched-program": "p", "x-agentsched-conversation": "trunk"}
    trunk = wire.chat(HEAD, headers=ours)
    wire.answer(trunk, "Which of them?")
    told = [*HEAD, said("Which of them?")]
    branch = wire.chat(
        [*told, user("the first")], headers=ours | {"x-agentsched-conversation": "b"}
    )
    second = wire.chat([*told, user("the second")], headers=ours)
    assert (branch.conversation, branch.lineage) == ("p#b", Lineage.FORKS)
    assert (second.conversation, second.lineage) == (trunk.conversation, Lineage.EXTENDS)


def test_equal_prompts_with_example_calls_are_two_programs(wire: Wire) -> None:
    """Ids of calls that we never handed out are told by everybody who shows these examples."""
    call = ("9d1c2f6e-5b0a-4c1d-8e2f-7a6b5c4d3e2f", "add", '{"a": 1}')
    prompt = [system(), user("1+1?"), said("", call), result(call[0], "2"), said("2"), user("2+2?")]
    one, other = wire.chat(prompt), wire.chat(prompt)
    assert one.program != other.program


def test_a_fork_of_the_history_is_a_sub_agent(wire: Wire) -> None:
    """As Qwen Code forks, which sends no ids: its order is the last thing said."""
    call = ("call_f0a1b2c3d4e5", "agent", '{"subagent_type": "fork"}')
    main = wire.chat(HEAD)
    wire.answer(main, "", [call])
    told = [*HEAD, said("", call)]
    order = user(
        "<fork-boilerplate>\nSTOP. READ THIS FIRST.\n</fork-boilerplate>\n\nDirective: look"
    )
    begun = [*told, result(call[0], "Fork started"), order]
    fork = wire.chat(begun)
    assert (fork.lineage, fork.step_class) == (Lineage.SPAWNED, StepClass.SUBAGENT)
    assert fork.parent_conversation == main.conversation
    assert fork.answers == ()
    wire.answer(fork, "", [OWN])
    second = wire.chat([*told, result(call[0], "launched")])
    assert (second.conversation, second.lineage) == (main.conversation, Lineage.EXTENDS)
    further = wire.chat([*begun, said("", OWN), result(OWN[0])])
    assert (further.conversation, further.lineage) == (fork.conversation, Lineage.EXTENDS)
    assert further.step_class is StepClass.SUBAGENT


def test_a_system_prompt_in_what_a_response_id_carries_is_there_still(wire: Wire) -> None:
    """Clients that go on by id send what is new alone; each turn began a conversation."""
    tools = [{"type": "function", "name": "bash", "parameters": {}}]
    body = {"model": "m", "tools": tools}
    ask = [{"role": "developer", "content": "You are an agent."}, user("fix the bug")]
    first = wire.send(body | {"input": ask}, api="responses")
    found = [first]
    for number in range(3):
        wire.answer(found[-1], "", [OWN], response_id=f"resp_{number}")
        seen = {"type": "function_call_output", "call_id": OWN[0], "output": f"saw {number}"}
        more = body | {"input": [seen], "previous_response_id": f"resp_{number}"}
        found.append(wire.send(more, api="responses"))

    assert {(step.program, step.conversation) for step in found} == {
        (first.program, first.conversation)
    }
    assert [step.lineage for step in found[1:]] == [Lineage.EXTENDS] * 3
    assert [step.step for step in found] == [1, 2, 3, 4]
    assert {step.prefixes[0] for step in found} == {first.prefixes[0]}
    # Other tools are another agent's, and instructions are not carried along.
    wire.answer(found[-1], "", [OWN], response_id="resp_3")
    handed = wire.send(
        {"model": "m", "input": "and now?", "previous_response_id": "resp_3"}, api="responses"
    )
    assert (handed.program, handed.lineage) == (first.program, Lineage.FORKS)
    told = wire.send(body | {"instructions": "Be kind.", "input": "hello"}, api="responses")
    wire.answer(told, "Hello.", response_id="resp_9")
    bare = wire.send(body | {"input": "go on", "previous_response_id": "resp_9"}, api="responses")
    assert (bare.program, bare.lineage) == (told.program, Lineage.FORKS)
