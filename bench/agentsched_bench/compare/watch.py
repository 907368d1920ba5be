"""Looks at the engines' own gauges while a run goes on, and says how they moved."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from agentsched_adapters.prometheus import total
from agentsched_bench.compare.results import Reading

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_READINGS_MAX: Final = 4_000
_PREEMPTIONS: Final = ("vllm:num_preemptions_total", "vllm:num_preemptions")


class _SimGauges(msgspec.Struct):
    busy_ns: int
    preemptions: int


class _SimState(msgspec.Struct):
    gauges: _SimGauges
    model_time_ns: int


@dataclass(slots=True, kw_only=True)
class Watched:
    """What was seen. `preemptions` and `busy_share` are filled in when the watch ends."""

    readings: list[Reading] = field(default_factory=list)
    preemptions: float | None = None
    busy_share: float | None = None
    #: Beside each reading, the share of the engines that had work; None where none said so.
    busy: list[float | None] = field(default_factory=list)


@contextlib.asynccontextmanager
async def watching(urls: Sequence[str], *, every_s: float) -> AsyncIterator[Watched]:
    """Read the engines' `/metrics` now and then until the block ends. Never raises."""
    seen = Watched()
    begun = time.perf_counter()
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as client:
        before = await _counters(client, urls)
        task = asyncio.create_task(
            _keep_looking(client, urls, seen, begun=begun, every_s=every_s), name="gauges"
        )
        try:
            yield seen
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await _close(client, urls, seen, before)


async def _close(
    client: aiohttp.ClientSession, urls: Sequence[str], seen: Watched, before: _Counters
) -> None:
    after = await _counters(client, urls)
    # One that answers no more has not taken back what it had counted.
    both = before.preemptions.keys() & after.preemptions.keys()
    if both:
        seen.preemptions = sum(after.preemptions[url] - before.preemptions[url] for url in both)
    span = after.model_ns - before.model_ns
    if span > 0:
        seen.busy_share = (after.busy_ns - before.busy_ns) / span
    else:
        # vLLM does not say how long it computed; how often it was seen with work is near to it.
        known = [share for share in seen.busy if share is not None]
        seen.busy_share = sum(known) / len(known) if known else None


async def _keep_looking(
    client: aiohttp.ClientSession,
    urls: Sequence[str],
    seen: Watched,
    *,
    begun: float,
    every_s: float,
) -> None:
    while True:
        if len(seen.readings) == _READINGS_MAX:
            # Half as often from here on: what was seen is of the whole run, not of its beginning.
            del seen.readings[1::2], seen.busy[1::2]
            every_s *= 2
        pages = [page for url in urls if (page := await _get(client, url + "/metrics"))]
        if pages:
            running = _each(pages, "vllm:num_requests_running")
            waiting = _each(pages, "vllm:num_requests_waiting")
            usage = _each(pages, "vllm:kv_cache_usage_perc")
            seen.readings.append(
                Reading(
                    at_s=time.perf_counter() - begun,
                    running=sum(running) if running else None,
                    waiting=sum(waiting) if waiting else None,
                    kv_usage=sum(usage) / len(usage) if usage else None,
                )
            )
            seen.busy.append(sum(n > 0 for n in running) / len(running) if running else None)
        await asyncio.sleep(every_s)


def _each(pages: Sequence[bytes], name: str) -> list[float]:
    """What each engine says of it, as far as they do."""
    return [value for page in pages if (value := total(page, name)) is not None]


@dataclass(slots=True, kw_only=True)
class _Counters:
    #: By the engine's URL, of those that say it.
    preemptions: dict[str, float] = field(default_factory=dict)
    busy_ns: int = 0
    model_ns: int = 0


async def _counters(client: aiohttp.ClientSession, urls: Sequence[str]) -> _Counters:
    found = _Counters()
    for url in urls:
        state = await _state(client, url)
        if state is not None:
            found.busy_ns += state.gauges.busy_ns
            found.model_ns += state.model_time_ns
            preemptions: float | None = state.gauges.preemptions
        else:
            page = await _get(client, url + "/metrics")
            preemptions = total(page, *_PREEMPTIONS) if page else None
        if preemptions is not None:
            found.preemptions[url] = preemptions
    return found


async def _state(client: aiohttp.ClientSession, url: str) -> _SimState | None:
    """What an embedded engine says of itself, also of what it did before it was lost."""
    page = await _get(client, url + "/sim/state")
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(page, type=_SimState) if page is not None else None
    return None


async def policy_failures(url: str) -> float:
    """How often policies of our proxy at `url` failed, by its own count; 0 when it cannot say."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as client:
        page = await _get(client, url + "/metrics")
    return (total(page, "agentsched_policy_errors_total") if page else None) or 0.0


async def _get(client: aiohttp.ClientSession, url: str) -> bytes | None:
    try:
        async with client.get(url) as answer:
            return await answer.read() if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
