"""What doctor concludes from what an engine can do."""

from __future__ import annotations

import asyncio
import io
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console
from sglang_server import INFO, sglang_app

from agentsched.inspection.client import ProxyError
from agentsched.inspection.doctor import (
    Examined,
    Mark,
    Standing,
    _behind_proxy,
    _examine,
    _print,
    findings,
)
from agentsched.model import Capabilities, EngineLoad, EngineUnreachable
from agentsched_adapters.vllm import PriorityAnswer

ALL = Capabilities(
    prefix_cache=True,
    priority=True,
    session_id=True,
    cached_tokens=True,
    pins=True,
    block_size=16,
    kv_tokens=100_000,
)


WELL = Standing(
    seen_at=datetime(2026, 11, 22, 9, 30, 40, tzinfo=UTC),
    is_up=True,
    is_draining=False,
    was_up=True,
    last_error="",
)


def marks(
    capabilities: Capabilities,
    *,
    priority: PriorityAnswer = PriorityAnswer.CONFIRMED,
    load: EngineLoad | None = None,
    standing: Standing | None = None,
) -> dict[str, Mark]:
    engine = Examined(
        name="e",
        url="http://e",
        kind="vllm",
        version="0.32",
        capabilities=capabilities,
        priority=priority,
        load=load,
        standing=standing,
    )
    return {finding.about: finding.mark for finding in findings(engine)}


def test_all_that_can_be_wished_for() -> None:
    found = marks(ALL, load=EngineLoad(running=1, waiting=0, kv_usage=0.25))
    assert set(found.values()) == {Mark.GOOD}


async def test_nobody_there_is_a_line_with_a_hint() -> None:
    told = "http://127.0.0.1:9: Connection refused (is the engine, or the proxy, running?)"
    with pytest.raises(EngineUnreachable, match=re.escape(told)):
        await _examine("http://127.0.0.1:9", api_key=None)


def test_words_of_others_do_not_steer_the_terminal() -> None:
    evil = "\x1b[2J\x1b[1;1Hall engines up\r"
    engine = Examined(
        name=evil,
        url="http://e",
        kind="vllm",
        version=evil,
        capabilities=Capabilities(models=(evil,)),
        priority=PriorityAnswer.UNKNOWN,
        load=None,
        standing=replace(WELL, is_up=False, last_error=evil),
    )
    shown = io.StringIO()
    _print(Console(file=shown, width=200), engine, findings(engine))
    assert shown.getvalue().count("�[2J�[1;1Hall engines up") == 4
    assert all(c.isprintable() or c == "\n" for c in shown.getvalue())


def test_nothing_known() -> None:
    found = marks(Capabilities(), priority=PriorityAnswer.UNKNOWN)
    assert found.pop("prefix cache") is Mark.BAD
    assert set(found.values()) == {Mark.LIMIT}


@pytest.mark.parametrize("answer", list(PriorityAnswer))
def test_only_a_confirmed_priority_is_relied_on(answer: PriorityAnswer) -> None:
    is_good = marks(ALL, priority=answer)["priority"] is Mark.GOOD
    assert is_good is (answer is PriorityAnswer.CONFIRMED)


@pytest.mark.parametrize(
    ("takes_priority", "answer"),
    [(True, PriorityAnswer.CONFIRMED), (False, PriorityAnswer.REFUSED)],
)
async def test_sglang_is_called_what_it_is(takes_priority: bool, answer: PriorityAnswer) -> None:
    """The proxy sends it a priority with each step, where it takes any."""
    info = INFO | {"enable_priority_scheduling": takes_priority}
    async with TestServer(sglang_app(info)) as server:
        engine = await _examine(str(server.make_url("/")), api_key=None)
    shown = io.StringIO()
    _print(Console(file=shown, width=200), engine, findings(engine))

    assert (engine.kind, engine.version, engine.priority) == ("sglang", "0.5.19", answer)
    assert "(SGLang 0.5.19; m)" in shown.getvalue()
    hint = "--enable-priority-scheduling"
    assert (hint in shown.getvalue()) is not takes_priority


def test_a_tier_is_told_where_there_is_one() -> None:
    assert "tier" not in marks(ALL)
    assert marks(replace(ALL, tier=True))["tier"] is Mark.GOOD


class TestBehindAProxy:
    """What keeps new steps from an engine stands before what it can do."""

    def test_one_that_is_well_has_nothing_to_say(self) -> None:
        assert marks(ALL, standing=WELL) == marks(ALL)

    def test_a_silent_one_says_since_when_and_what_to_do(self) -> None:
        still = replace(WELL, silent_for_s=12.4, running_steps=3)
        engine = Examined(
            name="e",
            url="http://e",
            kind="engine",
            version="",
            capabilities=ALL,
            priority=PriorityAnswer.CONFIRMED,
            load=None,
            standing=still,
        )
        first, *others = findings(engine)
        assert (first.about, first.mark) == ("silent", Mark.BAD)
        assert "since 09:30:27 UTC (12 s); steps inside: 3" in first.found
        assert "AgentschedEngineSilent" in first.therefore
        assert others == findings(replace(engine, standing=None))

    def test_of_one_that_never_answered_nothing_else_is_said(self) -> None:
        absent = replace(WELL, is_up=False, was_up=False, last_error="refused")
        assert marks(Capabilities(), standing=absent) == {"not up": Mark.BAD}

    def test_drained_is_no_defect(self) -> None:
        drained = replace(WELL, is_up=False, is_draining=True)
        assert marks(ALL, standing=drained) == marks(ALL) | {"drained": Mark.LIMIT}
        both = marks(ALL, standing=replace(drained, silent_for_s=2.0))
        assert both == marks(ALL) | {"drained": Mark.LIMIT, "silent": Mark.BAD}


class TestWhoAnswers:
    """Of engines' servers some have OpenAI's error object for paths that they do not know."""

    @staticmethod
    async def engines_at(status: int, said: object) -> list[Examined] | None:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(said, status=status)

        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        async with TestServer(application) as server:
            url = str(server.make_url("/"))
            return await asyncio.to_thread(_behind_proxy, url, admin_key=None)

    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (404, {"error": {"message": "Invalid URL (GET /agentsched/v1/engines)", "code": None}}),
            (404, {"error": {"message": "File Not Found", "code": 404}}),
            (401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}),
            (200, {"error": "Unexpected endpoint or method."}),
            (404, {"detail": "Not Found"}),
        ],
    )
    async def test_an_engine_is_no_proxy_whatever_it_says(self, status: int, said: object) -> None:
        assert await self.engines_at(status, said) is None

    @pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (403, "forbidden")])
    async def test_a_proxy_that_says_no_is_one(self, status: int, code: str) -> None:
        said = {"error": {"message": "needs the admin key", "code": code}}
        with pytest.raises(ProxyError, match="needs the admin key"):
            await self.engines_at(status, said)
