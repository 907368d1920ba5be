"""Load on a real proxy process: over its capacity, with many streams, with many programs.

The proxy is a process of its own, `agentsched serve`; engine and clients share this one, so what is
said of memory is the proxy's alone. Times depend on the machine; what is claimed are ratios, counts
and bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agentsched_bench.chaos.dialects import MODEL
from agentsched_bench.chaos.engine import SimulatedEngine
from agentsched_bench.chaos.faults import CALM, Faults
from agentsched_bench.live.processes import running

_SLOTS: Final = 8
_CALL_S: Final = 120.0
#: Programs that take a second step while all are alive.
_SAMPLE: Final = 1_000
#: Connections that are opened at the same moment.
_OPENING_MAX: Final = 200


@dataclass(slots=True)
class Tally:
    """What calls came to."""

    ends: Counter[str] = field(default_factory=Counter)
    #: Seconds, by how the calls ended.
    took: dict[str, list[float]] = field(default_factory=dict)

    def note(self, end: str, seconds: float) -> None:
        self.ends[end] += 1
        self.took.setdefault(end, []).append(seconds)

    def quantile(self, end: str, share: float) -> float | None:
        """Seconds that a share of the calls of this end took at most."""
        took = sorted(self.took.get(end, ()))
        return round(took[min(len(took) - 1, int(share * len(took)))], 4) if took else None


class Rig:
    """A proxy process, its engine here, and the means to call it."""

    def __init__(self, url: str, pid: int, engine: SimulatedEngine) -> None:
        self._host, self._port = url.removeprefix("http://").rsplit(":", 1)
        self.pid = pid
        self.engine = engine
        self._opening = asyncio.Semaphore(_OPENING_MAX)

    def rss_mb(self) -> float:
        """Resident memory of the proxy."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) / 1024, 1)
        return 0.0

    def descriptors(self) -> int:
        """Open files of the proxy."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def get(self, path: str) -> Any:
        """A page of the control plane."""
        reader, writer = await asyncio.open_connection(self._host, int(self._port), limit=1 << 26)
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
            )
            page = await reader.read()
        finally:
            writer.transport.abort()
        return json.loads(page.partition(b"\r\n\r\n")[2])

    async def call(self, tally: Tally, program: str, *, is_stream: bool = False) -> None:
        """One call of a program, noted by its end."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(_CALL_S):
                end = await self._call(program, is_stream=is_stream)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            end = type(error).__name__
        tally.note(end, time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Callable[[bytes], Awaitable[str]]]:
        """One connection, kept alive: what it yields sends a chat request and tells how it ended.

        The request names no program.
        """
        reader, writer = await asyncio.open_connection(self._host, int(self._port))

        async def call(body: bytes) -> str:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            head += "content-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(_CALL_S):
                said = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(said.partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
            status = int(said.split(b" ", 2)[1])
            return "answered" if status == 200 else f"status {status}"

        try:
            yield call
        finally:
            writer.transport.abort()

    async def _call(self, program: str, *, is_stream: bool) -> str:
        fields = {"model": MODEL, "messages": [{"role": "user", "content": program}]}
        body = json.dumps(fields | ({"stream": True} if is_stream else {})).encode()
        async with self._opening:
            reader, writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            head += f"x-agentsched-program: {program}\r\nx-agentsched-tenant: t\r\n"
            head += "content-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            status = int((await reader.readuntil(b"\r\n")).split(b" ")[1])
            answer = await reader.read()
        finally:
            writer.transport.abort()
        if status != 200:
            return f"status {status}"
        return "answered" if not is_stream or b"data: [DONE]" in answer else "cut"


@contextlib.asynccontextmanager
async def rig(*, slots: int, token_s: float, settings: str) -> AsyncIterator[Rig]:
    """A proxy in front of one engine of so many slots."""
    engine = SimulatedEngine("127.0.0.1", Faults(0, CALM), slots=slots, port=0, token_s=token_s)
    await engine.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "agentsched.toml"
            shown = f'[[engines]]\nurl = "{engine.url}"\nid = "e0"\nkind = "vllm"\n'
            file.write_text(settings + shown, encoding="utf-8")
            options = ("serve", "--config", str(file), "--port", "0")
            async with running(*options, name="the proxy") as ready:
                started = Rig(ready.url, ready.pid, engine)
                while not (await started.get("/readyz"))["is_ready"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
                yield started
    finally:
        await engine.crash()


async def overload(*, seconds: float = 10.0, factor: float = 10.0) -> dict[str, Any]:
    """Peak goodput, then `factor` times as many requests as that, then the same load as before."""
    settings = (
        'log_level = "error"\n[limits]\nready_steps_max = 64\nmax_wait = "4s"\n'
        f"running_steps_per_engine_max = {_SLOTS}\n"
    )
    async with rig(slots=_SLOTS, token_s=0.05, settings=settings) as proxy:
        await _closed_loop(proxy, seconds=2.0, name="warm")
        peak, _ = await _closed_loop(proxy, seconds=seconds, name="peak")
        before = proxy.rss_mb()
        flood, most, answered = await _open_loop(
            proxy, seconds=seconds, rate=factor * peak, name="flood"
        )
        recovered_s = await _until_well(proxy)
        again, _ = await _closed_loop(proxy, seconds=seconds, name="after")
        share = answered / peak if peak else 0.0
        refused = flood.ends["status 429"]
        return {
            "holds": share >= 0.95 and most - before < 200 and recovered_s < 10,
            "seconds": seconds,
            "factor": factor,
            "peak_per_s": round(peak, 2),
            "goodput_per_s": round(answered, 2),
            "goodput_of_peak": round(share, 3),
            "after_of_peak": round(again / peak, 3) if peak else None,
            "requests": sum(flood.ends.values()),
            "ends": dict(flood.ends),
            "refused": refused,
            "refusal_p50_s": flood.quantile("status 429", 0.5),
            "refusal_p99_s": flood.quantile("status 429", 0.99),
            "answer_p99_s": flood.quantile("answered", 0.99),
            "recovered_s": round(recovered_s, 2),
            "rss_before_mb": before,
            "rss_most_mb": most,
            "rss_after_mb": proxy.rss_mb(),
            "descriptors_after": proxy.descriptors(),
        }


async def _closed_loop(proxy: Rig, *, seconds: float, name: str) -> tuple[float, Tally]:
    """As many clients as fit, each calling again at once; answers a second."""
    tally = Tally()
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        count = 0
        while time.monotonic() < until:
            await proxy.call(tally, f"{name}-{number}-{count}")
            count += 1

    began = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(2 * _SLOTS)))
    return tally.ends["answered"] / (time.monotonic() - began), tally


