"""A real nginx with the shipped configuration, in front of two real replicas."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from agentsched.config import Config
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.ports import free_port

pytestmark = [pytest.mark.services, pytest.mark.slow]


@dataclass
class Replica:
    gateway: Gateway
    port: int
    stop: contextlib.AsyncExitStack


@dataclass
class Balanced:
    """nginx, the replicas behind it, and a client of nginx."""

    client: httpx.AsyncClient
    replicas: list[Replica]

    async def ask(self, program: str, **more: object) -> httpx.Response:
        body = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        return await self.client.post(
            "/v1/chat/completions", json=body | more, headers={"x-agentsched-program": program}
        )

    def served(self) -> list[int]:
        return [r.gateway.host.scheduler.statistics().steps_total for r in self.replicas]


async def start_replica(engine: str) -> Replica:
    stop = contextlib.AsyncExitStack()
    config = Config(port=0, engines=[{"url": engine, "id": "e0", "kind": "vllm"}])
    gateway, url = await stop.enter_async_context(running(config))
    return Replica(gateway, int(url.rsplit(":", 1)[1]), stop)


@contextlib.asynccontextmanager
async def nginx(config: str, folder: Path, port: int) -> AsyncIterator[None]:
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert binary, "scripts/install-services installs it"
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (folder / name).mkdir()
    temporary = (
        "".join(
            f"{kind}_temp_path {folder}/{name};"
            for kind, name in (("client_body", "body"), ("proxy", "proxy"), ("fastcgi", "fastcgi"))
        )
        + f"uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;"
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;"
        f"events {{}} http {{ access_log off; {temporary}\n{config}\n}}"
    )
    process = await asyncio.create_subprocess_exec(binary, "-c", str(path), "-e", "stderr")
    try:
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def balanced(deploy: Path, tmp_path: Path) -> AsyncIterator[Balanced]:
    engine = ServerConfig(
        engine=EngineConfig.from_preset(preset("cpu-2core")), models=("sim",), speed=1_000
    )
    async with running_engine(engine) as served, contextlib.AsyncExitStack() as stack:
        replicas = [await start_replica(served.url) for _ in range(2)]
        for replica in replicas:
            stack.push_async_callback(replica.stop.aclose)
        port = free_port()
        text = (deploy / "nginx" / "agentsched.conf").read_text()
        ports = iter([r.port for r in replicas])
        text = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{next(ports)}", text)
        text = re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", text)
        await stack.enter_async_context(nginx(text, tmp_path, port))
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield Balanced(client, replicas)


async def test_a_program_stays_and_programs_spread(balanced: Balanced) -> None:
    for _ in range(4):
        assert (await balanced.ask("run-1")).status_code == 200
    assert sorted(balanced.served()) == [0, 4]
    for i in range(30):
        await balanced.ask(f"other-{i}")
    assert min(balanced.served()) > 3


async def test_streams_pass_as_they_come(balanced: Balanced) -> None:
    body = {
        "model": "sim",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 16,
        "stream": True,
    }
    parts = []
    async with balanced.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for part in answer.aiter_raw():
            parts.append(part)
    assert len(parts) > 1
    assert b"".join(parts).rstrip().endswith(b"data: [DONE]")


async def test_a_replica_that_is_gone_is_gone_round(balanced: Balanced) -> None:
    for i in range(2):
        await balanced.ask(f"warm-{i}")
    await balanced.replicas[0].stop.aclose()
    for i in range(12):
        assert (await balanced.ask(f"run-{i}")).status_code == 200


async def test_operators_paths_are_not_for_the_outside(balanced: Balanced) -> None:
    for path in ("/metrics", "/agentsched/v1/programs", "/agentsched/"):
        assert (await balanced.client.get(path)).status_code == 404
