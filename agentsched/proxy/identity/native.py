"""What a client says about itself: every convention that names programs, strongest first.

Each reader looks at headers (lower-case names) and body fields and returns a `Claim` or None. A
claim names a program, a thread in it (one agent's line of thought), or both; `merge` lets the
strongest claim decide each. Ids come from outside: they are cleaned and bounded here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import xxhash

from agentsched.model import StepClass
from agentsched.proxy.identity.model import NOTHING_DECLARED, Declared, Evidence
from agentsched.proxy.identity.values import (
    decoded,
    durations_of,
    flag_of,
    inner_of,
    integer_of,
    number_of,
    object_of,
    step_class_of,
    value_of,
)
from agentsched.proxy.request import ParsedRequest

Fields = Mapping[str, msgspec.Raw]
Headers = Mapping[str, str]

_SHOWN_CHARS_MAX: Final = 1_024
#: The thread of a program's main agent, where its convention gives it no name of its own.
MAIN: Final = "main"
#: vLLM believes it before it looks for the field `priority`.
_VLLM_PRIORITY: Final = "x-vllm-priority"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one convention says. Empty: it says nothing.

    `root` names the program outright; otherwise the program is that of `parent_thread` where one is
    given, and `thread` itself where none is. `is_exact` means that each agent has a thread of
    its own, so a rewritten prompt in the same thread is the same conversation.
    """

    evidence: Evidence
    source: str = ""
    root: str = ""
    thread: str = ""
    parent_thread: str = ""
    parent_program: str = ""
    agent: str = ""
    is_exact: bool = False
    is_subagent: bool = False
    step_class: StepClass | None = None
    declared: Declared = NOTHING_DECLARED

    @property
    def is_naming(self) -> bool:
        """Whether it names a program or a thread, rather than only telling of it."""
        return bool(self.root or self.thread or self.parent_thread)


def merge(claims: Sequence[Claim]) -> Claim | None:
    """One claim out of several, the strongest first; the first who says a thing is believed."""
    if not claims:
        return None
    first = next((c for c in claims if c.is_naming), claims[0])
    threaded = first if first.thread else next((c for c in claims if c.thread), first)
    declared = NOTHING_DECLARED
    for claim in reversed(claims):
        declared = _over(claim.declared, declared)
    if threaded is first and len(claims) == 1:
        return first
    return replace(
        first,
        root=first.root or ("" if first.parent_thread else first.thread),
        thread=threaded.thread,
        parent_thread=first.parent_thread or threaded.parent_thread,
        parent_program=next((c.parent_program for c in claims if c.parent_program), ""),
        agent=next((c.agent for c in claims if c.agent), ""),
        is_exact=threaded.is_exact,
        is_subagent=any(c.is_subagent for c in claims),
        step_class=next((c.step_class for c in claims if c.step_class is not None), None),
        declared=declared,
    )


def _over(strong: Declared, weak: Declared) -> Declared:
    if strong is NOTHING_DECLARED or strong == NOTHING_DECLARED:
        return weak
    if weak == NOTHING_DECLARED:
        return strong
    said = {name: getattr(strong, name) for name in Declared.__slots__}
    # A priority of 0 is said as any other: it equals False, and is not it.
    changes = {n: v for n, v in said.items() if v is not False and v not in (None, (), "")}
    return replace(weak, **changes)


def _with_priority(claim: Claim | None, headers: Headers, fields: Fields) -> Claim | None:
    """A claim with the priority that vLLM would read, where the client says none to a scheduler.

    It names nobody, so it is no claim beside others.
    """
    said = integer_of(headers.get(_VLLM_PRIORITY))
    if said is None:
        said = integer_of(value_of(fields.get("priority")))
    if said is None or (claim is not None and claim.declared.priority is not None):
        return claim
    claim = claim or Claim(evidence=Evidence.NONE)
    return replace(claim, declared=replace(claim.declared, priority=said))


