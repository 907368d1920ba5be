"""LMCache's controller, as its source has it, behind a scripted server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from shorthand import pin, prefetch, unpin

from agentsched.model import EngineId, HintOutcome, Prefetch
from agentsched.ports import EngineRequest
from agentsched_adapters import lmcache
from agentsched_adapters.lmcache import EngineTokens, LmcacheHints
from agentsched_adapters.openai_compatible import OpenAiCompatibleEngine

PIN, PREFETCH = pin(tokens=4), prefetch(tokens=4)


@dataclass
class Controller:
    """Answers as told, and remembers what it was asked."""

    layout: dict[str, tuple[str, int]] = field(default_factory=dict)
    moved: int = 4
    pinned: int = 4
    status: int = 200
    asked: list[tuple[str, Any]] = field(default_factory=list)

    async def post(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        answers: dict[str, Any] = {
            "/lookup": {"event_id": "1", "layout_info": self.layout},
            "/pin": {"event_id": "2", "num_tokens": self.pinned},
            "/move": {"event_id": "3", "num_tokens": self.moved},
        }
        return web.json_response(answers[request.path], status=self.status)


class Known:
    def __init__(self, *tokens: int) -> None:
        self._tokens = tokens

    async def tokens(self, hint: object) -> Sequence[int]:
        return self._tokens


@pytest.fixture
async def controller() -> AsyncIterator[tuple[Controller, str]]:
    made = Controller()
    application = web.Application()
    application.router.add_post("/{path:.*}", made.post)
    async with TestServer(application) as server:
        yield made, str(server.make_url("/"))


@pytest.fixture
async def hints(controller: tuple[Controller, str]) -> AsyncIterator[LmcacheHints]:
    made = LmcacheHints(controller[1], instance="gpu-1", tokens=Known(1, 2, 3, 4))
    yield made
    await made.aclose()


async def test_a_pin_keeps_the_tokens_in_the_tier(
    controller: tuple[Controller, str], hints: LmcacheHints
) -> None:
    assert await hints.hint(PIN) is HintOutcome.ACCEPTED
    asked = {"instance_id": "gpu-1", "location": "LocalCPUBackend", "tokens": [1, 2, 3, 4]}
    assert controller[0].asked == [("/pin", asked)]
    controller[0].pinned = 0
    assert await hints.hint(PIN) is HintOutcome.REFUSED


async def test_an_unpin_cannot_be_said(hints: LmcacheHints) -> None:
    assert await hints.hint(unpin()) is HintOutcome.UNSUPPORTED


@pytest.mark.parametrize(
    ("layout", "source"),
    [
        ({"gpu-2": ("LocalCPUBackend", 4)}, ["gpu-2", "LocalCPUBackend"]),
        (
            {"gpu-2": ("LocalCPUBackend", 4), "gpu-1": ("LocalDiskBackend", 3)},
            ["gpu-1", "LocalDiskBackend"],
        ),
        (
            {"gpu-3": ("LocalCPUBackend", 2), "gpu-2": ("LocalCPUBackend", 4)},
            ["gpu-2", "LocalCPUBackend"],
        ),
    ],
)
async def test_a_prefetch_copies_from_the_nearest(
    controller: tuple[Controller, str],
    hints: LmcacheHints,
    layout: dict[str, tuple[str, int]],
    source: list[str],
) -> None:
    controller[0].layout = layout
    assert await hints.hint(PREFETCH) is HintOutcome.ACCEPTED
    path, asked = controller[0].asked[-1]
    assert path == "/move"
    assert asked["old_position"] == source
    assert asked["new_position"] == ["gpu-1", "LocalCPUBackend"]
    assert asked["copy"] is True


async def test_what_is_near_is_not_moved(
    controller: tuple[Controller, str], hints: LmcacheHints
) -> None:
    controller[0].layout = {"gpu-1": ("LocalCPUBackend", 4)}
    assert await hints.hint(PREFETCH) is HintOutcome.ACCEPTED
    controller[0].layout = {}
    assert await hints.hint(PREFETCH) is HintOutcome.REFUSED
    assert [path for path, _ in controller[0].asked] == ["/lookup", "/lookup"]


async def test_a_controller_that_fails_fails_no_request(
    controller: tuple[Controller, str], hints: LmcacheHints
) -> None:
    controller[0].status = 500
    assert await hints.hint(PIN) is HintOutcome.FAILED
    away = LmcacheHints("http://127.0.0.1:9", instance="x", tokens=Known(1))
    assert await away.hint(PREFETCH) is HintOutcome.FAILED
    nothing = LmcacheHints("http://127.0.0.1:9", instance="x", tokens=Known())
    assert await nothing.hint(PIN) is HintOutcome.REFUSED
    await away.aclose()
    await nothing.aclose()


async def test_an_engine_that_stands_still_keeps_no_hint(
    monkeypatch: pytest.MonkeyPatch, controller: tuple[Controller, str]
) -> None:
    """Its own requests may take half an hour to their first byte; a hint is not worth that."""
    asked = asyncio.Event()

    async def tokenize(request: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    application = web.Application()
    application.router.add_post("/tokenize", tokenize)
    async with TestServer(application, handler_cancellation=True) as server:
        engine = OpenAiCompatibleEngine(EngineId("e"), str(server.make_url("/")))
        tokens = EngineTokens(engine, Bodies(b'{"prompt": "x"}'))
        sink = LmcacheHints(controller[1], instance="gpu-1", tokens=tokens)
        # The span includes the way there: long enough to be asked on a machine that does much else.
        for span_s in (0.05, 0.5, 5.0):
            monkeypatch.setattr(lmcache, "_TIMEOUT_S", span_s)
            async with asyncio.timeout(60):
                assert await sink.hint(PIN) is HintOutcome.FAILED
            if asked.is_set():
                break
        assert asked.is_set()
        await sink.aclose()
        await engine.aclose()


class Bodies:
    def __init__(self, *bodies: bytes) -> None:
        self._bodies = bodies

    def warm_requests(self, hint: Prefetch, engine: object) -> list[EngineRequest]:
        target = "/v1/chat/completions"
        return [
            EngineRequest(method="POST", target=target, headers=[("x-k", "1")], body=body)
            for body in self._bodies
        ]


@dataclass
class Tokenizer:
    """An engine that says what a prompt's tokens are, and remembers what it was asked."""

    engine: OpenAiCompatibleEngine
    asked: list[Any]


