"""The affinity cookie on the wire."""

from __future__ import annotations

from typing import Any

from proxy_upstream import MODEL, Exchange, Upstream

CODEX = {"session-id": "s1", "thread-id": "t1", "originator": "codex_exec"}
NAME = "x-codex-turn-state"


async def test_codex_gets_a_cookie_and_is_known_by_it(proxy: Any) -> None:
    first = await proxy.chat(headers=CODEX)
    cookie = first.headers[NAME]
    later = await proxy.chat("something else", headers={NAME: cookie})
    assert later.headers["x-agentsched-conversation"] == first.headers["x-agentsched-conversation"]
    assert NAME not in later.headers


async def test_an_engines_own_cookie_comes_first(proxy: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.json({"model": MODEL, "choices": []}, **{NAME.replace("-", "_"): "theirs"})

    upstream.script = script
    answered = await proxy.chat(headers=CODEX)
    assert answered.headers.get_list(NAME) == ["theirs"]
