"""A key that is taken away ends what runs for it, in words; one whose time is over ends nothing."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from live import eventually
from openai import APIError, AsyncOpenAI, AuthenticationError
from proxy_rig import chat
from proxy_upstream import Gate, Upstream, answer, chunk

from agentsched.config import Config
from agentsched.model import StepArrived, StepCancelled, StepFailed, StepFinished
from agentsched.proxy.access.keys import KeyRing, from_config, hash_key, new_key
from agentsched.proxy.access.stored import StoredKeys
from agentsched.store.database import Database, read_url
from agentsched.store.keys import StoredKey, add_key, replace_key, revoke_key
from agentsched.store.migrate import upgrade

ENDED = {
    "message": "The API key was revoked while this request was under way.",
    "type": "authentication_error",
    "param": None,
    "code": "invalid_api_key",
}


def take_away(proxy: Any, key: Any, **changes: Any) -> None:
    """As a reload does whose file has this key no more, or with other rights."""
    config = proxy.gateway.config
    left = [k for k in config.auth.keys if k.id != key.id]
    if changes:
        old = next(k for k in config.auth.keys if k.id == key.id)
        left.append(old.model_copy(update=changes))
    auth = config.auth.model_copy(update={"keys": tuple(left)})
    proxy.gateway.follow(config.model_copy(update={"auth": auth}))


def asked(proxy: Any, key: Any, *, stream: bool = False, **headers: str) -> asyncio.Task[Any]:
    return asyncio.create_task(proxy.chat(headers=key.headers | headers, stream=stream))


class TestWhatRuns:
    @pytest.fixture
    def proxy(self, keyed: Any) -> Any:
        return keyed

    @pytest.mark.parametrize("named", [{}, {"Idempotency-Key": "turn-1"}])
    async def test_a_whole_answer_is_a_401_and_its_engine_stops(
        self, proxy: Any, keys: Any, upstream: Upstream, named: dict[str, str]
    ) -> None:
        upstream.script = Gate()
        call = asked(proxy, keys.red, **named)
        exchange = await upstream.exchange()
        take_away(proxy, keys.red)
        response = await call
        assert (response.status_code, response.json()["error"]) == (401, ENDED)
        await exchange.until_gone()

    @pytest.mark.parametrize("named", [{}, {"x-request-id": "of-the-balancer"}])
    async def test_a_stream_ends_with_an_error_after_whole_events(
        self, proxy: Any, keys: Any, upstream: Upstream, named: dict[str, str]
    ) -> None:
        # An event and a half: an error behind the half could not be read.
        upstream.script = Gate(chunk("hel"), chunk("lo")[:9])
        headers = keys.red.headers | named
        body = chat(stream=True)
        async with proxy.client.stream(
            "POST", "/v1/chat/completions", content=body, headers=headers
        ) as response:
            lines = response.aiter_lines()
            assert "hel" in await anext(lines)
            take_away(proxy, keys.red)
            rest = [line async for line in lines if line]
        assert [json.loads(line.removeprefix("data: ")) for line in rest] == [
            {"error": ENDED | {"code": 401}}
        ]
        await (await upstream.exchange()).until_gone()
        assert proxy.turns.events(StepFinished) == []

    async def test_what_waits_is_not_begun(
        self, start_keyed: Any, keys: Any, upstream: Upstream
    ) -> None:
        gate = upstream.script = Gate()
        limits = {"running_steps_per_engine_max": 1}
        async with start_keyed(upstream.url, profile="fcfs", limits=limits) as proxy:
            first = asked(proxy, keys.blue)
            await upstream.exchange()
            held = asked(proxy, keys.red)
            await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 1)
            take_away(proxy, keys.red)
            assert (await held).status_code == 401
            (ended,) = proxy.turns.events(StepCancelled)
            assert ended.reason == "its API key was revoked"
            gate.open.set()
            assert (await first).status_code == 200
        assert len(upstream.exchanges) == 1

    async def test_other_keys_of_its_tenant_go_on(
        self, start_keyed: Any, keys: Any, upstream: Upstream
    ) -> None:
        """Also one that sends the same request under the same name: its key is another."""
        gate = upstream.script = Gate()
        async with start_keyed(upstream.url) as proxy:
            same = {"Idempotency-Key": "turn-1"}
            one, two = asked(proxy, keys.red, **same), asked(proxy, keys.red_data, **same)
            await upstream.exchange(1)
            take_away(proxy, keys.red)
            assert (await one).status_code == 401
            gate.open.set()
            assert (await two).status_code == 200

    async def test_a_key_that_may_less_ends_and_one_that_is_renamed_does_not(
        self, proxy: Any, keys: Any, upstream: Upstream
    ) -> None:
        gate = upstream.script = Gate()
        red, blue = asked(proxy, keys.red), asked(proxy, keys.blue)
        await upstream.exchange(1)
        take_away(proxy, keys.blue, name="for the night", scopes=("data", "read", "metrics"))
        take_away(proxy, keys.red, scopes=("read",))
        assert (await red).status_code == 401
        gate.open.set()
        assert (await blue).status_code == 200

    @pytest.mark.parametrize("begun", [False, True])
    async def test_what_is_relayed_beside_the_scheduler_ends(
        self, proxy: Any, keys: Any, upstream: Upstream, begun: bool
    ) -> None:
        gate = Gate(b"half") if begun else Gate()
        upstream.script = gate
        call = proxy.client.stream(
            "POST", "/v1/embeddings", json={"model": "m", "input": "x"}, headers=keys.red.headers
        )
        if begun:
            async with call as response:
                parts = response.aiter_raw()
                assert b"half" in await anext(parts)
                take_away(proxy, keys.red)
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(parts)
        else:

            async def whole() -> httpx.Response:
                async with call as response:
                    await response.aread()
                    return response

            waiting = asyncio.create_task(whole())
            await upstream.exchange()
            take_away(proxy, keys.red)
            response = await waiting
            assert (response.status_code, response.json()["error"]) == (401, ENDED)
        await (await upstream.exchange()).until_gone()
        assert proxy.gateway.relays == set()

    async def test_a_body_that_still_comes_is_not_begun(
        self, proxy: Any, keys: Any, upstream: Upstream
    ) -> None:
        body = chat()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {keys.red.token}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        reader, writer = await proxy.raw(head.encode() + body[:5])
        await eventually(lambda: proxy.gateway.arriving == 1)
        take_away(proxy, keys.red)
        writer.write(body[5:])
        async with asyncio.timeout(60):
            answered = await reader.read()
        writer.close()
        assert answered.startswith(b"HTTP/1.1 401 ")
        assert upstream.exchanges == []
        assert proxy.turns.events(StepArrived) == []

    async def test_the_log_says_how_many_and_never_the_key(
        self, proxy: Any, keys: Any, upstream: Upstream, caplog: pytest.LogCaptureFixture
    ) -> None:
        upstream.script = Gate()
        calls = [asked(proxy, keys.red), asked(proxy, keys.red)]
        await upstream.exchange(1)
        take_away(proxy, keys.red)
        assert [(await call).status_code for call in calls] == [401, 401]
        said = [text for text in caplog.messages if "revoked" in text]
        assert said == [
            f"2 requests under way end, for their keys were revoked: {keys.red.id}",
        ]
        # The engine did nothing wrong.
        assert proxy.gateway.fleet.health.told("e0").failures_total == 0
        assert [e.is_retryable for e in proxy.turns.events(StepFailed)] == [False, False]

    async def test_official_clients_take_it_for_what_it_is(
        self, proxy: Any, keys: Any, upstream: Upstream
    ) -> None:
        """They ask no second time, and do not take half an answer for a whole one."""
        upstream.script = Gate(chunk("hel"))
        client = AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key=keys.red.token)
        messages: Any = [{"role": "user", "content": "hi"}]
        async with client:
            parts = await client.chat.completions.create(model="m", messages=messages, stream=True)
            await anext(parts)
            take_away(proxy, keys.red)
            with pytest.raises(APIError, match="revoked while"):
                await anext(parts)
            upstream.script = answer
            with pytest.raises(AuthenticationError):
                await client.chat.completions.create(model="m", messages=messages)
        assert len(upstream.exchanges) == 1


class TestWhichKeys:
    """What a ring tells of when its keys change."""

    def ring(self, *, now: float = 1_000.0) -> tuple[KeyRing, list[frozenset[str]]]:
        told: list[frozenset[str]] = []
        ring = KeyRing(now=lambda: now)
        ring.on_revoked = told.append
        return ring, told

    def records(self, *keys: Any, expires: float | None = None) -> Any:
        until = None if expires is None else datetime.fromtimestamp(expires, tz=UTC)
        configs = Config(auth={"keys": [k.config | {"expires_at": until} for k in keys]}).auth.keys  # type: ignore[arg-type]
        return from_config(configs)

    def test_one_that_is_gone(self, keys: Any) -> None:
        ring, told = self.ring()
        ring.configure(self.records(keys.red, keys.blue))
        ring.configure(self.records(keys.blue))
        ring.configure({})
        assert told == [{keys.red.id}, {keys.blue.id}]

    def test_one_that_moved_into_the_store_is_not_gone(self, keys: Any) -> None:
        ring, told = self.ring()
        ring.configure(self.records(keys.red))
        ring.store(self.records(keys.red))
        ring.configure({})
        assert told == []
        ring.store({})
        assert told == [{keys.red.id}]

    def test_another_secret_under_the_same_id(self, keys: Any, new: Any) -> None:
        ring, told = self.ring()
        ring.store(self.records(keys.red))
        (record,) = self.records(keys.red).values()
        changed = from_config(())
        changed[keys.red.id] = type(record)(
            id=record.id, hash=hash_key("another"), tenant=record.tenant, scopes=record.scopes
        )
        ring.store(changed)
        assert told == [{keys.red.id}]

    @pytest.mark.parametrize(("ended_at", "is_told"), [(999.0, False), (1_001.0, True)])
    def test_one_whose_time_is_over_is_not_taken_away(
        self, keys: Any, ended_at: float, is_told: bool
    ) -> None:
        ring, told = self.ring()
        ring.store(self.records(keys.red, expires=ended_at))
        ring.store({})
        assert told == ([{keys.red.id}] if is_told else [])


class TestOfTheStore:
    async def test_revoked_is_cut_and_rotated_goes_on(
        self, start_keyed: Any, upstream: Upstream, tmp_path: Any
    ) -> None:
        """A rotation without any grace lets no new request in, and ends none that runs."""
        database = Database(read_url(f"sqlite:///{tmp_path}/keys.db"))
        await upgrade(database)
        try:
            (stolen, its_row), (old, old_row), (_, new_row) = made(), made(), made()
            for row in (its_row, old_row):
                await add_key(database, row)
            async with start_keyed(upstream.url) as proxy:
                keys = StoredKeys(proxy.gateway.gate, database, proxy.gateway.config)
                await keys.look()
                gate = upstream.script = Gate()
                cut = asyncio.create_task(proxy.chat(headers=stolen))
                rotated = asyncio.create_task(proxy.chat(headers=old))
                await upstream.exchange(1)
                now = datetime.now(UTC)
                assert await revoke_key(database, its_row.key, now=now)
                await replace_key(database, old_row.key, new_row, old_until=now)
                await keys.look()
                assert (await cut).status_code == 401
                refused = await proxy.chat(headers=old)
                assert refused.status_code == 401
                gate.open.set()
                assert (await rotated).status_code == 200
        finally:
            await database.aclose()


def made() -> tuple[dict[str, str], StoredKey]:
    key, token = new_key()
    row = StoredKey(
        key=key,
        hash=hash_key(token),
        hint=token[:8],
        name="",
        tenant="red",
        scopes=("data",),
        created_at=datetime.now(UTC) - timedelta(days=1),
    )
    return {"Authorization": f"Bearer {token}"}, row
