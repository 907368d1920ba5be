"""A real nginx and a real Envoy, as shipped, in front of two real replicas."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentsched.config import Config
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.ports import free_port

pytestmark = pytest.mark.slow

Command = Callable[..., list[str]]


@dataclass
class Replica:
    gateway: Gateway
    port: int
    stop: contextlib.AsyncExitStack


@dataclass
class Balanced:
    """A load balancer, the replicas behind it, and a client of it."""

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


def nginx(deploy: Path, folder: Path, *, port: int, replicas: list[int]) -> list[str]:
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert binary, "scripts/install-services installs it"
    to = iter(replicas)
    config = (deploy / "nginx" / "agentsched.conf").read_text()
    config = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{next(to)}", config)
    config = re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", config)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;"
        f"events {{}} http {{ access_log off; {temporary}\n{config}\n}}"
    )
    return [binary, "-c", str(path), "-e", "stderr"]


def envoy(deploy: Path, folder: Path, *, port: int, replicas: list[int]) -> list[str]:
    """Envoy with the shipped file, in which nothing changes but names and ports."""
    binary = deploy.parent / ".deploy-tools/python/envoy/_bin/envoy"
    assert binary.is_file(), "scripts/install-deploy-tools installs it"
    config = (deploy / "envoy" / "envoy.yaml").read_text()
    for number, to in enumerate(replicas):
        name = f"address: agentsched-{number}, port_value: 8900"
        assert config.count(name) == 1
        config = config.replace(name, f"address: 127.0.0.1, port_value: {to}")
    config = config.replace(
        "address: 0.0.0.0, port_value: 8900", f"address: 127.0.0.1, port_value: {port}"
    )
    config = config.replace("port_value: 9901", "port_value: 0")
    path = folder / "envoy.yaml"
    path.write_text(config)
    return [
        str(binary),
        "-c",
        str(path),
        "--concurrency",
        "1",
        "-l",
        "warning",
        "--disable-hot-restart",
    ]


@contextlib.asynccontextmanager
async def process_at(port: int, command: list[str]) -> AsyncIterator[None]:
    """A server, from when its port is open on."""
    process = await asyncio.create_subprocess_exec(*command)
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


@pytest.fixture(
    params=[
        pytest.param(nginx, marks=pytest.mark.services),
        pytest.param(envoy, marks=pytest.mark.deploy),
    ]
)
def balancer(request: pytest.FixtureRequest) -> Command:
    """What starts it."""
    made: Command = request.param
    return made


@pytest.fixture
async def balanced(balancer: Command, deploy: Path, tmp_path: Path) -> AsyncIterator[Balanced]:
    engine = ServerConfig(
        engine=EngineConfig.from_preset(preset("cpu-2core")), models=("sim",), speed=1_000
    )
    async with running_engine(engine) as served, contextlib.AsyncExitStack() as stack:
        replicas = [await start_replica(served.url) for _ in range(2)]
        for replica in replicas:
            stack.push_async_callback(replica.stop.aclose)
        port = free_port()
        words = balancer(deploy, tmp_path, port=port, replicas=[r.port for r in replicas])
        await stack.enter_async_context(process_at(port, words))
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


async def test_streams_pass_as_they_come(balancer: Command, deploy: Path, tmp_path: Path) -> None:
    seen = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await seen.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    async def ready(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/readyz", ready)
    port = free_port()
    async with TestServer(app) as replica, contextlib.AsyncExitStack() as stack:
        assert replica.port
        words = balancer(deploy, tmp_path, port=port, replicas=[replica.port, replica.port])
        await stack.enter_async_context(process_at(port, words))
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        await stack.enter_async_context(client)
        asked = client.stream("POST", "/v1/chat/completions", json={})
        parts = (await stack.enter_async_context(asked)).aiter_raw()
        said = b""
        while not said.endswith(b"\n\n"):  # the rest is not said before this is here
            said += await anext(parts)
        assert said == b"data: one\n\n"
        seen.set()
        assert b"".join([part async for part in parts]) == b"data: [DONE]\n\n"


async def test_a_replica_that_is_gone_is_gone_round(balanced: Balanced) -> None:
    for i in range(2):
        await balanced.ask(f"warm-{i}")
    await balanced.replicas[0].stop.aclose()
    for i in range(12):
        answer = await balanced.ask(f"run-{i}")
        assert answer.status_code == 200, (i, answer.text, answer.headers)


async def test_operators_paths_are_not_for_the_outside(balanced: Balanced) -> None:
    for path in ("/metrics", "/agentsched/v1/programs", "/agentsched/"):
        assert (await balanced.client.get(path)).status_code == 404


async def test_tools_report_from_the_outside(balanced: Balanced) -> None:
    told = await balanced.client.post("/agentsched/v1/tools", json={"events": []})
    assert told.status_code == 202
    over = await balanced.client.post("/finish_session", params={"session_id": "nobody's"})
    assert over.json() == {"finished": False}
    asked = {"model": "sim", "prompt": "hi"}
    assert (await balanced.client.post("/tokenize", json=asked)).json()["count"] > 0
