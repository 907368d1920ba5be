"""The live stream of decisions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from live import eventually
from proxy_upstream import Gate, Upstream

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


@pytest.mark.parametrize("is_watched_late", [False, True])
async def test_of_one_program_whose_step_is_sent_in_anothers_turn(
    start: Any, upstream: Upstream, is_watched_late: bool
) -> None:
    """A held step arrives in a turn without commands, and what sends it names no program."""
    gate = upstream.script = Gate()
    async with start(upstream.url, limits={"running_steps_per_engine_max": 1}) as proxy:

        async def hold() -> asyncio.Task[Any]:
            held = asyncio.create_task(proxy.chat("second", {"x-agentsched-program": "b"}))
            await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 1)
            return held

        asked = [asyncio.create_task(proxy.chat("first", {"x-agentsched-program": "a"}))]
        await upstream.exchange()
        if is_watched_late:
            asked.append(await hold())
        async with proxy.client.stream("GET", PATH, params={"program": "b"}) as response:
            seen = events(response)
            await anext(seen)
            if not is_watched_late:
                asked.append(await hold())
            [held] = [s.step for s in proxy.scheduler.steps.values() if s.program == "b"]
            gate.open.set()
            _, turn = await anext(seen)
        assert turn["event"][0] == "StepFinished"
        assert [c["step"] for kind, c in turn["commands"] if kind == "Dispatch"] == [held]
        await asyncio.gather(*asked)


async def test_a_hang_up_leaves_nothing(proxy: Any) -> None:
    host = proxy.gateway.host
    before = len(host._sinks)
    async with proxy.client.stream("GET", PATH) as response:
        await anext(events(response))
        assert len(host._sinks) == before + 1
        assert b"agentsched_decision_watchers 1.0" in proxy.gateway.meters.exposition()
    await eventually(lambda: len(host._sinks) == before)
    assert b"agentsched_decision_watchers 0.0" in proxy.gateway.meters.exposition()


async def test_no_more_than_so_many_watch(proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches is called at each turn, and whoever may read may open as many as it likes."""
    monkeypatch.setattr(decisions, "_WATCHERS_MAX", 1)
    async with proxy.client.stream("GET", PATH) as response:
        await anext(events(response))
        async with proxy.client.stream("GET", PATH) as refused:
            assert refused.status_code == 503
            assert json.loads(await refused.aread())["error"]["code"] == "too_many_watchers"
    await eventually(lambda: not proxy.gateway.decision_seats)
    async with proxy.client.stream("GET", PATH) as response:
        assert await anext(events(response)) == ("comment", ": watching")


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