async def _open_loop(
    proxy: Rig, *, seconds: float, rate: float, name: str
) -> tuple[Tally, float, float]:
    """Requests at a rate, whatever becomes of them; the most memory seen, answers a second."""
    tally, most = Tally(), proxy.rss_mb()
    tasks: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - began) < seconds:
        while sent < passed * rate:
            task = asyncio.create_task(proxy.call(tally, f"{name}-{sent}"))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        most = max(most, proxy.rss_mb())
        await asyncio.sleep(0.02)
    answered = tally.ends["answered"] / seconds
    await asyncio.gather(*tasks)
    return tally, max(most, proxy.rss_mb()), answered


async def _until_well(proxy: Rig) -> float:
    """How long until calls are answered again, one after the other."""
    began = time.monotonic()
    in_a_row = 0
    while in_a_row < 3:
        tally = Tally()
        await proxy.call(tally, f"well-{time.monotonic_ns()}")
        in_a_row = in_a_row + 1 if tally.ends["answered"] else 0
    return time.monotonic() - began


async def streams(*, count: int = 2_000) -> dict[str, Any]:
    """So many streams open at the same time, each a token now and then."""
    settings = (
        f'log_level = "error"\nprofile = "passthrough"\n[limits]\nready_steps_max = {2 * count}\n'
    )
    settings += f"running_steps_per_engine_max = {2 * count}\n"
    async with rig(slots=2 * count, token_s=2.0, settings=settings) as proxy:
        before, tally = proxy.rss_mb(), Tally()
        began = time.monotonic()
        calls = [
            asyncio.create_task(proxy.call(tally, f"s{number}", is_stream=True))
            for number in range(count)
        ]
        most_open, most_mb, most_files = 0, before, 0
        while not all(call.done() for call in calls):
            most_open = max(most_open, len(proxy.engine.ledger.running))
            most_mb = max(most_mb, proxy.rss_mb())
            most_files = max(most_files, proxy.descriptors())
            await asyncio.sleep(0.2)
        took = time.monotonic() - began
        live = (await proxy.get("/agentsched/v1/statistics"))["scheduler"]
        return {
            "holds": tally.ends["answered"] == count and most_open >= 0.95 * count,
            "streams": count,
            "open_at_once": most_open,
            "ends": dict(tally.ends),
            "seconds": round(took, 1),
            "longest_s": tally.quantile("answered", 1.0),
            "rss_before_mb": before,
            "rss_most_mb": most_mb,
            "kb_per_stream": round(1024 * (most_mb - before) / count, 1),
            "descriptors_most": most_files,
            "descriptors_after": proxy.descriptors(),
            "left": live["waiting_steps"] + live["running_steps"],
        }


async def programs(*, count: int = 10_000) -> dict[str, Any]:
    """So many programs alive at the same time, each with a step behind it; some take another."""
    settings = f'log_level = "error"\n[limits]\nprograms_max = {2 * count}\n'
    async with rig(slots=256, token_s=0.000_1, settings=settings) as proxy:
        before = proxy.rss_mb()
        first = await _one_each(proxy, count)
        middle = proxy.rss_mb()
        sample = min(count, _SAMPLE)
        second = await _one_each(proxy, sample)
        live = (await proxy.get("/agentsched/v1/statistics"))["scheduler"]
        return {
            "holds": live["programs"] >= count
            and first.ends["answered"] == count
            and second.ends["answered"] == sample,
            "programs": live["programs"],
            "ends": dict(first.ends + second.ends),
            "call_p50_s": [first.quantile("answered", 0.5), second.quantile("answered", 0.5)],
            "call_p99_s": [first.quantile("answered", 0.99), second.quantile("answered", 0.99)],
            "rss_before_mb": before,
            "rss_mb": [middle, proxy.rss_mb()],
            "kb_per_program": round(1024 * (middle - before) / count, 1),
        }


async def _one_each(proxy: Rig, count: int) -> Tally:
    tally = Tally()
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await proxy.call(tally, f"p{number}")

    await asyncio.gather(*(client() for _ in range(32)))
    return tally