@pytest.fixture
async def tokenizer() -> AsyncIterator[Tokenizer]:
    asked: list[Any] = []

    async def tokenize(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"count": 3, "tokens": [7, 8, 9]})

    application = web.Application()
    application.router.add_post("/tokenize", tokenize)
    async with TestServer(application) as server:
        engine = OpenAiCompatibleEngine(EngineId("e"), str(server.make_url("/")))
        yield Tokenizer(engine, asked)
        await engine.aclose()


async def test_tokens_are_asked_of_the_engine(tokenizer: Tokenizer) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}'
    source = Bodies(b"{", b'{"input": 1}', body)
    assert list(await EngineTokens(tokenizer.engine, source).tokens(PIN)) == [7, 8, 9]
    assert not list(await EngineTokens(tokenizer.engine, Bodies()).tokens(PREFETCH))
    assert tokenizer.asked == [{"model": "m", "messages": [{"role": "user", "content": "x"}]}]


async def test_a_prompt_is_tokenized_as_it_was_computed(tokenizer: Tokenizer) -> None:
    chat: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    templated = chat | {"chat_template_kwargs": {"enable_thinking": False}}
    whole: dict[str, Any] = {"model": "m", "prompt": "x", "add_special_tokens": False}
    for body in (templated, whole):
        source = Bodies(json.dumps(body | {"max_tokens": 1}).encode())
        assert list(await EngineTokens(tokenizer.engine, source).tokens(PIN)) == [7, 8, 9]
    # By the Messages API: its beginning would be missing, and nothing found.
    source = Bodies(json.dumps(chat | {"system": "You are"}).encode())
    assert not list(await EngineTokens(tokenizer.engine, source).tokens(PIN))
    assert tokenizer.asked == [templated, whole]
