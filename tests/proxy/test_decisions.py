"""The live stream of decisions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from live import eventually

from agentsched.proxy import decisions

PATH = "/agentsched/v1/decisions"


async def events(response: Any) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield "comment", line
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def test_turns_with_commands_are_shown(proxy: Any) -> None:
    async with proxy.client.stream("GET", PATH) as response:
        assert response.headers["content-type"] == "text/event-stream"
        seen = events(response)
        assert await anext(seen) == ("comment", ": watching")
        await proxy.chat(headers={"x-agentsched-program": "a"})
        name, turn = await anext(seen)
        assert name == "turn"
        assert turn["event"][1]["program"] == "a"
        assert turn["commands"][0][0] == "Dispatch"


async def test_of_one_program(proxy: Any) -> None:
    async with proxy.client.stream("GET", PATH, params={"program": "b"}) as response:
        seen = events(response)
        await anext(seen)
        for name in "aab":
            await proxy.chat(headers={"x-agentsched-program": name})
        _, turn = await anext(seen)
        assert turn["event"][1]["program"] == "b"


async def test_a_hang_up_leaves_nothing(proxy: Any) -> None:
    host = proxy.gateway.host
    before = len(host._sinks)
    async with proxy.client.stream("GET", PATH) as response:
        await anext(events(response))
        assert len(host._sinks) == before + 1
        assert b"agentsched_decision_watchers 1.0" in proxy.gateway.meters.exposition()
    await eventually(lambda: len(host._sinks) == before)
    assert b"agentsched_decision_watchers 0.0" in proxy.gateway.meters.exposition()


async def test_draining_ends_it_at_once(proxy: Any) -> None:
    async with proxy.client.stream("GET", PATH) as response:
        seen = events(response)
        await anext(seen)
        proxy.gateway.draining.set()
        async with asyncio.timeout(60):
            assert [event async for event in seen if event[0] != "comment"] == []


async def test_silence_is_broken_by_comments(proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_KEEP_ALIVE_S", 0.01)
    async with proxy.client.stream("GET", PATH) as response:
        seen = events(response)
        await anext(seen)
        assert await anext(seen) == ("comment", ": keep-alive")


async def test_a_slow_reader_is_told_of_gaps(proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_BACKLOG_MAX", 1)
    watcher = decisions._Watcher(None)
    await proxy.chat()
    turns = [entry for entry in proxy.turns.entries if entry.commands]
    for entry in turns * 3:
        watcher.write(entry)
    assert watcher.dropped == 2
    shown = watcher.shown(watcher.queue.get_nowait())
    assert shown.startswith(b'event: dropped\ndata: {"turns": 2}\n\nevent: turn\n')
    assert watcher.dropped == 0
