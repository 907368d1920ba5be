"""Outages of embedded engines while a load runs, at the instants that the simulator has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp

from agentsched.model import EngineError, Instant, Nanos, in_seconds
from agentsched_bench.sim.faults import Faults, Outage, apart

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


@contextlib.asynccontextmanager
async def failing(
    urls: Sequence[str], outages: Sequence[Outage], *, speed: float
) -> AsyncIterator[None]:
    """Crash and revive engines while the body runs; all of them serve again when it is over.

    An engine that runs `speed` times as fast has its outages so much sooner and shorter.

    Raises:
        EngineError: one of them cannot be crashed; only embedded engines can.
    """
    if not outages:
        yield
        return
    outages = apart(Faults(outages=tuple(outages))).outages
    failure: BaseException | None = None
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as client:
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(_play(client, urls, outages, speed), name="outages")
                yield
                task.cancel()
        except* EngineError as errors:
            failure = errors.exceptions[0]
        finally:
            await _revive(client, [urls[number] for number in {one.engine for one in outages}])
    if failure is not None:
        # The run ends with one failure, whoever of the two it was.
        raise failure


async def _revive(client: aiohttp.ClientSession, urls: Sequence[str]) -> None:
    for url in sorted(urls):
        # An engine that is no embedded one was never lost, and has been named already.
        with contextlib.suppress(EngineError):
            await _post(client, f"{url}/sim/resume")


async def _play(
    client: aiohttp.ClientSession, urls: Sequence[str], outages: Sequence[Outage], speed: float
) -> None:
    deeds: list[tuple[Instant, bool, int]] = []
    for outage in outages:
        deeds.append((outage.at, True, outage.engine))
        deeds.append((outage.back_at, False, outage.engine))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    # At one instant returns come first: an engine that is back and lost again stays lost.
    for at, is_lost, engine in sorted(deeds):
        due = begun + in_seconds(Nanos(at)) / speed
        await asyncio.sleep(max(0.0, due - loop.time()))
        await _post(client, f"{urls[engine]}/sim/{'crash' if is_lost else 'resume'}")


async def _post(client: aiohttp.ClientSession, url: str) -> None:
    try:
        async with client.post(url) as answer:
            status = answer.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"{url}: {type(error).__name__}") from error
    if status != 200:
        raise EngineError(f"{url} answers {status}: only embedded engines can be lost on request")
