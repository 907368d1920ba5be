"""The scheduler's no and its client's leaving at one moment: the step ends once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from proxy_upstream import Gate, Upstream

from agentsched.kernel import JournalEntry
from agentsched.model import Reject, StepCancelled


class LeavesAtTheNo:
    """A sink that has a connection lost at the turn which refuses what it asked for, before the
    refusal is delivered or after it.
    """

    def __init__(self, connection: asyncio.Task[Any], *, is_late: bool) -> None:
        self._leave = connection.cancel
        self._is_late = is_late

    def write(self, entry: JournalEntry) -> None:
        if not any(isinstance(command, Reject) for command in entry.commands):
            return
        if self._is_late:
            asyncio.get_running_loop().call_soon(self._leave)
        else:
            self._leave()


def connections() -> set[asyncio.Task[Any]]:
    def what(task: asyncio.Task[Any]) -> str:
        return str(getattr(task.get_coro(), "__qualname__", ""))

    return {task for task in asyncio.all_tasks() if what(task) == "RequestHandler.start"}


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_step_that_was_refused_is_not_cancelled_as_well(
    start: Any, upstream: Upstream, is_late: bool
) -> None:
    upstream.script = gate = Gate()
    limits = {"running_steps_per_engine_max": 1, "max_wait": "300ms"}
    async with start(upstream.url, profile="fcfs", limits=limits) as proxy:
        busy = asyncio.create_task(proxy.chat("busy"))
        await upstream.exchange()
        before = connections()
        held = asyncio.create_task(proxy.chat("held"))
        await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 1)
        (connection,) = connections() - before
        sink = LeavesAtTheNo(connection, is_late=is_late)
        proxy.gateway.host.watch(sink)
        with pytest.raises(httpx.RemoteProtocolError):
            await held
        gate.open.set()
        assert (await busy).status_code == 200
        await proxy.until_idle()
        assert len(proxy.turns.commands(Reject)) == 1
        assert proxy.turns.events(StepCancelled) == []
        assert proxy.scheduler.statistics().ignored_total == 0
