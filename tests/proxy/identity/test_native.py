"""Every convention by which clients name their programs."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import Lineage, StepClass
from agentsched.proxy.identity import Evidence, Identity
from agentsched_bench.clients.acting import Wire, result, said, system, user

C1, C2 = (("call_0a1b2c3d4e5f", "bash", "{}"), ("call_1a1b2c3d4e5f", "bash", "{}"))
DEADLINE = {"x-agentsched-deadline": "60"}
LONG = "the tool said something long enough"
BODY = {"model": "m", "messages": [user("hello")]}


@pytest.mark.parametrize(
    ("headers", "fields", "program", "evidence"),
    [
        ({"x-agentsched-program": "p1"}, {}, "p1", Evidence.OURS),
        ({}, {"agentsched": {"program": "p1"}}, "p1", Evidence.OURS),
        (
            {},
            {"vllm_xargs": {"agentic_context": {"program_id": "p1"}}},
            "p1",
            Evidence.AGENTIC_CONTEXT,
        ),
        (
            {},
            {"vllm_xargs": {"agentic_context": {"program_id": "c", "root_program_id": "p1"}}},
            "p1",
            Evidence.AGENTIC_CONTEXT,
        ),
        ({}, {"nvext": {"agent_context": {"trajectory_id": "p1"}}}, "p1", Evidence.NVEXT),
        ({}, {"nvext": {"session_control": {"session_id": "p1"}}}, "p1", Evidence.NVEXT),
        ({}, {"program_id": "p1"}, "p1", Evidence.PROGRAM_ID),
        ({}, {"extra_body": {"program_id": "p1"}}, "p1", Evidence.PROGRAM_ID),
        ({}, {"job_id": 17}, "17", Evidence.PROGRAM_ID),
        ({"x-dynamo-session-id": "p1"}, {}, "p1", Evidence.NATIVE),
        ({"x-dynamo-trajectory-id": "p1"}, {}, "p1", Evidence.NATIVE),
        ({"x-claude-code-session-id": "p1"}, {}, "p1", Evidence.NATIVE),
        ({}, {"metadata": {"user_id": '{"session_id":"p1"}'}}, "p1", Evidence.NATIVE),
        (
            {},
            {"metadata": {"user_id": "user_ab_account__session_2045d682-e46e"}},
            "2045d682-e46e",
            Evidence.NATIVE,
        ),
        ({"session-id": "p1", "thread-id": "t"}, {}, "p1", Evidence.NATIVE),
        ({"session_id": "p1", "conversation_id": "t"}, {}, "p1", Evidence.NATIVE),
        (
            {},
            {"client_metadata": {"session_id": "p1", "thread_id": "t"}},
            "p1",
            Evidence.NATIVE,
        ),
        ({"x-session-id": "p1", "x-session-affinity": "p1"}, {}, "p1", Evidence.NATIVE),
        ({"x-litellm-session-id": "p1"}, {}, "p1", Evidence.NATIVE),
        ({"x-session-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-aibrix-session-key": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-session-token": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-smg-routing-key": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"modal-session-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-goose-session-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"agent-session-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-client-session-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-roo-task-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-kilocode-taskid": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-openwebui-chat-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-conversation-id": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({"x-my-run": "p1"}, {}, "p1", Evidence.SESSION_ID),
        ({}, {"session_id": "p1"}, "p1", Evidence.SESSION_ID),
        ({}, {"vllm_xargs": {"session_id": "p1"}}, "p1", Evidence.SESSION_ID),
        ({}, {"session_params": {"session_id": "p1"}}, "p1", Evidence.SESSION_ID),
        ({}, {"litellm_session_id": "p1"}, "p1", Evidence.SESSION_ID),
        ({}, {"metadata": {"session_id": "p1"}}, "p1", Evidence.SESSION_ID),
        ({}, {"prompt_cache_key": "p1"}, "p1", Evidence.CACHE_KEY),
        ({}, {"conversation": {"id": "p1"}}, "p1", Evidence.CACHE_KEY),
    ],
)
def test_programs_are_named(
    headers: dict[str, str], fields: dict[str, Any], program: str, evidence: Evidence
) -> None:
    wire = Wire(extra_headers=["X-My-Run"])
    first = wire.send({**BODY, **fields}, headers=headers)
    wire.answer(first, "Hi.")
    changed = {**BODY, "messages": [user("something else")], **fields}
    second = wire.send(changed, headers=headers)
    assert (first.program, first.evidence) == (program, evidence)
    assert second.program == program
    assert (first.step, second.step) == (1, 2)


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_a_user_is_no_program(wire: Wire, field: str) -> None:
    first = wire.send({**BODY, field: "u1"})
    second = wire.send({**BODY, field: "u1"})
    assert first.program != second.program
    assert first.evidence is Evidence.NONE


def test_the_stronger_convention_wins() -> None:
    wire = Wire()
    headers = {"x-agentsched-program": "ours", "session-id": "s", "thread-id": "t"}
    identity = wire.send({**BODY, "prompt_cache_key": "k"}, headers=headers)
    assert identity.program == "ours"
    assert identity.conversation == "ours#t"


def test_claude_code_agents_are_conversations_of_one_program(wire: Wire) -> None:
    session = {"x-claude-code-session-id": "s"}
    main = wire.send(BODY, api="messages", headers=session)
    child = wire.send(BODY, api="messages", headers={**session, "x-claude-code-agent-id": "a1"})
    twin = wire.send(BODY, api="messages", headers={**session, "x-claude-code-agent-id": "a2"})
    below = {**session, "x-claude-code-agent-id": "b", "x-claude-code-parent-agent-id": "a1"}
    deep = wire.send(BODY, api="messages", headers=below)
    assert {main.program, child.program, twin.program, deep.program} == {"s"}
    assert len({i.conversation for i in (main, child, twin, deep)}) == 4
    assert child.step_class is twin.step_class is StepClass.SUBAGENT
    assert child.lineage is Lineage.SPAWNED
    assert child.parent_conversation == main.conversation
    assert deep.parent_conversation == child.conversation
    assert not twin.is_retry


def test_claude_code_hints_are_read(wire: Wire) -> None:
    headers = {
        "x-claude-code-session-id": "s",
        "x-claude-code-request-class": "auxiliary",
        "x-claude-code-prev-tool-durations": "Bash=226;mcp=x=3;bad=oops;=1",
    }
    identity = wire.send(BODY, api="messages", headers=headers)
    assert identity.step_class is StepClass.AUXILIARY
    assert identity.declared.tool_ms == (("Bash", 226.0), ("mcp=x", 3.0))


def test_opencode_children_belong_to_their_parents_program(wire: Wire) -> None:
    main = wire.send(BODY, headers={"x-session-id": "ses_a", "x-session-affinity": "ses_a"})
    child = wire.send(BODY, headers={"x-session-id": "ses_b", "x-parent-session-id": "ses_a"})
    below = wire.send(BODY, headers={"x-session-id": "ses_c", "x-parent-session-id": "ses_b"})
    assert main.program == child.program == below.program == "ses_a"
    assert below.step_class is StepClass.SUBAGENT
    assert below.parent_conversation == child.conversation


def test_openhands_children_name_their_parent_by_cache_key(wire: Wire) -> None:
    main = wire.send({**BODY, "prompt_cache_key": "a"}, headers={"x-litellm-session-id": "a"})
    child = wire.send({**BODY, "prompt_cache_key": "a"}, headers={"x-litellm-session-id": "b"})
    assert main.program == child.program == "a"
    assert main.conversation != child.conversation
    assert child.step_class is StepClass.SUBAGENT


def test_what_is_declared(wire: Wire) -> None:
    ours = wire.send(
        BODY,
        headers={
            "x-agentsched-program": "p",
            "x-agentsched-parent": "q",
            "x-agentsched-final": "true",
            "x-agentsched-deadline": "30",
            "x-agentsched-step": "7",
        },
    )
    assert ours.declared.is_last
    assert ours.declared.deadline_s == 30.0
    assert ours.step == 7
    assert ours.parent == "q"
    nvext = {"agent_hints": {"priority": 5, "osl": 100}}
    dynamo = wire.send({**BODY, "nvext": nvext})
    assert dynamo.declared.priority == -5
    assert dynamo.declared.output_tokens == 100
    context = {"program_id": "p9", "deadline_seconds": "x", "priority": 3}
    router = wire.send({**BODY, "vllm_xargs": {"agentic_context": context}})
    assert router.declared.deadline_s is None
    assert router.declared.priority == 3
    assert wire.send({**BODY, "job_id": "j", "is_last_step": True}).declared.is_last


def test_a_priority_of_nothing_is_said_as_any_other(wire: Wire) -> None:
    ours = {"x-agentsched-program": "p", "x-agentsched-priority": "0"}
    nvext = {"agent_hints": {"priority": 5, "osl": 100}}
    said = wire.send({**BODY, "nvext": nvext}, headers=ours).declared
    assert (said.priority, said.output_tokens, said.is_last) == (0, 100, False)


@pytest.mark.parametrize("value", ["x" * 10_000, "a\x00b\r\nc", "  ", "ü" * 200])
def test_ids_are_cleaned_and_bounded(wire: Wire, value: str) -> None:
    identity = wire.send(BODY, headers={"x-agentsched-program": value})
    assert 0 < len(identity.program) <= 140
    assert identity.program.isprintable()
    assert wire.send(BODY, headers={"x-agentsched-program": value}).tenant == "default"


def test_tenants_do_not_share_programs(wire: Wire) -> None:
    headers = {"x-agentsched-program": "p"}
    ours = wire.send(BODY, headers=headers, tenant="a")
    theirs = wire.send(BODY, headers=headers, tenant="b")
    forged = wire.send(BODY, headers={"x-agentsched-program": "a/p"}, tenant="b")
    plain = wire.send(BODY, headers={"x-agentsched-program": "a/p"})
    assert len({ours.program, theirs.program, forged.program, plain.program}) == 4
    again = wire.send(BODY, headers={"x-agentsched-program": ours.program}, tenant="a")
    assert again.program == ours.program


@pytest.mark.parametrize("bad", [5, [1], {"a": {}}, "text", None, True])
@pytest.mark.parametrize(
    "field",
    [
        "agentsched",
        "vllm_xargs",
        "nvext",
        "metadata",
        "client_metadata",
        "conversation",
        "session_id",
    ],
)
def test_malformed_fields_are_passed_over(wire: Wire, field: str, bad: Any) -> None:
    assert wire.send({**BODY, field: bad}).program


def test_a_thread_goes_on_after_its_prompt_was_rewritten(wire: Wire) -> None:
    headers = {"x-claude-code-session-id": "s"}
    first = wire.send(BODY, headers=headers)
    wire.answer(first, "Hi.")
    after = wire.send({**BODY, "messages": [user("a new beginning")]}, headers=headers)
    assert after.conversation == first.conversation
    assert after.lineage is Lineage.COMPACTS


def test_one_thread_in_two_processes_branches(wire: Wire) -> None:
    headers = {"x-claude-code-session-id": "s"}
    first = wire.chat([user("a")], headers=headers)
    wire.answer(first, "Hi.")
    one = wire.chat([user("a"), said("Hi."), user("b")], headers=headers)
    other = wire.chat([user("a"), said("Hi."), user("c")], headers=headers)
    wire.answer(other, "So.")
    third = wire.chat([user("a"), said("Hi."), user("c"), said("So."), user("d")], headers=headers)
    assert one.conversation == first.conversation
    assert other.lineage is Lineage.FORKS
    assert third.conversation == other.conversation != one.conversation
    assert {one.program, other.program, third.program} == {"s"}


def test_a_cache_key_of_a_whole_application_names_no_program(wire: Wire) -> None:
    key = {"prompt_cache_key": "app"}
    programs = [wire.chat([user(f"task {n}")], **key).program for n in range(20)]
    assert len(set(programs[:9])) == 1
    assert len(set(programs[9:])) == 11
    first = wire.chat([user("another")], **key)
    wire.answer(first, "So.")
    assert wire.chat([user("another"), said("So."), user("x")], **key).program == first.program


def test_what_a_client_says_besides_a_shared_cache_key_holds(wire: Wire) -> None:
    key = {"prompt_cache_key": "app"}
    headers = {
        "x-agentsched-deadline": "60",
        "x-agentsched-priority": "-3",
        "x-agentsched-agent": "reviewer",
        "x-agentsched-parent": "boss",
    }
    steps = [wire.chat([user(f"task {n}")], headers=headers, **key) for n in range(12)]
    assert [s.evidence for s in steps] == [Evidence.CACHE_KEY] * 9 + [Evidence.NONE] * 3
    assert {(s.declared.deadline_s, s.declared.priority) for s in steps} == {(60.0, -3)}
    assert {(s.agent, s.parent) for s in steps} == {("reviewer", "boss")}
    titles = {**headers, "x-agentsched-class": "auxiliary"}
    title = wire.chat([user("a title")], headers=titles, **key)
    assert (title.step_class, title.source) == (StepClass.AUXILIARY, "")


def test_a_client_that_names_nothing_is_known_by_what_its_tools_said(wire: Wire) -> None:
    told = wire.chat([user("x"), said("", C1), result(C1[0], LONG)])
    timed = wire.chat([user("y"), said("", C2), result(C2[0], LONG)], headers=DEADLINE)
    quotes = wire.index._books[told.tenant].quotes
    assert len(quotes) == 2
    assert timed.declared.deadline_s == 60.0


@pytest.mark.parametrize("tenant", ["default", "team"])
@pytest.mark.parametrize("name", ["org/repo-1", "issue#12", "50%", "plain", "n" * 125, "n/" * 60])
def test_the_id_that_we_show_comes_back_as_it_was(wire: Wire, tenant: str, name: str) -> None:
    first = wire.chat([user("x")], headers={"x-agentsched-program": name}, tenant=tenant)
    wire.answer(first, "So.")
    again = wire.chat(
        [user("x"), said("So."), user("y")],
        headers={"x-agentsched-program": first.program},
        tenant=tenant,
    )
    assert again.program == first.program
    child = wire.chat(
        [user("part")],
        headers={"x-agentsched-program": "child", "x-agentsched-parent": first.program},
        tenant=tenant,
    )
    assert child.parent == first.program
    # Nobody else's id is one's own, and what we did not show is a name.
    other = wire.chat([user("x")], headers={"x-agentsched-program": first.program}, tenant="x")
    assert other.program.startswith("x/")
    new = wire.chat([user("x")], headers={"x-agentsched-program": "a%2Fb"}, tenant=tenant)
    assert new.program.endswith("a%252Fb")


def test_a_thread_that_is_called_by_a_number_is_not_one_of_ours(wire: Wire) -> None:
    def ask(text: str, thread: str = "") -> Identity:
        headers = {"x-agentsched-program": "P"}
        if thread:
            headers["x-agentsched-conversation"] = thread
        return wire.chat([system(text), user(text)], headers=headers)

    seen = [ask("main"), ask("a", "0"), ask("b", "1"), ask("c", "0~1"), ask("d"), ask("e", "0~2")]
    assert len({identity.conversation for identity in seen}) == len(seen)
    assert seen[2].conversation == "P#1"
    assert [ask(t, n).conversation for t, n in (("a", "0"), ("c", "0~1"))] == [
        seen[1].conversation,
        seen[3].conversation,
    ]
    assert len(wire.index._programs[seen[0].program].conversations) == len(seen)


def test_passing_tenants_leave_nothing(wire: Wire) -> None:
    for number in range(50):
        wire.send(BODY, api="count", tenant=f"t{number}")
    assert not wire.index._books
