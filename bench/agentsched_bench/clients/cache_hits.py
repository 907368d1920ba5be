"""What the proxy expects an engine's cache to hold for each recorded client, against what it held.

The recorded requests go through a proxy to the embedded engine, which gives the recorded answers.
Before each, the proxy is asked (`plan`) how many tokens of the prompt the engine will have to
compute; the engine's usage says afterwards how many it did. Tool-call ids are the engine's own, so
those in later requests are replaced; all else goes as it was recorded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import ClientSession, ClientTimeout

from agentsched.proxy.answer import Answer
from agentsched.proxy.answers import read_answer
from agentsched_bench.clients.readers import Recorded, parse, read_client
from agentsched_bench.live.processes import running

_ENGINE: Final = (
    *("--preset", "h100-8b", "--speed", "1000", "--blocks", "60000"),
    *("--max-model-len", "400000"),
)
#: Keys too: each would be a tenant of its own, and what is meant is one.
_LEFT_OUT: Final = (
    *("accept-encoding", "connection", "content-length", "host"),
    *("authorization", "x-api-key"),
)


class Hits(msgspec.Struct):
    """One client's sums over its steps that go on, in the engine's tokens.

    `computed` had to be computed, `expected` the proxy thought would have to be; `off` sums the
    differences without their signs. `behind_prompt` are the steps of which the engine had more than
    the prompt of the step before, so the answer too.
    """

    client: str
    steps: int = 0
    prompt: int = 0
    computed: int = 0
    expected: int = 0
    off: int = 0
    behind_prompt: int = 0


async def measure(files: Sequence[Path]) -> list[Hits]:
    """Some clients' files, each through a proxy and an engine of its own."""
    found = []
    for path in files:
        requests = [r for r in read_client(path) if r.answer is not None and r.body]
        async with _served() as (url, http):
            found.append(await _client(requests, url, http))
    return found


@contextlib.asynccontextmanager
async def _served() -> AsyncIterator[tuple[str, ClientSession]]:
    async with contextlib.AsyncExitStack() as stack:
        start = stack.enter_async_context
        engine = await start(running("engine", "sim", "--port", "0", *_ENGINE, name="the engine"))
        serve = ("serve", "--port", "0", "--engine", engine.url)
        proxy = await start(running(*serve, name="the proxy"))
        http = await start(ClientSession(timeout=ClientTimeout(total=60)))
        yield proxy.url, http


async def _client(requests: Sequence[Recorded], url: str, http: ClientSession) -> Hits:
    hits = Hits(client=requests[0].client if requests else "")
    names: dict[str, str] = {}
    #: The prompt's tokens of each conversation's last step.
    last: dict[tuple[str, str], int] = {}
    for request in requests:
        parsed = request.parsed(with_ids=True)
        if not parsed.dialect.is_generation or request.answer is None:
            continue
        body = _body(request, names)
        headers = {k: v for k, v in request.headers.items() if k not in _LEFT_OUT}
        async with http.post(
            f"{url}/agentsched/v1/plan{request.path}", data=body, headers=headers
        ) as plan:
            planned = await plan.json()
        headers["x-sim-answer"] = _scripted(request.answer)
        async with http.post(url + request.path, data=body, headers=headers) as answer:
            if answer.status != 200:
                continue
            told = read_answer(parse(request.path, body).dialect, await answer.read())
        for ours, theirs in zip(request.answer.calls, told.calls, strict=False):
            names[ours.call_id] = theirs.call_id
        key = (request.truth.program, request.truth.conversation)
        if told.usage is None:
            continue
        if key in last and request.truth.step_class.is_work:
            _count(hits, planned, told, last[key])
        last[key] = told.usage.prompt_tokens
    return hits


def _count(hits: Hits, planned: dict[str, list[dict[str, int]]], told: Answer, before: int) -> None:
    assert told.usage is not None
    cached = told.usage.cached_tokens or 0
    computed = told.usage.prompt_tokens - cached
    expected = planned["engines"][0]["missing_tokens"]
    hits.steps += 1
    hits.prompt += told.usage.prompt_tokens
    hits.computed += computed
    hits.expected += expected
    hits.off += abs(computed - expected)
    hits.behind_prompt += cached > before


def _body(request: Recorded, names: dict[str, str]) -> bytes:
    text = json.dumps({**request.body, "stream": False, "model": "sim"})
    for ours, theirs in names.items():
        text = text.replace(ours, theirs)
    fields = json.loads(text)
    fields.pop("stream_options", None)
    return json.dumps(fields).encode()


def _scripted(answer: Answer) -> str:
    calls = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
    return json.dumps({"text": answer.text, "tool_calls": calls})
