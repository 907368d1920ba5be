"""A proxy on the embedded engine in this process, with one recorded-like program run through it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from agentsched.config import Config
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.portrait.replay import Scale, proxy_on_embedded_engine, replay_program
from agentsched_bench.workload.trace import (
    RecordedProgram,
    RecordedStep,
    RecordedTool,
    Recording,
)


def step(number: int, *tools: str, gap_s: float = 0.0) -> RecordedStep:
    return RecordedStep(
        step=number,
        input_tokens=300 + 40 * number,
        output_tokens=8,
        gap_s=gap_s,
        gap_kind="tool",
        tools=tuple(RecordedTool(name=name, result_tokens=20) for name in tools),
    )


PROGRAM = RecordedProgram(
    main=Recording(
        session_id="fix-it",
        source="made",
        agent="claude-code",
        steps=(step(0, "Read", "Grep"), step(1, "Task"), step(2, "Bash"), step(3)),
    ),
    children=(
        Recording(
            session_id="fix-it/sub",
            source="made",
            agent="claude-code",
            parent="fix-it",
            steps=(step(0, "Glob"), step(1)),
        ),
    ),
)


@dataclass(frozen=True)
class Running:
    """Where proxy and engine answer, and the program's id."""

    url: str
    engine_url: str
    program: str


@pytest.fixture(scope="module")
def proxy() -> Iterator[Running]:
    """The proxy runs on a loop of its own, since commands block."""
    found: list[Running] = []
    ready, done = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def serve() -> None:
        scale = Scale(tokens=4.0, engine_speed=20.0)
        async with proxy_on_embedded_engine(scale) as (gateway, url):
            program = await replay_program(url, PROGRAM, scale)
            [member] = gateway.fleet.members.values()
            found.append(Running(url=url, engine_url=member.url, program=program))
            ready.set()
            await asyncio.to_thread(done.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(60)
    if not found:
        thread.join(10)
        raise RuntimeError("the proxy did not come up") from (failed[0] if failed else None)
    yield found[0]
    done.set()
    thread.join(30)
    assert not failed


#: Looks that get no answer say so, and never amount to a loss.
_UPSTREAM = {"probe_interval": "50ms", "probe_timeout": "500ms", "failures_until_lost": 1_000_000}


@asynccontextmanager
async def _standing_still() -> AsyncIterator[str]:
    sizes = EngineConfig.from_preset(preset("cpu-2core"))
    async with running_engine(ServerConfig(engine=sizes)) as engine:
        settings = {"port": 0, "engines": [{"url": engine.url, "id": "sim-0"}]}
        config = Config.model_validate(settings | {"upstream": _UPSTREAM})
        async with (
            running(config) as (gateway, url),
            httpx.AsyncClient(timeout=60, trust_env=False) as client,
            asyncio.TaskGroup() as asked,
        ):
            engines = gateway.host.scheduler.engines
            await _until(lambda: len(engines) == 1)
            await client.post(f"{engine.url}/sim/hang")
            said = {"model": "sim", "messages": [{"role": "user", "content": "hello"}]}
            asking = asked.create_task(client.post(f"{url}/v1/chat/completions", json=said))
            await _until(lambda: all(e.silent_since is not None for e in engines.values()))
            yield url
            await client.post(f"{engine.url}/sim/resume")
            assert (await asking).status_code == 200


async def _until(condition: Callable[[], bool]) -> None:
    """Looks, with a pause: the proxy's own looks at its engine are all there is to wait for."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
def silent() -> Iterator[str]:
    """A proxy whose only engine has taken a step and answers nothing."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_standing_still()) as url,
    ):
        yield url
