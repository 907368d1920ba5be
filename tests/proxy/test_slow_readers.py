"""Who reads slowly while this proxy is about to end."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy_rig import chat
from proxy_upstream import Exchange, Upstream

from agentsched.model import StepFinished
from agentsched.proxy.serve import drain

#: More than what lies in the buffers of two connections.
TEXT = b"a" * (24 << 20)
SAID = b'{"choices":[{"index":0,"message":{"content":"%s"},"finish_reason":"stop"}]}' % TEXT


async def test_they_are_waited_for(start: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(200, SAID, content_type="application/json")

    upstream.script = script
    async with start(upstream.url, http={"drain_notice": "10ms"}) as proxy:
        body = chat()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        reader, writer = await proxy.raw(head.encode() + body)
        await proxy.turns.until(lambda: bool(proxy.turns.events(StepFinished)))
        draining = asyncio.create_task(drain(proxy.gateway))
        ended, _ = await asyncio.wait({draining}, timeout=0.09)
        async with asyncio.timeout(60):
            assert (await reader.read()).endswith(SAID)
            await draining
        writer.close()
        assert not ended