class ClaimReader:
    """Reads claims. `extra_headers` are the operator's own session headers, lower-case."""

    def __init__(self, *, extra_headers: Sequence[str] = (), id_characters_max: int = 128) -> None:
        self._max = id_characters_max
        self._extra = tuple(name.lower() for name in extra_headers)
        self._telling_headers = _TELLING_HEADERS.union(self._extra)
        self._readers: tuple[Callable[[Headers, Fields], Claim | None], ...] = (
            self._ours,
            self._agentic_context,
            self._nvext,
            self._program_id,
            self._dynamo,
            self._claude_code,
            self._codex,
            self._opencode,
            self._litellm,
            self._generic_header,
            self._generic_body,
            self._cache_key,
        )

    def read(self, request: ParsedRequest, headers: Headers) -> Claim | None:
        """What this request says about its program, conventions merged; None: nothing."""
        if self._telling_headers.isdisjoint(headers) and _TELLING_FIELDS.isdisjoint(request.fields):
            return None  # as most requests do: no convention need be asked
        claims = []
        for reader in self._readers:
            claim = reader(headers, request.fields)
            if claim is not None:
                claims.append(claim)
        return _with_priority(merge(claims), headers, request.fields)

    def clean(self, value: object) -> str:
        """An outside id, safe to keep and show: no control characters, bounded in length."""
        return self._bounded(value, self._max)

    def shown(self, value: object) -> str:
        """Likewise an id that we may have shown, which is longer than the name in it.

        Where we showed no such id, it is a name, to be cleaned as one.
        """
        return self._bounded(value, _SHOWN_CHARS_MAX)

    def _bounded(self, value: object, characters_max: int) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return ""
        text = str(value)
        if not text.isprintable():
            text = "".join(c for c in text if c.isprintable())
        text = text.strip()
        if len(text) > characters_max:
            text = "h-" + xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))
        return text

    # -- ours and the structured conventions ------------------------------------------------------

    def _ours(self, headers: Headers, fields: Fields) -> Claim | None:
        body = object_of(fields, "agentsched")
        said: dict[str, Any] = {k.replace("-", "_"): v for k, v in body.items()}
        for name in _OURS:
            value = headers.get("x-agentsched-" + name)
            if value is not None:
                said[name.replace("-", "_")] = value
        if not said:
            return None
        return Claim(
            evidence=Evidence.OURS,
            source="agentsched",
            root=self.shown(said.get("program")),
            thread=self.clean(said.get("conversation")),
            parent_program=self.shown(said.get("parent")),
            agent=self.clean(said.get("agent")),
            is_exact=bool(said.get("conversation")),
            step_class=step_class_of(said.get("class")),
            declared=Declared(
                is_last=flag_of(said.get("final")),
                deadline_s=number_of(said.get("deadline")),
                priority=integer_of(said.get("priority")),
                output_tokens=integer_of(said.get("expected_output", said.get("output_tokens"))),
                step=integer_of(said.get("step")),
            ),
        )

    def _agentic_context(self, headers: Headers, fields: Fields) -> Claim | None:
        said = object_of(inner_of(fields, "vllm_xargs"), "agentic_context")
        if not said:
            return None
        program = self.clean(said.get("program_id")) or self.clean(said.get("task_id"))
        root = self.clean(said.get("root_program_id"))
        parent = self.clean(said.get("parent_program_id"))
        thread = self.clean(said.get("agent_id")) or self.clean(said.get("session_id"))
        if program and (root or parent) and program != root:
            thread = program
        return Claim(
            evidence=Evidence.AGENTIC_CONTEXT,
            source="vllm_xargs.agentic_context",
            root=root or ("" if parent else program or self.clean(said.get("session_id"))),
            thread=thread,
            parent_thread=parent if parent and thread == program else "",
            agent=self.clean(said.get("agent_role")),
            is_exact=bool(thread),
            is_subagent=bool(parent),
            declared=Declared(
                deadline_s=number_of(said.get("deadline_seconds")),
                priority=integer_of(said.get("priority")),
                output_tokens=integer_of(said.get("expected_output_length")),
                step=integer_of(said.get("step_id")),
            ),
        )

    def _nvext(self, headers: Headers, fields: Fields) -> Claim | None:
        nvext = inner_of(fields, "nvext")
        if not nvext:
            return None
        hints, context = object_of(nvext, "agent_hints"), object_of(nvext, "agent_context")
        control = object_of(nvext, "session_control")
        trajectory = self.clean(context.get("trajectory_id"))
        parent = self.clean(context.get("parent_trajectory_id"))
        session = self.clean(control.get("session_id"))
        program = self.clean(context.get("session_id")) or session
        is_closed = bool(session) and control.get("action") == "close"
        is_final = flag_of(context.get("trajectory_final"))
        # What is closed may be a part of the program alone, as a sub-agent is.
        is_last = not parent and (is_final or (is_closed and session == program))
        priority = integer_of(hints.get("priority"))
        return Claim(
            evidence=Evidence.NVEXT,
            source="nvext",
            root=program or ("" if parent else trajectory) or self.clean(hints.get("prefix_id")),
            thread=trajectory,
            parent_thread=parent,
            agent=self.clean(context.get("session_type_id")),
            is_exact=bool(trajectory),
            is_subagent=bool(parent),
            declared=Declared(
                is_last=is_last,
                is_last_word=(is_final or is_closed) and not is_last,
                priority=None if priority is None else -priority,  # theirs: greater is sooner
                output_tokens=integer_of(hints.get("osl")),
            ),
        )

    def _program_id(self, headers: Headers, fields: Fields) -> Claim | None:
        extra = inner_of(fields, "extra_body")
        for name in ("program_id", "job_id"):
            raw = fields.get(name) or extra.get(name)
            if raw is not None:
                program = self.clean(value_of(raw))
                if program:
                    last = fields.get("is_last_step") or extra.get("is_last_step")
                    return Claim(
                        evidence=Evidence.PROGRAM_ID,
                        source=name,
                        root=program,
                        declared=Declared(is_last=flag_of(value_of(last))),
                    )
        return None

    # -- known agents -----------------------------------------------------------------------------

    def _dynamo(self, headers: Headers, fields: Fields) -> Claim | None:
        for stem in ("x-dynamo-session", "x-dynamo-trajectory"):
            thread = self.clean(headers.get(stem + "-id"))
            if thread:
                kind = stem.removeprefix("x-dynamo-")
                parent = self.clean(headers.get(f"x-dynamo-parent-{kind}-id"))
                is_over = flag_of(headers.get(stem + "-final"))
                return Claim(
                    evidence=Evidence.NATIVE,
                    source=stem + "-id",
                    root="" if parent else thread,
                    thread=thread,
                    parent_thread=parent,
                    is_exact=True,
                    is_subagent=bool(parent),
                    declared=Declared(
                        is_last=is_over and not parent, is_last_word=is_over and bool(parent)
                    ),
                )
        return None

    def _claude_code(self, headers: Headers, fields: Fields) -> Claim | None:
        session = self.clean(headers.get("x-claude-code-session-id"))
        source = "x-claude-code-session-id"
        if not session:
            session = self._claude_metadata(fields)
            source = "metadata.user_id"
            if not session:
                return None
            return Claim(evidence=Evidence.NATIVE, source=source, root=session, agent="claude-code")
        agent_id = self.clean(headers.get("x-claude-code-agent-id"))
        parent = self.clean(headers.get("x-claude-code-parent-agent-id")) or MAIN
        durations = headers.get("x-claude-code-prev-tool-durations")
        return Claim(
            evidence=Evidence.NATIVE,
            source=source,
            root=session,
            thread=agent_id or MAIN,
            parent_thread=parent if agent_id else "",
            agent=self.clean(headers.get("x-claude-code-agent-type")) or "claude-code",
            is_exact=True,
            is_subagent=bool(agent_id),
            step_class=_CLAUDE_CLASSES.get(headers.get("x-claude-code-request-class", "")),
            declared=Declared(tool_ms=durations_of(durations)) if durations else NOTHING_DECLARED,
        )

    def _claude_metadata(self, fields: Fields) -> str:
        user = inner_of(fields, "metadata").get("user_id")
        text = value_of(user) if user is not None else None
        if not isinstance(text, str) or len(text) > 4_096:
            return ""
        if text.startswith("{"):
            return self.clean(decoded(text).get("session_id"))
        match = _CLAUDE_USER.search(text)
        return self.clean(match[1]) if match else ""

    def _codex(self, headers: Headers, fields: Fields) -> Claim | None:
        thread = self.clean(headers.get("thread-id") or headers.get("conversation_id"))
        session = self.clean(headers.get("session-id") or headers.get("session_id"))
        # The body says the same, also where a gateway keeps the headers for itself.
        body = inner_of(fields, "client_metadata")
        source = "session-id"
        if not thread and "client_metadata" in fields:
            thread = self.clean(value_of(body.get("thread_id")))
            session = session or self.clean(value_of(body.get("session_id")))
            source = "client_metadata"
        if not session and not thread:
            return None
        parent, kind, turn = (
            headers.get(name) or value_of(body.get(name))
            for name in ("x-codex-parent-thread-id", "x-openai-subagent", "x-codex-turn-metadata")
        )
        parent, kind = self.clean(parent), self.clean(kind)
        is_compaction = isinstance(turn, str) and (
            '"request_kind":"compaction"' in turn.replace(" ", "")
        )
        return Claim(
            evidence=Evidence.NATIVE,
            source=source,
            root=session,
            thread=thread,
            parent_thread=parent,
            agent=kind or ("codex" if thread else ""),
            is_exact=bool(thread),
            is_subagent=bool(parent or kind),
            step_class=StepClass.COMPACTION if is_compaction else None,
        )

    def _opencode(self, headers: Headers, fields: Fields) -> Claim | None:
        own = headers.get("x-session-affinity") or headers.get("x-opencode-session")
        parent = self.clean(headers.get("x-parent-session-id"))
        thread = self.clean(headers.get("x-session-id") or own)
        if not thread or not (own or parent):
            return None
        return Claim(
            evidence=Evidence.NATIVE,
            source="x-session-id",
            root="" if parent else thread,
            thread=thread,
            parent_thread=parent,
            agent="opencode" if "opencode" in headers.get("user-agent", "") else "",
            is_exact=True,
            is_subagent=bool(parent),
        )

    def _litellm(self, headers: Headers, fields: Fields) -> Claim | None:
        thread = self.clean(headers.get("x-litellm-session-id"))
        if not thread:
            return None
        key = self.clean(value_of(fields.get("prompt_cache_key")))
        parent = key if key != thread else ""
        return Claim(
            evidence=Evidence.NATIVE,
            source="x-litellm-session-id",
            root="" if parent else thread,
            thread=thread if key else "",
            parent_thread=parent,
            agent="openhands" if headers.get("x-title") == "OpenHands" else "",
            is_exact=bool(key),
            is_subagent=bool(parent),
        )

    # -- generic ids ------------------------------------------------------------------------------

    def _generic_header(self, headers: Headers, fields: Fields) -> Claim | None:
        for name in (*self._extra, *_SESSION_HEADERS):
            value = headers.get(name)
            if value is not None:
                root = self.clean(value)
                if root:
                    return Claim(evidence=Evidence.SESSION_ID, source=name, root=root)
        return None

    def _generic_body(self, headers: Headers, fields: Fields) -> Claim | None:
        for outer, name in _SESSION_FIELDS:
            raw = (inner_of(fields, outer) if outer else fields).get(name)
            if raw is not None:
                root = self.clean(value_of(raw))
                if root:
                    source = f"{outer}.{name}" if outer else name
                    return Claim(evidence=Evidence.SESSION_ID, source=source, root=root)
        return None

    def _cache_key(self, headers: Headers, fields: Fields) -> Claim | None:
        raw = fields.get("conversation")
        if raw is not None:
            value = value_of(raw)
            root = self.clean(value.get("id") if isinstance(value, dict) else value)
            if root:
                return Claim(evidence=Evidence.CACHE_KEY, source="conversation", root=root)
        root = self.clean(value_of(fields.get("prompt_cache_key")))
        if not root:
            return None
        return Claim(evidence=Evidence.CACHE_KEY, source="prompt_cache_key", root=root)


