"""Looks at the engines while a run goes on: few enough to keep, and of all of the run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from agentsched_bench.compare import watch
from agentsched_bench.compare.watch import watching


@contextlib.asynccontextmanager
async def saying(path: str, metrics: Handler) -> AsyncIterator[str]:
    """A server that says these metrics; yields its URL."""
    app = web.Application()
    app.router.add_get(path, metrics)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_a_long_run_is_seen_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_READINGS_MAX", 8)
    looks, enough = 0, asyncio.Event()

    async def metrics(_request: web.Request) -> web.Response:
        nonlocal looks
        looks += 1
        if looks == 30:
            enough.set()
        return web.Response(text=f"vllm:num_requests_running {looks}\n")

    async with (
        saying("/metrics", metrics) as url,
        watching([url], every_s=0.0001) as seen,
        asyncio.timeout(60),
    ):
        await enough.wait()

    counts = [reading.running or 0.0 for reading in seen.readings]
    assert 4 <= len(counts) <= 8
    assert counts == sorted(counts)
    # The first of all is there, and one of the latest.
    assert counts[0] <= 3
    assert counts[-1] >= 20


async def test_of_several_engines_each_counts_for_its_part() -> None:
    """Two that work by turns are busy half of the time, and one that goes takes nothing back."""
    looks, enough, is_gone = {"a": 0, "b": 1}, asyncio.Event(), False

    async def metrics(request: web.Request) -> web.Response:
        name = request.match_info["engine"]
        if is_gone and name == "b":
            return web.Response(status=503)
        looks[name] += 1
        if looks["b"] == 30:
            enough.set()
        preemptions = {"a": 3 + looks["a"], "b": 700}[name]
        running = f"vllm:num_requests_running {looks[name] % 2}\n"
        return web.Response(text=f"{running}vllm:num_preemptions_total {preemptions}\n")

    async with (
        saying("/{engine}/metrics", metrics) as url,
        watching([f"{url}/a", f"{url}/b"], every_s=0.0001) as seen,
        asyncio.timeout(60),
    ):
        await enough.wait()
        is_gone = True

    assert {reading.running for reading in seen.readings} == {1}
    assert seen.busy_share == 0.5
    assert seen.preemptions is not None
    assert seen.preemptions > 0
