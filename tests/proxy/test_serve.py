"""Start, drain and end of a proxy; its journal; many streams at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import eventually, small_engine
from proxy_upstream import DONE, Gate, Upstream, chunk

from agentsched.compose import journal_header
from agentsched.config import Config
from agentsched.kernel import encode_header
from agentsched.model import EngineLost
from agentsched.proxy.journal_file import JournalFile
from agentsched.proxy.serve import drain
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.ports import free_port
from agentsched_bench.replay import open_journal, replay_file


class Process:
    """`agentsched serve` as an operator starts it."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def ends(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def served(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "agentsched",
        *("serve", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            ready = (await process.stdout.readline()).decode()
        assert ready.startswith("agentsched ready on http://127.0.0.1:"), (
            ready,
            await process.stderr.read() if process.stderr else "",
        )
        yield Process(process, ready.split()[3])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def no_longer_ready(client: httpx.AsyncClient) -> httpx.Response:
    async with asyncio.timeout(60):
        while (response := await client.get("/readyz")).status_code == 200:
            pass
    return response


@pytest.mark.slow
async def test_sigterm_drains_the_real_process(upstream: Upstream, tmp_path: Path) -> None:
    gate = upstream.script = Gate(chunk("hel"))
    journal = tmp_path / "journal.ndjson.gz"
    file = tmp_path / "config.toml"
    file.write_text(f'journal = "{journal}"\n[http]\ndrain_notice = "300ms"\n')
    port = str(free_port())
    options = ("--engine", f"e0={upstream.url}", "--port", port, "--config", str(file))
    async with (
        served(*options) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=60) as client,
    ):
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            parts = stream.aiter_raw()
            assert await anext(parts) == chunk("hel")
            assert (await client.get("/readyz")).status_code == 200
            proxy.signal()
            assert (await no_longer_ready(client)).json()["reason"] == "draining"
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                refused = await client.post(path, json=body)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "draining"
                assert refused.headers["retry-after"] == "1"
                assert refused.headers["connection"] == "close"
            gate.open.set()
            assert b"".join([part async for part in parts]).endswith(DONE)
        assert await proxy.ends() == 0
        with pytest.raises(httpx.ConnectError):
            await client.get("/readyz")
    assert replay_file(journal) is None
    async with served("--engine", upstream.url, "--port", port) as again:
        assert again.url == proxy.url
        again.signal(signal.SIGINT)
        assert await again.ends() == 0


@pytest.mark.slow
async def test_a_second_signal_ends_the_wait(upstream: Upstream) -> None:
    upstream.script = Gate(chunk("hel"))
    async with (
        served("--engine", upstream.url, "--port", "0") as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=60) as client,
    ):
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            parts = stream.aiter_raw()
            await anext(parts)
            proxy.signal()
            await no_longer_ready(client)
            proxy.signal()
            # It says why, as far as a stream that has begun can say it.
            rest = b"".join([part async for part in parts])
        assert b'"code":503' in rest
        assert await proxy.ends() == 0


