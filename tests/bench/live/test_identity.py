"""Conventions for ids: stable in a conversation, apart between programs, true to their clients."""

from __future__ import annotations

import json

import pytest

from agentsched.model import ConfigError
from agentsched_bench.live.identity import (
    STYLES,
    CallIdentity,
    style,
    tells_deadlines,
    tells_the_end,
)


def _who(**changed: object) -> CallIdentity:
    given: dict[str, object] = {"program": "p", "conversation": "p", "step": 1} | changed
    return CallIdentity(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in STYLES if name != "none"])
def test_every_convention_tells_programs_apart_and_holds_over_steps(name: str) -> None:
    speak = style(name)

    def spoken(who: CallIdentity) -> str:
        said = speak(who)
        body = json.loads(json.dumps(dict(said.body)))
        # The step's own number is no identity.
        body.get("vllm_xargs", {}).get("agentic_context", {}).pop("step_id", None)
        return json.dumps([dict(said.headers), body], sort_keys=True)

    assert spoken(_who(step=1)) == spoken(_who(step=2))
    assert spoken(_who()) != spoken(_who(program="q", conversation="q"))


def test_no_convention_says_nothing() -> None:
    said = style("none")(_who())

    assert not said.headers
    assert not said.body


def test_claude_code_names_session_and_agent_as_it_does() -> None:
    main = style("claude-code")(_who())
    child = style("claude-code")(_who(conversation="c", parent="p"))
    deep = style("claude-code")(_who(conversation="d", parent="c"))

    session = main.headers["x-claude-code-session-id"]
    assert "x-claude-code-agent-id" not in main.headers
    assert child.headers["x-claude-code-session-id"] == session
    assert "x-claude-code-parent-agent-id" not in child.headers
    agent = child.headers["x-claude-code-agent-id"]
    assert deep.headers["x-claude-code-parent-agent-id"] == agent
    metadata = main.body["metadata"]
    assert isinstance(metadata, dict)
    assert json.loads(metadata["user_id"])["session_id"] == session


def test_codex_sub_agents_share_the_session_and_have_a_thread() -> None:
    main = style("codex")(_who())
    child = style("codex")(_who(conversation="c", parent="p"))

    assert child.headers["session-id"] == main.headers["session-id"]
    assert child.headers["thread-id"] != main.headers["thread-id"]
    assert child.headers["x-codex-parent-thread-id"] == main.headers["thread-id"]


def test_our_own_ends_the_program_with_the_main_conversations_last_call() -> None:
    speak = style("agentsched")
    child = _who(conversation="c", parent="p", is_last=True)

    assert speak(_who(is_last=True)).headers["x-agentsched-final"] == "true"
    assert "x-agentsched-final" not in speak(child).headers
    program = speak(_who()).headers["x-agentsched-program"]
    assert speak(child).headers["x-agentsched-program"] == program
    assert "x-agentsched-conversation" in speak(child).headers


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match="claude-code"):
        style("telepathy")


def test_some_conventions_tell_the_end_of_a_program() -> None:
    assert {name for name in STYLES if tells_the_end(name)} == {"agentsched", "job_id", "dynamo"}


def test_who_can_say_when_it_is_wanted() -> None:
    assert {name for name in STYLES if tells_deadlines(name)} == {"agentsched", "agentic_context"}
    said = style("agentsched")(_who(deadline_s=12.3456))
    assert said.headers["x-agentsched-deadline"] == "12.346"
    context = style("agentic_context")(_who(deadline_s=12.3456)).body["vllm_xargs"]
    assert isinstance(context, dict)
    assert context["agentic_context"]["deadline_seconds"] == 12.346


def test_a_deadline_that_has_passed_is_not_said_anew() -> None:
    for name in ("agentsched", "agentic_context"):
        assert style(name)(_who(deadline_s=-0.1)) == style(name)(_who())
