"""How clients say who they are: one strategy for each convention that a replay can speak.

Each turns what is true of a call into the headers and body fields that the client of that name
really sends. `none` sends nothing: the other side has to recognise the program by itself.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from agentsched.model import ConfigError

_NAMESPACE: Final = uuid.UUID("6f1d2c3e-8f0a-5b57-9c55-0d6a3c2f7a11")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallIdentity:
    """Who makes a call. `parent` is the conversation that started a sub-agent's; else None.

    `deadline_s` is how many seconds are left until the program is wanted; None: nobody said.
    """

    program: str
    conversation: str
    step: int
    parent: str | None = None
    is_last: bool = False
    deadline_s: float | None = None

    @property
    def is_main(self) -> bool:
        return self.parent is None


_ANYBODY: Final = CallIdentity(program="p", conversation="p", step=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What a call carries to say who makes it."""

    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] = field(default_factory=dict)


def stable_uuid(name: str) -> str:
    """The UUID that stands for `name`: the same on every machine."""
    return str(uuid.uuid5(_NAMESPACE, name))


def _none(_: CallIdentity) -> Spoken:
    return Spoken()


def _agentsched(who: CallIdentity) -> Spoken:
    headers = {"x-agentsched-program": stable_uuid(who.program)}
    if not who.is_main:
        headers["x-agentsched-conversation"] = stable_uuid(who.conversation)
    if who.is_last and who.is_main:
        headers["x-agentsched-final"] = "true"
    # One that has passed was told before: no call says a new one.
    if who.deadline_s is not None and who.deadline_s > 0:
        headers["x-agentsched-deadline"] = f"{who.deadline_s:.3f}"
    return Spoken(headers=headers)


def _session(who: CallIdentity) -> Spoken:
    return Spoken(headers={"x-session-id": stable_uuid(who.program)})


def _program_id(who: CallIdentity) -> Spoken:
    return Spoken(body={"program_id": stable_uuid(who.program)})


def _job_id(who: CallIdentity) -> Spoken:
    last = who.is_last and who.is_main
    return Spoken(body={"job_id": stable_uuid(who.program), "is_last_step": last})


def _prompt_cache_key(who: CallIdentity) -> Spoken:
    return Spoken(body={"prompt_cache_key": stable_uuid(who.program)})


def _claude_code(who: CallIdentity) -> Spoken:
    session = stable_uuid(who.program)
    headers = {"x-claude-code-session-id": session}
    if not who.is_main:
        headers["x-claude-code-agent-id"] = stable_uuid(who.conversation)
        # Claude Code names the parent from the second level on; on the first it is the session.
        if who.parent != who.program:
            headers["x-claude-code-parent-agent-id"] = stable_uuid(who.parent or "")
    user = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": session})
    return Spoken(headers=headers, body={"metadata": {"user_id": user}})


def _codex(who: CallIdentity) -> Spoken:
    session = stable_uuid(who.program)
    thread = stable_uuid(who.conversation)
    headers = {"session-id": session, "thread-id": thread, "originator": "codex_cli_rs"}
    if not who.is_main:
        headers["x-codex-parent-thread-id"] = stable_uuid(who.parent or "")
        headers["x-openai-subagent"] = "collab_spawn"
    return Spoken(headers=headers, body={"prompt_cache_key": session})


def _opencode(who: CallIdentity) -> Spoken:
    own = stable_uuid(who.conversation)
    headers = {"x-session-id": own, "x-session-affinity": own}
    if not who.is_main:
        headers["x-parent-session-id"] = stable_uuid(who.parent or "")
    return Spoken(headers=headers)


def _litellm(who: CallIdentity) -> Spoken:
    return Spoken(headers={"x-litellm-session-id": stable_uuid(who.conversation)})


def _dynamo(who: CallIdentity) -> Spoken:
    headers = {"x-dynamo-session-id": stable_uuid(who.conversation)}
    if not who.is_main:
        headers["x-dynamo-parent-session-id"] = stable_uuid(who.parent or "")
    if who.is_last:
        headers["x-dynamo-session-final"] = "true"
    return Spoken(headers=headers)


def _agentic_context(who: CallIdentity) -> Spoken:
    context: dict[str, object] = {"program_id": stable_uuid(who.program), "step_id": str(who.step)}
    if not who.is_main:
        context["agent_id"] = stable_uuid(who.conversation)
    if who.deadline_s is not None and who.deadline_s > 0:
        context["deadline_seconds"] = round(who.deadline_s, 3)
    return Spoken(body={"vllm_xargs": {"agentic_context": context}})


STYLES: Final[Mapping[str, Callable[[CallIdentity], Spoken]]] = {
    "none": _none,
    "agentsched": _agentsched,
    "session": _session,
    "program_id": _program_id,
    "job_id": _job_id,
    "prompt_cache_key": _prompt_cache_key,
    "claude-code": _claude_code,
    "codex": _codex,
    "opencode": _opencode,
    "litellm": _litellm,
    "dynamo": _dynamo,
    "agentic_context": _agentic_context,
}


def style(name: str) -> Callable[[CallIdentity], Spoken]:
    """The strategy called `name`. Raises ConfigError with the names there are."""
    found = STYLES.get(name)
    if found is None:
        raise ConfigError(f"no convention {name!r} for ids (there are: {', '.join(STYLES)})")
    return found


def tells_the_end(name: str) -> bool:
    """Whether programs that speak so say which of their calls is the last."""
    speak = style(name)
    return speak(replace(_ANYBODY, is_last=True)) != speak(_ANYBODY)


def tells_deadlines(name: str) -> bool:
    """Whether programs that speak so can say when they are wanted."""
    speak = style(name)
    return speak(replace(_ANYBODY, deadline_s=1.0)) != speak(_ANYBODY)
