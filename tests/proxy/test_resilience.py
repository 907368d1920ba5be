"""What was done about faults can be read from the metrics, and adds up."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from live import eventually
from proxy_upstream import Gate, answer

from agentsched.model import MILLISECOND, between

QUICK: dict[str, Any] = {
    "breaker": {"failures": 2, "ejection": "60s", "ejection_max": "60s"},
    "profile": "fcfs",
    "policies": {"place": {"name": "round-robin"}},
}
KEY = {"idempotency-key": "k1"}
CLAUDE = {"x-claude-code-session-id": "s1", "x-stainless-retry-count": "0"}

#: Whoever names threads by our own headers may want several answers to one prompt.
THREAD = {"x-agentsched-program": "p", "x-agentsched-conversation": "c"}


async def read(proxy: Any) -> dict[str, float]:
    """All samples of the scrape, by name and labels as they are written."""
    text = (await proxy.client.get("/metrics")).text
    found = re.findall(r"^agentsched_(\S+?(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def broken(exchange: Any) -> None:
    await exchange.json({"error": {"message": "no", "code": 500}}, 500)


async def cut(exchange: Any) -> None:
    exchange.cut()


async def test_before_anything_happened_all_is_there_and_nothing(start: Any, upstream: Any) -> None:
    async with start(upstream.url) as proxy:
        seen = await read(proxy)
    assert seen['breaker_open{engine="e0"}'] == 0
    assert seen['breaker_failures_total{engine="e0"}'] == 0
    assert seen['breaker_ejections_total{engine="e0",outcome="ejected"}'] == 0
    assert seen["retry_budget_tokens"] == 256
    assert seen['retry_budget_requests_total{outcome="refused"}'] == 0
    assert seen['client_retries_total{outcome="gave_way"}'] == 0
    assert seen["idempotency_answers"] == seen["idempotency_bytes"] == 0


async def test_tasks_of_the_loop_are_counted(proxy: Any, upstream: Any) -> None:
    before = (await read(proxy))["tasks"]
    gate = upstream.script = Gate()
    asked = [asyncio.create_task(proxy.chat(f"program {n}")) for n in range(5)]
    await gate.begun.wait()
    during = (await read(proxy))["tasks"]
    assert during >= before + len(asked)
    gate.open.set()
    await asyncio.gather(*asked)


async def test_an_ejection_is_counted_and_shown_while_it_lasts(
    start: Any, upstream: Any, second: Any
) -> None:
    upstream.script = broken
    async with start(upstream.url, second.url, **QUICK) as proxy:
        for number in range(6):
            await proxy.chat(f"program {number}")
        seen = await read(proxy)
        assert seen['breaker_open{engine="e0"}'] == 1
        assert seen['breaker_open{engine="e1"}'] == 0
        assert seen['breaker_failures_total{engine="e0"}'] == len(upstream.exchanges) == 2
        assert seen['breaker_failures_in_a_row{engine="e0"}'] == 0  # forgotten as it opened
        assert seen['breaker_ejections_total{engine="e0",outcome="ejected"}'] == 1
        proxy.gateway.fleet.health.drained("e0", is_draining=False)
        seen = await read(proxy)
        assert seen['breaker_open{engine="e0"}'] == 0
        assert seen['breaker_ejections_total{engine="e0",outcome="ejected"}'] == 1


async def test_an_ejection_that_may_not_be_is_told_apart(start: Any, upstream: Any) -> None:
    upstream.script = broken
    async with start(upstream.url, **QUICK) as proxy:
        for number in range(4):
            await proxy.chat(f"program {number}")
        seen = await read(proxy)
    assert seen['breaker_open{engine="e0"}'] == 0
    assert seen['breaker_failures_in_a_row{engine="e0"}'] == 4
    assert seen['breaker_ejections_total{engine="e0",outcome="ejected"}'] == 0
    # The second was reason enough, and so was each after it.
    assert seen['breaker_ejections_total{engine="e0",outcome="withheld"}'] == 3


async def test_the_budget_shows_what_it_gave_and_refused(
    start: Any, upstream: Any, second: Any
) -> None:
    upstream.script = second.script = cut
    settings = QUICK | {"retries": {"share": 0.0, "burst": 1}, "breaker": {"is_on": False}}
    async with start(upstream.url, second.url, **settings) as proxy:
        await proxy.chat("hi")
        seen = await read(proxy)
    assert seen["retry_budget_tokens"] == 0
    assert seen['retry_budget_requests_total{outcome="granted"}'] == 1
    assert seen['retry_budget_requests_total{outcome="refused"}'] == 1


async def test_a_no_that_nobody_else_is_asked_about_for_want_of_budget_is_counted(
    start: Any, upstream: Any, second: Any
) -> None:
    async def busy(exchange: Any) -> None:
        await exchange.json({"error": {"message": "starting", "code": 503}}, 503)

    upstream.script = second.script = busy
    settings = QUICK | {"retries": {"share": 0.0, "burst": 0}, "breaker": {"is_on": False}}
    async with start(upstream.url, second.url, **settings) as proxy:
        assert (await proxy.chat("hi")).status_code == 503
        seen = await read(proxy)
    assert seen['retry_budget_requests_total{outcome="granted"}'] == 0
    assert seen['retry_budget_requests_total{outcome="refused"}'] == 1


async def test_requests_that_say_which_they_are_are_counted_by_outcome(
    proxy: Any, upstream: Any
) -> None:
    gate = upstream.script = Gate(is_stream=False)
    first = asyncio.create_task(proxy.chat(headers=KEY))
    await gate.begun.wait()
    second = asyncio.create_task(proxy.chat(headers=KEY))
    await eventually(lambda: proxy.gateway.shared.joined_total == 1)
    gate.open.set()
    one, _ = await asyncio.gather(first, second)
    await proxy.chat(headers=KEY)
    await proxy.chat("something else", headers=KEY)
    seen = await read(proxy)
    names = ("begun", "joined", "kept", "conflict")
    outcomes = [seen[f'idempotency_requests_total{{outcome="{name}"}}'] for name in names]
    assert outcomes == [1, 1, 1, 1]
    assert seen["idempotency_answers"] == 1
    assert seen["idempotency_bytes"] >= len(one.content)


async def test_turns_that_come_again_are_counted_by_what_became_of_the_first(
    proxy: Any, upstream: Any
) -> None:
    async def outcomes() -> list[float]:
        seen = await read(proxy)
        names = ("gave_way", "went_on", "ended")
        return [seen[f'client_retries_total{{outcome="{name}"}}'] for name in names]

    upstream.script = broken
    await proxy.chat(headers=CLAUDE)
    gate = upstream.script = Gate()
    again = asyncio.create_task(proxy.chat(headers=CLAUDE))
    await gate.begun.wait()
    assert await outcomes() == [0, 0, 1]
    upstream.script = answer
    assert (await proxy.chat(headers=CLAUDE)).status_code == 200
    await again
    assert await outcomes() == [1, 0, 1]
    gate = upstream.script = Gate()
    several = asyncio.create_task(proxy.chat(headers=THREAD))
    await gate.begun.wait()
    begun = proxy.gateway.host.now()
    # Equal prompts at once are samples of one; those that come later are retries.
    await eventually(lambda: between(begun, proxy.gateway.host.now()) > 200 * MILLISECOND)
    upstream.script = answer
    assert (await proxy.chat(headers=THREAD)).status_code == 200
    assert await outcomes() == [1, 1, 1]
    gate.open.set()
    assert (await several).status_code == 200


class TestBodies:
    async def test_all_together_have_a_limit(self, start: Any, upstream: Any) -> None:
        """Requests that wait hold their bodies: a few long ones could fill the memory."""
        small = {"body_bytes_max": 4_000, "bodies_bytes_max": 8_000}
        async with start(upstream.url, http=small) as proxy:
            gate = upstream.script = Gate()
            asked = [asyncio.create_task(proxy.chat(f"{n}" + "x" * 3_000)) for n in range(2)]
            await eventually(lambda: len(upstream.exchanges) == 2)
            held = (await read(proxy))["bodies_bytes"]
            assert 6_000 < held < 8_000
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                refused = await proxy.client.post(path, content=b'{"x": "%s"}' % (b"y" * 3_000))
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "bodies_full"
                assert refused.headers["retry-after"] == "1"
            seen = await read(proxy)
            assert (seen["bodies_bytes"], seen["bodies_refused_total"]) == (held, 2)
            gate.open.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]
            assert (await proxy.chat("x" * 3_000)).status_code == 200
            assert (await read(proxy))["bodies_bytes"] == 0

    async def test_what_is_promised_takes_no_room(self, start: Any, upstream: Any) -> None:
        small = {"body_bytes_max": 4_000, "bodies_bytes_max": 8_000}
        async with start(upstream.url, http=small) as proxy:
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n"
            slow = [await proxy.raw(head + b"{") for _ in range(5)]
            await eventually(lambda: proxy.gateway.bodies.held == 5)
            assert (await proxy.chat("x" * 3_000)).status_code == 200
            for _, writer in slow:
                writer.transport.abort()
            await eventually(lambda: proxy.gateway.bodies.held == 0)

    async def test_a_body_that_breaks_off_is_let_go(self, start: Any, upstream: Any) -> None:
        async with start(upstream.url, http={"body_timeout": "50ms"}) as proxy:
            for framing in (b"Content-Length: 9", b"Content-Encoding: gzip\r\nContent-Length: 9"):
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + framing
                reader, writer = await proxy.raw(head + b"\r\n\r\n{")
                async with asyncio.timeout(60):
                    assert b" 4" in (await reader.readuntil(b"}}"))[:12]
                writer.close()
            assert (await proxy.chat()).status_code == 200
            await eventually(lambda: proxy.gateway.bodies.held == 0)