_OURS: Final = (
    "expected-output",
    "program",
    "conversation",
    "parent",
    "agent",
    "step",
    "final",
    "class",
    "deadline",
    "priority",
    "output-tokens",
    "ttl",
    "resume",
)
_SESSION_HEADERS: Final = (
    "x-session-id",
    "x-aibrix-session-key",
    "x-session-token",
    "x-smg-routing-key",
    "x-amp-thread-id",
    "x-grok-conv-id",
    "x-goose-session-id",
    "agent-session-id",  # Goose's own name for it
    "x-client-session-id",
    "x-roo-task-id",
    "x-kilocode-taskid",
    "x-openwebui-chat-id",
    "x-conversation-id",
    "modal-session-id",
    "x-switchyard-session-id",
)
_SESSION_FIELDS: Final = (
    ("", "session_id"),
    ("vllm_xargs", "session_id"),
    ("session_params", "session_id"),
    ("", "litellm_session_id"),
    ("metadata", "session_id"),
)
_CLAUDE_CLASSES: Final = {
    "main": StepClass.STEP,
    "subagent": StepClass.SUBAGENT,
    "workflow": StepClass.SUBAGENT,
    "auxiliary": StepClass.AUXILIARY,
    "side_reply": StepClass.AUXILIARY,
    "compaction": StepClass.COMPACTION,
}
_CLAUDE_USER: Final = re.compile(r"_session_([0-9A-Za-z-]{8,64})")
#: Without one of these headers or fields no convention claims anything.
_TELLING_HEADERS: Final = frozenset(
    {
        *("x-agentsched-" + name for name in _OURS),
        "x-dynamo-session-id",
        "x-dynamo-trajectory-id",
        "x-claude-code-session-id",
        "thread-id",
        "conversation_id",
        "session-id",
        "session_id",
        "x-session-affinity",
        "x-opencode-session",
        "x-litellm-session-id",
        _VLLM_PRIORITY,
        *_SESSION_HEADERS,
    }
)
_TELLING_FIELDS: Final = frozenset(
    {
        "agentsched",
        "vllm_xargs",
        "nvext",
        "program_id",
        "job_id",
        "extra_body",
        "metadata",
        "client_metadata",
        "conversation",
        "prompt_cache_key",
        "priority",
        *(outer or name for outer, name in _SESSION_FIELDS),
    }
)
