"""A real OTLP/HTTP receiver, and a real proxy in front of a real embedded engine to watch."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agentsched.config import Config
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.playback import Playback, Script, ScriptedAnswer, ScriptedCall
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine

SECRET = "sk-very-secret-0123456789abcdef"
PROMPT = "fix the frobnicator, quietly"
ANSWER = "I looked at the frobnicator."


@dataclass
class Receiver:
    """What came over OTLP, decoded; `status` is what it answers."""

    url: str = ""
    status: int = 200
    spans: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    resources: list[dict[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bytes_total: bytes = b""
    requests: int = 0
    #: While clear, requests are left without an answer.
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def traces(self, request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest()
        if (refused := await self._take(request, sent)) is not None:
            return refused
        for group in sent.resource_spans:
            self.resources.append(attributes(group.resource.attributes))
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return await self._changed()

    async def take_metrics(self, request: web.Request) -> web.Response:
        sent = ExportMetricsServiceRequest()
        if (refused := await self._take(request, sent)) is not None:
            return refused
        for group in sent.resource_metrics:
            for scope in group.scope_metrics:
                self.metrics |= {metric.name: metric for metric in scope.metrics}
        return await self._changed()

    async def _take(self, request: web.Request, message: Any) -> web.Response | None:
        body = await request.read()  # decompressed by the server
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        self.requests += 1
        await self.answers.wait()
        if self.status != 200:
            await self._changed()
            return web.Response(status=self.status)
        self.bytes_total += body
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        message.ParseFromString(body)
        return None

    async def _changed(self) -> web.Response:
        async with self.changed:
            self.changed.notify_all()
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what came makes this true."""
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)

    def named(self, start: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(start)]


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes by name, as plain values."""
    found = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind) if kind else None
        if kind == "array_value":
            value = [v.string_value for v in value.values]
        found[pair.key] = value
    return found


@pytest.fixture
def said() -> Callable[[Any], dict[str, Any]]:
    """The attributes of a received span."""
    return lambda span: attributes(span.attributes)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """An OTLP/HTTP receiver on a port of its own."""
    made = Receiver()
    made.answers.set()
    app = web.Application()
    app.router.add_post("/v1/traces", made.traces)
    app.router.add_post("/v1/metrics", made.take_metrics)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    made.url = f"http://127.0.0.1:{port}"
    yield made
    made.answers.set()
    await runner.cleanup()


@dataclass
class Watched:
    """A running proxy, and an agent that uses it."""

    gateway: Gateway
    url: str
    client: httpx.AsyncClient

    async def ask(self, messages: list[Any], **headers: str) -> httpx.Response:
        """One call of the agent."""
        tool = {"type": "function", "function": {"name": "bash", "parameters": {}}}
        body = {"model": "sim", "messages": messages, "tools": [tool], "max_tokens": 20}
        return await self.client.post(
            "/v1/chat/completions",
            content=json.dumps(body),
            headers={"authorization": f"Bearer {SECRET}"}
            | {k.replace("_", "-"): v for k, v in headers.items()},
        )

    async def run_agent(self, **headers: str) -> list[httpx.Response]:
        """Two calls with a tool between them; the second says the last word."""
        messages: list[Any] = [{"role": "user", "content": PROMPT}]
        first = await self.ask(messages, **headers)
        answer = first.json()["choices"][0]["message"]
        call = answer["tool_calls"][0]["id"]
        messages += [answer, {"role": "tool", "tool_call_id": call, "content": "two files"}]
        return [first, await self.ask(messages, **headers)]

    async def metrics(self) -> str:
        """A scrape."""
        return (await self.client.get("/metrics")).text


Watch = Callable[..., AbstractAsyncContextManager[Watched]]


@contextlib.asynccontextmanager
async def watched(**settings: Any) -> AsyncIterator[Watched]:
    """A proxy with these settings in front of an engine that asks for a tool, then says done."""
    look = ScriptedAnswer(
        text=ANSWER, tool_calls=(ScriptedCall(name="bash", arguments={"command": "ls -l"}),)
    )
    script = Script(answers=(look, ScriptedAnswer(text="Done.", finish="stop")))
    engine_config = ServerConfig(
        engine=EngineConfig.from_preset(preset("cpu-2core")),
        models=("sim",),
        speed=1_000.0,
        playback=Playback((script,)),
    )
    async with running_engine(engine_config) as engine:
        config = Config(
            **{
                "port": 0,
                "engines": [{"url": engine.url, "id": "e0", "kind": "vllm"}],
                "upstream": {"probe_interval": "100ms"},
            }
            | settings
        )
        async with (
            running(config) as (gateway, url),
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            yield Watched(gateway, url, client)


@pytest.fixture
def watch() -> Watch:
    return watched
