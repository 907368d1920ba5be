"""Bodies and headers of real clients reach the engine as they were sent."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from proxy_upstream import MESSAGE, Exchange, Upstream

CAPTURES = Path(__file__).parents[3] / "shared/clients/claude-code.jsonl.gz"
#: What the proxy writes itself, and what belongs to a connection.
NOT_COMPARED = {"host", "content-length", "connection", "accept-encoding", "x-request-id"}
MADE: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": []},
        {"role": "user", "content": [{"type": "text", "text": "ü", "cache_control": {"t": 1}}]},
        {"role": "assistant", "content": "a \n"},
        {"role": "system", "content": "late", "output_config": {"effort": "high"}},
        {"role": "user", "content": ""},
    ],
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "max_tokens": 5,
    "context_management": {"edits": []},
    "unheard-of": {"deep": [None, 1e2, {"role": "system"}]},
}
BETA = "interleaved-thinking-2099-01-01,what-nobody-knows"


async def _message(exchange: Exchange) -> None:
    await exchange.json(MESSAGE)


@pytest.mark.parametrize("indent", [None, 3])
async def test_a_made_body(proxy: Any, upstream: Upstream, indent: int | None) -> None:
    upstream.script = _message
    body = json.dumps(MADE, ensure_ascii=False, indent=indent).encode() + b"\n"
    sent = {"anthropic-beta": BETA, "anthropic-version": "2026-10-21", "X-Unknown": "1"}
    response = await proxy.client.post("/v1/messages?beta=true", content=body, headers=sent)
    assert response.status_code == 200
    seen = await upstream.exchange()
    assert (seen.target, seen.body) == ("/v1/messages?beta=true", body)
    assert sent.items() <= dict(seen.pairs).items()


@pytest.mark.traces
@pytest.mark.skipif(not CAPTURES.exists(), reason="needs the recorded clients in ../shared")
async def test_what_claude_code_sent(start: Any, upstream: Upstream) -> None:
    upstream.script = _message
    requests = list(_unusual())
    assert {kind for kind, _ in requests} == {"late system", "empty content", "plain"}
    upstream.models = sorted({record["body"]["model"] for _, record in requests})
    async with start(upstream.url) as proxy:
        for number, (_, record) in enumerate(requests):
            await _passes(proxy, upstream, number, record)


async def _passes(proxy: Any, upstream: Upstream, number: int, record: dict[str, Any]) -> None:
    body = json.dumps(record["body"], ensure_ascii=False).encode()
    # The length of a text that was replaced in the recording is no longer right.
    pairs = [(k, v) for k, v in record["headers"] if k.lower() != "content-length"]
    response = await proxy.client.post(record["path"], content=body, headers=pairs)
    assert response.status_code == 200
    seen = await upstream.exchange(number)
    assert (seen.target, seen.body) == (record["path"], body)
    got = {name.lower(): value for name, value in seen.pairs}
    sent = {name.lower(): value for name, value in pairs}
    assert "anthropic-beta" in sent
    assert {k: v for k, v in sent.items() if k not in NOT_COMPARED}.items() <= got.items()


def _unusual() -> Any:
    """A few of the recorded requests, with their kinds."""
    left = {"late system": 3, "empty content": 3, "plain": 3}
    with gzip.open(CAPTURES, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            body = record.get("body")
            if record.get("method") != "POST" or "count_tokens" in record["path"]:
                continue
            if not isinstance(body, dict) or "messages" not in body:
                continue
            kind = _kind(body["messages"])
            if left[kind]:
                left[kind] -= 1
                yield kind, record


def _kind(messages: list[dict[str, Any]]) -> str:
    if any(message.get("content") == [] for message in messages):
        return "empty content"
    return "late system" if any(m["role"] == "system" for m in messages) else "plain"
