"""A small agent client that drives an `IdentityIndex` in tests: no network, time by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentsched.model import Instant, TenantId
from agentsched.model.time import SECOND
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.identity import Identity, IdentityIndex, IdentityLimits
from agentsched_bench.clients.readers import parse

PATHS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "completions": "/v1/completions",
    "count": "/v1/messages/count_tokens",
    "other": "/v1/models",
}


class Wire:
    """Sends bodies to one index and moves its clock by a second each time."""

    def __init__(self, limits: IdentityLimits | None = None, **options: Any) -> None:
        self.index = IdentityIndex(secret=42, limits=limits, **options)
        self.seconds = 0.0

    @property
    def now(self) -> Instant:
        return Instant(round(self.seconds * SECOND))

    def send(
        self,
        body: Mapping[str, Any],
        *,
        api: str = "chat",
        headers: Mapping[str, str] | None = None,
        tenant: str = "default",
        is_dry: bool = False,
    ) -> Identity:
        self.seconds += 1
        request = parse(PATHS[api], json.dumps(body).encode())
        return self.index.identify(
            request, headers or {}, tenant=TenantId(tenant), now=self.now, is_dry=is_dry
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[str] = ("bash",),
        headers: Mapping[str, str] | None = None,
        tenant: str = "default",
        **fields: Any,
    ) -> Identity:
        body = {"model": "m", "messages": messages, **fields}
        if tools:
            body["tools"] = [{"type": "function", "function": {"name": t}} for t in tools]
        return self.send(body, headers=headers, tenant=tenant)

    def answer(
        self,
        identity: Identity,
        text: str = "",
        calls: Sequence[tuple[str, str, str]] = (),
        *,
        is_complete: bool = True,
        response_id: str = "",
    ) -> None:
        self.seconds += 0.5
        made = tuple(AnsweredCall(call_id=i, name=n, arguments=a) for i, n, a in calls)
        answer = Answer(text=text, calls=made, is_complete=is_complete, response_id=response_id)
        self.index.answered(identity, answer, now=self.now)

    def abandon(self, identity: Identity) -> None:
        self.index.abandoned(identity, now=self.now)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str = "You are an agent.") -> dict[str, Any]:
    return {"role": "system", "content": text}


def said(text: str = "", *calls: tuple[str, str, str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}}
            for i, n, a in calls
        ]
    return message


def result(call_id: str, text: str = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}
