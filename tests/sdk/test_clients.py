"""The official clients, through a real proxy in front of the embedded engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from live import small_engine

import agentsched
from agentsched.config import Config
from agentsched.model import ProgramClosed, StepArrived, ToolFinished, ToolStarted
from agentsched.proxy.serve import running
from agentsched_bench.engine.server import ServerConfig, running_engine

ASK: list[Any] = [{"role": "user", "content": "hello"}]


class Turns:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def write(self, entry: Any) -> None:
        self.events.append(entry.event)


@pytest.fixture
async def turns(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turns]:
    """A proxy with an engine behind it; the SDK is told of it."""
    # It is on this test's own loop: slow at most, never away.
    monkeypatch.setattr(agentsched.sdk.reporter, "_TIMEOUT_S", 60.0)
    heard = Turns()
    engine = ServerConfig(engine=small_engine(max_model_len=2_048), models=("sim",), speed=100)
    async with running_engine(engine) as sim:
        config = Config(port=0, engines=[{"url": sim.url, "id": "e0"}], profile="fcfs")
        async with running(config, sinks=[heard]) as (gateway, proxy):
            agentsched.configure(proxy)
            yield heard
            await flushed()
            assert not gateway.host.scheduler.steps


async def flushed() -> bool:
    """All reports have gone out."""
    return await asyncio.to_thread(agentsched.sdk.reporter.reporter().flush, 60)


async def test_async_openai_is_one_program(turns: Turns) -> None:
    async with agentsched.async_openai() as client:
        async with agentsched.program(id="mine", tenant="red"):
            seen = []
            for _ in range(2):
                raw = await client.chat.completions.with_raw_response.create(
                    model="sim", messages=ASK, max_tokens=4
                )
                assert raw.parse().choices[0].message.content
                seen.append(raw.headers["x-agentsched-program"])
            assert seen == ["red/mine"] * 2
        outside = await client.chat.completions.with_raw_response.create(
            model="sim", messages=ASK, max_tokens=4
        )
        assert outside.headers["x-agentsched-program"] != "red/mine"


async def test_sync_clients_in_threads(turns: Turns) -> None:
    def work(name: str) -> tuple[str, str]:
        with agentsched.program(id=name):
            with agentsched.openai() as client:
                chat = client.chat.completions.with_raw_response.create(
                    model="sim", messages=ASK, max_tokens=4
                )
            with agentsched.anthropic() as other:
                message = other.messages.with_raw_response.create(
                    model="sim", messages=ASK, max_tokens=4
                )
            return (
                chat.headers["x-agentsched-program"],
                message.headers["x-agentsched-program"],
            )

    both = await asyncio.gather(asyncio.to_thread(work, "a"), asyncio.to_thread(work, "b"))
    # Both carriers of one key are one tenant, whose programs have names of their own.
    assert [{name.rpartition("/")[2] for name in pair} for pair in both] == [{"a"}, {"b"}]
    assert len({name.partition("/")[0] for pair in both for name in pair}) == 1


async def test_async_anthropic_and_tools(turns: Turns) -> None:
    async with agentsched.async_anthropic() as client, agentsched.program(id="p"):
        message = await client.messages.create(model="sim", messages=ASK, max_tokens=4)
        assert message.usage.output_tokens == 4
        with agentsched.tool_call("bash", expects_s=3):
            pass
        assert await flushed()
    started = [e for e in turns.events if isinstance(e, ToolStarted)]
    finished = [e for e in turns.events if isinstance(e, ToolFinished)]
    assert [(e.tool, e.expected) for e in started] == [("bash", 3_000_000_000)]
    assert started[0].program.endswith("/p")
    assert len(finished) == 1


def test_hooks_tell_nobody_but_the_proxy() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    hooks = agentsched.httpx_hooks("http://proxy:8900")
    transport = httpx.MockTransport(answer)
    with httpx.Client(transport=transport, event_hooks=hooks) as client, agentsched.program(id="p"):
        client.get("http://proxy:8900/v1/models")
        client.get("http://elsewhere:8900/v1/models")
        client.get("http://proxy:8900/x", headers={"x-agentsched-program": "chosen"})
    names = [r.headers.get("x-agentsched-program") for r in asked]
    assert names == ["p", None, "chosen"]


def test_another_credential_goes_in_place_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library refuses both, and has its own variables."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "theirs")
    with agentsched.anthropic("http://proxy:8900", auth_token="token") as client:
        assert client.auth_token == "token"
    with agentsched.anthropic("http://proxy:8900") as client:
        assert client.api_key == "theirs"


def test_the_librarys_second_variable_counts_where_the_first_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where Claude Code looks, too; a key that is made up for the proxy would hide it."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token")
    with agentsched.anthropic("http://proxy:8900") as client:
        assert (client.api_key, client.auth_token) == (None, "token")
    with agentsched.anthropic("http://proxy:8900", api_key="none") as client:
        assert client.api_key == "none"
    agentsched.configure("http://proxy:8900", api_key="ours")
    with agentsched.anthropic() as client:
        assert client.api_key == "ours"
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN")
    agentsched.configure("http://proxy:8900")
    with agentsched.anthropic() as client:
        assert client.api_key == "none"


@pytest.mark.parametrize(
    ("proxy", "asked"),
    [
        ("https://proxy:443", "https://proxy/v1/models"),
        ("https://proxy", "https://proxy:443/v1/models"),
        ("http://PROXY:80/v1", "http://proxy/v1/models"),
        ("http://[::1]:8900", "http://[::1]:8900/v1/models"),
    ],
)
def test_hooks_know_the_proxy_however_it_is_written(proxy: str, asked: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=request.headers.get("x-agentsched-program", ""))

    hooks = agentsched.httpx_hooks(proxy)
    transport = httpx.MockTransport(answer)
    with httpx.Client(transport=transport, event_hooks=hooks) as client, agentsched.program(id="p"):
        assert client.get(asked).text == "p"


@pytest.mark.parametrize(
    ("proxy", "led_to", "is_told"),
    [
        ("http://proxy:8900", "http://elsewhere:8900/v1", False),
        ("http://proxy:8900", "https://proxy/v1", False),
        ("http://proxy:8900", "/v1/again", True),
        ("http://proxy", "https://proxy/v1", True),
    ],
)
def test_a_redirect_takes_nothing_of_ours_to_anybody_else(
    proxy: str, led_to: str, *, is_told: bool
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) > 2:
            return httpx.Response(200)
        return httpx.Response(307, headers={"location": led_to})

    own = {"x-agentsched-key": "k", "x-mine": "1"}
    with (
        httpx.Client(
            transport=httpx.MockTransport(answer),
            event_hooks=agentsched.httpx_hooks(proxy),
            headers=own,
            follow_redirects=True,
        ) as client,
        agentsched.program(id="p", tenant="red"),
    ):
        client.post(f"{proxy}/v1/chat/completions", json={})
        client.get("http://a-proxy-of-its-own/v1")
    ours = ("x-agentsched-program", "x-agentsched-tenant", "x-agentsched-key")
    told = [[name for name in ours if name in request.headers] for request in asked]
    assert told[:3] == [list(ours), *[list(ours) if is_told else []] * 2]
    assert told[3] == ["x-agentsched-key"]  # which its user put there
    assert all(request.headers["x-mine"] == "1" for request in asked)


async def test_a_programs_name_in_any_script(turns: Turns) -> None:
    async with agentsched.async_openai() as client, agentsched.program(id="gr\u00f6\u00dfe/\u6771"):
        with agentsched.tool_call("bash"):
            await client.chat.completions.create(model="sim", messages=ASK, max_tokens=4)
        assert await flushed()
    assert await flushed()
    arrived, *_ = [e for e in turns.events if isinstance(e, StepArrived)]
    finished = [e.program for e in turns.events if isinstance(e, ToolFinished | ProgramClosed)]
    assert finished == [arrived.program] * 2


async def test_async_hooks() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=request.headers.get("x-agentsched-program", ""))

    hooks = agentsched.async_httpx_hooks("http://proxy:8900/v1")
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, event_hooks=hooks) as client:
        with agentsched.program(id="p"):
            assert (await client.get("http://proxy:8900/v1")).text == "p"


def test_headers_for_any_library() -> None:
    with agentsched.program(id="p"):
        assert agentsched.with_headers({"x-mine": "1"}) == {
            "x-agentsched-program": "p",
            "x-mine": "1",
        }


@pytest.mark.parametrize(
    "sent",
    [
        {"x-agentsched-key": "ours", "authorization": "Bearer an-engine's"},
        {"x-api-key": "another"},
        {"authorization": "Bearer another", "x-agentsched-tenant": "red"},
    ],
    ids=["our own header", "a key in the other header", "a tenant of the client's own"],
)
def test_reports_say_whose_they_are_as_the_calls_did(inbox: Any, sent: dict[str, str]) -> None:
    agentsched.configure(inbox.url, api_key="the settings'", tenant="blue")
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    hooks = agentsched.httpx_hooks()
    with (
        httpx.Client(transport=transport, headers=sent, event_hooks=hooks) as client,
        agentsched.program(id="p"),
    ):
        client.post(f"{inbox.url}/v1/chat/completions")
    told = inbox.posts.get(timeout=60)[1]
    whose = ("x-agentsched-key", "authorization", "x-api-key", "x-agentsched-tenant")
    said = {name: told[name] for name in whose if name in told}
    assert said == {"x-agentsched-tenant": "blue"} | sent


def test_a_sub_program_of_another_tenant_is_not_its_parents(inbox: Any) -> None:
    sent = {"authorization": "Bearer k", "x-agentsched-tenant": "red"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    hooks = agentsched.httpx_hooks()
    with (
        httpx.Client(transport=transport, headers=sent, event_hooks=hooks) as client,
        agentsched.program(id="p") as outer,
    ):
        client.post(f"{inbox.url}/v1/chat/completions")
        assert outer.sender() == sent
        with agentsched.program(id="like-it") as like:
            assert like.sender() == sent
        with agentsched.program(id="another's", tenant="blue") as other:
            assert other.sender() == sent | {"x-agentsched-tenant": "blue"}
