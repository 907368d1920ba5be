"""What clients say beside their ids: that something is over, or in a body whose sub-agent asks."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import Lineage, StepClass, StepId
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.tools import finished_step
from agentsched_bench.clients.acting import Wire, user

BODY = {"model": "m", "messages": [user("hello")]}
CHILD = {"session_id": "run", "trajectory_id": "kid", "parent_trajectory_id": "main"}


@pytest.mark.parametrize("request_kind", ["turn", "compaction"])
def test_codex_says_the_same_in_its_body(wire: Wire, request_kind: str) -> None:
    """As it comes through a gateway that keeps the headers for itself."""
    main = wire.send({**BODY, "client_metadata": {"session_id": "s", "thread_id": "s"}})
    meta = {
        "session_id": "s",
        "thread_id": "k",
        "x-openai-subagent": "collab_spawn",
        "x-codex-parent-thread-id": "s",
        "x-codex-turn-metadata": f'{{"request_kind":"{request_kind}"}}',
    }
    child = wire.send({**BODY, "client_metadata": meta})
    assert (child.program, child.lineage) == (main.program, Lineage.SPAWNED)
    assert child.parent_conversation == main.conversation
    assert child.agent == "collab_spawn"
    is_turn = request_kind == "turn"
    assert child.step_class is (StepClass.SUBAGENT if is_turn else StepClass.COMPACTION)


def test_codexs_headers_come_before_its_body(wire: Wire) -> None:
    headers = {"session-id": "s", "thread-id": "k", "x-codex-parent-thread-id": "s"}
    meta = {
        "session_id": "other",
        "thread_id": "other",
        "x-codex-parent-thread-id": "other",
        "x-openai-subagent": 7,
        "x-codex-turn-metadata": {"request_kind": "compaction"},
    }
    main = wire.send(BODY, headers={"session-id": "s", "thread-id": "s"})
    child = wire.send({**BODY, "client_metadata": meta}, headers=headers)
    assert (child.program, child.parent_conversation) == ("s", main.conversation)
    assert child.step_class is StepClass.SUBAGENT


@pytest.mark.parametrize(
    ("nvext", "is_last", "is_last_word"),
    [
        ({"session_control": {"session_id": "run", "action": "close"}}, True, False),
        ({"session_control": {"session_id": "run", "action": "open"}}, False, False),
        ({"session_control": {"action": "close"}}, False, False),
        # A session within the program: what it was opened for is over, the program is not.
        (
            {
                "agent_context": {"session_id": "run", "trajectory_id": "t"},
                "session_control": {"session_id": "t", "action": "close"},
            },
            False,
            True,
        ),
        ({"agent_context": {"session_id": "run", "trajectory_final": True}}, True, False),
        ({"agent_context": {**CHILD, "trajectory_final": True}}, False, True),
        ({"agent_context": CHILD}, False, False),
        (
            {
                "agent_context": CHILD,
                "session_control": {"session_id": "kid", "action": "close"},
            },
            False,
            True,
        ),
    ],
)
def test_who_is_over_when_dynamos_client_says_so(
    wire: Wire, nvext: dict[str, Any], is_last: bool, is_last_word: bool
) -> None:
    said = wire.send({**BODY, "nvext": nvext}).declared
    assert (said.is_last, said.is_last_word) == (is_last, is_last_word)


@pytest.mark.parametrize("kind", ["session", "trajectory"])
def test_a_final_of_a_child_is_its_own_end(wire: Wire, kind: str) -> None:
    final = {f"x-dynamo-{kind}-final": "true"}
    main = wire.send(BODY, headers={f"x-dynamo-{kind}-id": "main", **final}).declared
    child = {f"x-dynamo-{kind}-id": "kid", f"x-dynamo-parent-{kind}-id": "main"}
    over = wire.send(BODY, headers={**child, **final}).declared
    goes_on = wire.send(BODY, headers=child).declared
    assert (main.is_last, main.is_last_word) == (True, False)
    assert (over.is_last, over.is_last_word) == (False, True)
    assert (goes_on.is_last, goes_on.is_last_word) == (False, False)


@pytest.mark.parametrize("is_final", [True, False])
@pytest.mark.parametrize("reason", ["tool_calls", "length", "end_turn"])
def test_who_says_that_nothing_follows_waits_for_no_tool(
    wire: Wire, reason: str, is_final: bool
) -> None:
    context = {**CHILD, "trajectory_final": is_final}
    child = wire.send({**BODY, "nvext": {"agent_context": context}})
    calls = (AnsweredCall(call_id="c1", name="bash", arguments="{}"),)
    answer = Answer(calls=calls if reason == "tool_calls" else (), finish_reason=reason)
    ended = finished_step(StepId("s"), child, answer, prefix=None)
    assert ended.is_last_word is (is_final or reason == "end_turn")
    if not is_final or reason == "end_turn":
        assert ended.finish_reason == reason
        assert len(ended.tool_calls) == len(answer.calls)