class TestDrain:
    async def test_waits_for_what_runs_and_for_the_notice(
        self, start: Any, upstream: Upstream
    ) -> None:
        gate = upstream.script = Gate()
        async with start(upstream.url, http={"drain_notice": "10ms"}) as proxy:
            asked = asyncio.create_task(proxy.chat())
            await upstream.exchange()
            draining = asyncio.create_task(drain(proxy.gateway))
            await eventually(lambda: proxy.gateway.is_draining)
            assert (await proxy.chat()).status_code == 503
            assert not draining.done()
            gate.open.set()
            response = await asked
            assert response.status_code == 200
            assert response.headers["connection"] == "close"
            await draining

    @pytest.mark.parametrize("is_held", [False, True])
    async def test_what_takes_too_long_ends_in_an_error(
        self, start: Any, upstream: Upstream, is_held: bool
    ) -> None:
        upstream.script = Gate()
        settings = {
            "http": {"drain_notice": "10ms", "drain_timeout": "50ms"},
            "limits": {"running_steps_per_engine_max": 1},
        }
        async with start(upstream.url, **settings) as proxy:
            asked = [asyncio.create_task(proxy.chat())]
            await upstream.exchange()
            if is_held:
                asked.append(asyncio.create_task(proxy.chat("held")))
                statistics = proxy.scheduler.statistics
                await proxy.turns.until(lambda: statistics().waiting_steps == 1)
            await drain(proxy.gateway)
            proxy.gateway.host.stop_all("this proxy is shutting down")
            for response in await asyncio.gather(*asked):
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "draining"

    async def test_the_notice_is_given_also_where_the_timeout_is_shorter(
        self, start: Any, upstream: Upstream
    ) -> None:
        short = {"drain_notice": "80ms", "drain_timeout": "1ms"}
        async with start(upstream.url, http=short) as proxy:
            began = asyncio.get_running_loop().time()
            await drain(proxy.gateway)
            assert asyncio.get_running_loop().time() - began >= 0.08

    async def test_plain_requests_count(self, start: Any, upstream: Upstream) -> None:
        gate = upstream.script = Gate()
        async with start(upstream.url, http={"drain_notice": "10ms"}) as proxy:
            asked = asyncio.create_task(proxy.client.post("/v1/embeddings", content=b"{}"))
            await upstream.exchange()
            draining = asyncio.create_task(drain(proxy.gateway))
            await eventually(lambda: proxy.gateway.is_draining)
            assert not proxy.gateway.is_idle
            gate.open.set()
            assert (await asked).status_code == 200
            await draining

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
    async def test_a_request_that_still_comes_is_told(
        self, start: Any, upstream: Upstream, path: str
    ) -> None:
        async with start(upstream.url, http={"drain_notice": "10ms"}) as proxy:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{"
            reader, writer = await proxy.raw(head.encode())
            await eventually(lambda: proxy.gateway.bodies.held == 1)
            draining = asyncio.create_task(drain(proxy.gateway))
            await eventually(lambda: proxy.gateway.is_draining)
            assert not proxy.gateway.is_idle
            writer.write(b"}")
            await draining
            async with asyncio.timeout(60):
                assert b" 503 " in (await reader.readuntil(b"}}"))[:15]
            writer.close()
            assert upstream.exchanges == []


async def test_the_journal_of_a_live_run_replays(
    start: Any, upstream: Upstream, second: Upstream, tmp_path: Path
) -> None:
    config = Config(profile="fcfs", limits={"engine_wait_max": "300ms"})  # type: ignore[arg-type]
    path = tmp_path / "journal.ndjson"
    header = encode_header(journal_header(config.scheduler()))
    async with (
        JournalFile(path, header=header, backlog_max=10_000) as journal,
        start(upstream.url, second.url, profile="fcfs") as proxy,
    ):
        for entry in proxy.turns.entries:
            journal.write(entry)
        proxy.gateway.host.watch(journal)
        await asyncio.gather(
            *(
                proxy.chat(f"{i}", agentsched={"program": f"p{i % 5}"}, stream=bool(i % 2))
                for i in range(40)
            )
        )
        await upstream.stop()
        await proxy.chat("after", agentsched={"program": "p0"})
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        hung = second.script = Gate()
        cut = asyncio.create_task(proxy.chat("cut"))
        await second.exchange(len(second.exchanges))
        cut.cancel()
        await proxy.until_idle()
        hung.open.set()
        proxy.gateway.host.unwatch(journal)
    assert replay_file(path) is None
    with open_journal(path) as recorded:
        entries = list(recorded)
    assert entries == proxy.turns.entries[: len(entries)]
    kinds = {type(entry.event).__name__ for entry in entries}
    assert kinds >= {"StepArrived", "StepStarted", "StepFinished", "StepCancelled", "EngineLost"}


#: Three hundred connections at once on a busy machine.
PATIENT = {"probe_timeout": "30s", "connect_timeout": "30s"}


@pytest.mark.slow
async def test_three_hundred_streams_at_once(start: Any) -> None:
    engine = small_engine(blocks=2_049, max_num_seqs=32, max_model_len=2_048)
    async with running_engine(ServerConfig(engine=engine, models=("m",), speed=500)) as sim:
        engines = [{"url": sim.url, "id": "e0", "kind": "vllm"}]
        async with start(engines=engines, upstream=PATIENT) as proxy:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=proxy.url, timeout=60, limits=limits) as client:
                answers = await asyncio.gather(*(_ask(client, i) for i in range(300)))
            assert {status for status, _ in answers} == {200}
            assert all(text.endswith(DONE) for _, text in answers)
            await proxy.until_idle()
            assert proxy.scheduler.statistics().steps_total == 300
            assert not proxy.gateway.meters._steps
            assert len(proxy.gateway.host.scheduler.programs) == 300
            await sim.driver.has(0)


async def _ask(client: httpx.AsyncClient, number: int) -> tuple[int, bytes]:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "max_tokens": 4,
        "stream": True,
    }
    response = await client.post("/v1/chat/completions", content=json.dumps(body))
    return response.status_code, response.content
