"""A small OpenAI-compatible server that counts words as tokens and does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.trace import group_programs

#: Tokens that the fake adds for each message, and for the answer's opening.
MESSAGE_TOKENS = 4
OPENING_TOKENS = 3


@dataclass
class Seen:
    """One request as the fake got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        found = self.body.get("messages", self.body.get("input"))
        assert isinstance(found, list)
        return found


@dataclass
class FakeOpenAi:
    """Answers each call with `max_tokens` words. What it is to do wrong is set by the test.

    `refuse` statuses are given to the next calls, one each, with `retry_after`. From call number
    `hang_from` on, answers begin and do not end; `hanging` tells when `hang_count` of them do.
    `cut` ends streams early. `labels` are given by the first user message, as a proxy that tells
    programs apart perfectly would.
    """

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    refuse: list[int] = field(default_factory=list)
    retry_after: str | None = None
    hang_from: int | None = None
    hang_count: int = 1
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    cut: bool = False
    gives_labels: bool = False
    gives_usage: bool = True
    gives_ids: bool = True
    takes_reports: bool = True
    forgets: bool = False
    reports: list[dict[str, Any]] = field(default_factory=list)
    #: Whose program is called what: nobody can report for another tenant.
    known: set[tuple[str | None, str]] = field(default_factory=set)
    resets: int = 0
    running: int = 0
    running_max: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
            app.router.add_post(path, self._generate)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/reset_prefix_cache", self._reset)
        app.router.add_post("/agentsched/v1/tools", self._tools)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake-model"}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        words = (await request.json())["prompt"].split()
        tokens = [t for w in words for t in (["Ġ" + w] if len(w) < 7 else ["Ġ" + w[:3], w[3:]])]
        return web.json_response({"count": len(tokens), "tokens": [], "token_strs": tokens})

    async def _tools(self, request: web.Request) -> web.Response:
        if not self.takes_reports:
            return web.Response(status=404)
        events = (await request.json())["events"]
        tenant = request.headers.get("x-agentsched-tenant")
        known = [event for event in events if (tenant, event["program"]) in self.known]
        self.reports += known
        body = {"accepted": len(known), "ignored": {"unknown_program": len(events) - len(known)}}
        return web.json_response(body, status=202)

    async def _reset(self, _: web.Request) -> web.Response:
        self.resets += 1
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        self.seen.append(Seen(path=request.path, headers=dict(request.headers), body=body))
        if self.refuse:
            headers = {} if self.retry_after is None else {"retry-after": self.retry_after}
            error = {"error": {"message": "try later", "type": "overloaded"}}
            return web.json_response(error, status=self.refuse.pop(0), headers=headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        if self.gives_labels:
            first = next(m for m in self.seen[-1].messages if m["role"] == "user")
            label = f"p-{hash(first['content']) % 10**9}"
            if not self.forgets:
                self.known.add((request.headers.get("x-agentsched-tenant"), label))
            response.headers["x-agentsched-program"] = label
            response.headers["x-agentsched-decision"] = "order=fcfs"
        await response.prepare(request)
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            await self._stream(response, request.path, body, number=len(self.seen))
        finally:
            self.running -= 1
        return response

    async def _stream(
        self, response: web.StreamResponse, path: str, body: dict[str, Any], *, number: int
    ) -> None:
        wanted = body["max_tokens"] if "max_tokens" in body else body["max_output_tokens"]
        events = _EVENTS[path](
            prompt=_count(body), output=wanted, usage=self.gives_usage, ids=self.gives_ids
        )
        if self.cut:
            events = events[: len(events) // 2]
        if self.hang_from is not None and number >= self.hang_from:
            await response.write(events[0])
            self.hang_count -= 1
            if self.hang_count == 0:
                self.hanging.set()
            await asyncio.Event().wait()
        for event in events:
            await response.write(event)


def _count(body: dict[str, Any]) -> int:
    if "prompt" in body:
        return len(body["prompt"])
    messages = list(body["messages"] if "messages" in body else body["input"])
    for system in ("system", "instructions"):
        if system in body:
            messages.append({"content": body[system]})
    words = sum(len(message["content"].split()) for message in messages)
    return words + MESSAGE_TOKENS * len(messages) + OPENING_TOKENS


def _data(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _chat(*, prompt: int, output: int, usage: bool, ids: bool) -> list[bytes]:
    events = [_data({"choices": [{"delta": {"role": "assistant", "content": ""}}]})]
    events += [_data({"choices": [{"delta": {"content": "word "}}]})] * output
    if usage:
        counts = {"prompt_tokens": prompt, "completion_tokens": output}
        details = {"prompt_tokens_details": {"cached_tokens": prompt // 2}}
        events.append(_data({"choices": [], "usage": counts | details}))
    return [*events, b"data: [DONE]\n\n"]


def _completions(*, prompt: int, output: int, usage: bool, ids: bool) -> list[bytes]:
    choice = {"text": "w ", "token_ids": [7]} if ids else {"text": "w "}
    events = [_data({"choices": [choice]})] * output
    if usage:
        counts = {"prompt_tokens": prompt, "completion_tokens": output}
        events.append(_data({"choices": [], "usage": counts}))
    return [*events, b"data: [DONE]\n\n"]


def _responses(*, prompt: int, output: int, usage: bool, ids: bool) -> list[bytes]:
    events = [_data({"type": "response.created", "response": {"status": "in_progress"}})]
    delta = {"type": "response.output_text.delta", "delta": "word "}
    events += [_data(delta)] * output
    counts = {
        "input_tokens": prompt,
        "output_tokens": output,
        "input_tokens_details": {"cached_tokens": prompt // 2},
    }
    end = {"status": "completed", "usage": counts}
    return [*events, _data({"type": "response.completed", "response": end})]


def _messages(*, prompt: int, output: int, usage: bool, ids: bool) -> list[bytes]:
    cached = prompt // 2
    counts = {"input_tokens": prompt - cached, "cache_read_input_tokens": cached}
    events = [
        b"event: message_start\n"
        + _data({"type": "message_start", "message": {"usage": counts | {"output_tokens": 0}}})
    ]
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "word "}}
    events += [b"event: content_block_delta\n" + _data(delta)] * output
    done = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": output}}
    return [*events, _data(done), _data({"type": "message_stop"})]


_EVENTS = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAi]:
    """A fake server that listens; `url` says where."""
    fake = FakeOpenAi()
    server = TestServer(fake.app())
    await server.start_server()
    fake.url = str(server.make_url("")).rstrip("/")
    yield fake
    await server.close()


@pytest.fixture
def plans() -> list[PlannedProgram]:
    """Six small programs whose tools take no time."""
    rows = list(generate(programs=6, seed=5, steps_max=4))
    options = ShapeOptions(scale_tokens=16, scale_time=1, gap_cap_s=0.0)
    return plan_programs(group_programs(rows), options, shared=SharedPrompts.learn(rows))
