"""Looks at the engines while a run goes on: few enough to keep, and of all of the run."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from agentsched_bench.compare import watch
from agentsched_bench.compare.watch import watching


async def test_a_long_run_is_seen_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_READINGS_MAX", 8)
    looks, enough = 0, asyncio.Event()

    async def metrics(_request: web.Request) -> web.Response:
        nonlocal looks
        looks += 1
        if looks == 30:
            enough.set()
        return web.Response(text=f"vllm:num_requests_running {looks}\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with watching([url], every_s=0.0001) as seen, asyncio.timeout(60):
            await enough.wait()
    finally:
        await runner.cleanup()

    counts = [reading.running or 0.0 for reading in seen.readings]
    assert 4 <= len(counts) <= 8
    assert counts == sorted(counts)
    # The first of all is there, and one of the latest.
    assert counts[0] <= 3
    assert counts[-1] >= 20
