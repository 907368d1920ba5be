"""A stream ends with what it was opened with: a key that is taken away, a session that is over."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from agentsched.config import Config

BASE = "/agentsched/v1"


def take_away(proxy: Any, key: Any) -> None:
    """As a reload does whose file has this key no more."""
    config = proxy.gateway.config
    left = tuple(k for k in config.auth.keys if k.id != key.id)
    auth = config.auth.model_copy(update={"keys": left})
    proxy.gateway.follow(config.model_copy(update={"auth": auth}))


async def rest_of(lines: Any) -> list[str]:
    """What comes until the stream ends."""
    async with asyncio.timeout(60):
        return [line async for line in lines]


async def chat(proxy: Any, key: Any, program: str) -> None:
    headers = key.headers | {"x-agentsched-program": program}
    assert (await proxy.chat(headers=headers)).status_code == 200


class TestAKeyThatIsTakenAway:
    @pytest.fixture
    def proxy(self, keyed: Any) -> Any:
        return keyed

    async def test_ends_the_feed(self, proxy: Any, keys: Any) -> None:
        reader = keys.red_read.headers
        async with proxy.client.stream("GET", f"{BASE}/feed", headers=reader) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == "event: frame"
            take_away(proxy, keys.red_read)
            await chat(proxy, keys.red, "later")
            assert "later" not in "".join(await rest_of(lines))

    async def test_ends_the_stream_of_decisions(self, proxy: Any, keys: Any) -> None:
        reader = keys.red_read.headers
        async with proxy.client.stream("GET", f"{BASE}/decisions", headers=reader) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == ": watching"
            await chat(proxy, keys.red, "before")
            assert await anext(lines) == ""
            assert await anext(lines) == "event: turn"
            take_away(proxy, keys.red_read)
            await chat(proxy, keys.red, "later")
            assert "later" not in "".join(await rest_of(lines))

    async def test_ends_no_other(self, proxy: Any, keys: Any) -> None:
        reader = keys.red.headers
        async with proxy.client.stream("GET", f"{BASE}/decisions", headers=reader) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == ": watching"
            take_away(proxy, keys.red_read)
            await chat(proxy, keys.red, "later")
            async with asyncio.timeout(60):
                while "later" not in await anext(lines):
                    pass


@pytest.mark.parametrize("path", ["feed", "decisions"])
async def test_another_admin_key_ends_what_the_old_one_opened(
    start: Any, upstream: Any, path: str
) -> None:
    async with start(upstream.url, admin_key="the old one") as proxy:
        headers = {"Authorization": "Bearer the old one"}
        async with proxy.client.stream("GET", f"{BASE}/{path}", headers=headers) as response:
            lines = response.aiter_lines()
            assert await anext(lines) in ("event: frame", ": watching")
            config = proxy.gateway.config
            new = Config(engines=config.engines, admin_key="another one").admin_key
            proxy.gateway.follow(config.model_copy(update={"admin_key": new}))
            assert (await proxy.chat()).status_code == 200  # there is something to be told
            await rest_of(lines)


@pytest.mark.parametrize("is_over", [True, False])
async def test_a_session_ends_its_feed(keyed: Any, keys: Any, is_over: bool) -> None:
    """In time, and where somebody logged out."""
    login = await keyed.client.post(f"{BASE}/session", json={"key": keys.red_read.token})
    assert login.status_code == 200
    async with keyed.client.stream("GET", f"{BASE}/feed") as response:
        lines = response.aiter_lines()
        assert await anext(lines) == "event: frame"
        if is_over:
            until = keyed.gateway.config.auth.session_timeout / 1e9
            real = keyed.gateway.gate._now
            keyed.gateway.gate._now = lambda: real() + until
        else:
            csrf = {"x-agentsched-csrf": login.json()["csrf"]}
            assert (await keyed.client.delete(f"{BASE}/session", headers=csrf)).status_code == 200
        await rest_of(lines)


@pytest.mark.parametrize("path", ["feed", "decisions"])
async def test_no_tenant_watches_in_everybodys_place(
    keyed: Any, keys: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.dashboard.board._WATCHERS_MAX", 8)
    monkeypatch.setattr("agentsched.proxy.decisions._WATCHERS_MAX", 8)
    async with contextlib.AsyncExitStack() as stack:

        async def opened(key: Any, times: int) -> list[int]:
            streams = [
                keyed.client.stream("GET", f"{BASE}/{path}", headers=key.headers)
                for _ in range(times)
            ]
            return [(await stack.enter_async_context(s)).status_code for s in streams]

        assert await opened(keys.red_read, 3) == [200, 200, 503]
        assert await opened(keys.blue, 3) == [200, 200, 503]
        assert await opened(keys.admin, 5) == [200] * 4 + [503]
