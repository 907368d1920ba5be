"""Whole processes: a proxy killed under load and started again, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentsched_bench.replay import replay_file
from agentsched_bench.services.postgres import LocalPostgres

AGENTSCHED = Path(sys.executable).parent / "agentsched"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass
class Process:
    """One of our processes, which said where it listens."""

    process: asyncio.subprocess.Process
    url: str

    async def kill(self) -> None:
        """As a crash, or the kernel when memory is short."""
        self.process.kill()
        await self.process.wait()

    async def end(self) -> int:
        self.process.terminate()
        async with asyncio.timeout(30):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def started(log: Path, *arguments: str) -> AsyncIterator[Process]:
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            AGENTSCHED, *arguments, stdout=asyncio.subprocess.PIPE, stderr=file
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        assert " ready on http://" in line, log
        yield Process(process, next(word for word in line.split() if word.startswith("http")))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@dataclass
class Agent:
    """One program: asks, hears, asks on; asks again when it hears nothing."""

    name: str
    headers: dict[str, str]
    api: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    answers: int = 0
    cut: int = 0

    def __post_init__(self) -> None:
        self.messages.append({"role": "user", "content": f"task of {self.name}: " + "do it " * 40})

    async def turn(self, client: httpx.AsyncClient) -> bool:
        """One request; False: the connection broke, and it will be sent again as it is."""
        body = {"model": "sim", "messages": self.messages, "max_tokens": 24}
        try:
            response = await client.post(self.api, json=body, headers=self.headers)
        except httpx.TransportError:
            self.cut += 1
            return False
        assert response.status_code == 200, response.text
        told = response.json()
        if self.api == "/v1/messages":
            text = "".join(block.get("text", "") for block in told["content"])
        else:
            text = told["choices"][0]["message"]["content"]
        self.programs.append(response.headers["x-agentsched-program"])
        self.steps.append(int(response.headers["x-agentsched-step"]))
        self.answers += 1
        self.messages.append({"role": "assistant", "content": text})
        self.messages.append({"role": "user", "content": f"result {self.answers}: go on"})
        return True


def crowd() -> list[Agent]:
    agents = []
    for number in range(4):
        agents.append(Agent(f"chat-{number}", {}, "/v1/chat/completions"))
        agents.append(Agent(f"messages-{number}", {}, "/v1/messages"))
        named = {"x-agentsched-program": f"run-{number}", "x-agentsched-tenant": f"t{number % 2}"}
        agents.append(Agent(f"named-{number}", named, "/v1/chat/completions"))
    return agents


async def play(agents: list[Agent], url: str, *, turns: int) -> None:
    """Every agent takes so many turns; whoever is cut off stops where it is."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def run(agent: Agent) -> None:
            for _ in range(turns):
                if not await agent.turn(client):
                    return

        await asyncio.gather(*(run(agent) for agent in agents))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks bring about."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- requests under way are all there is to wait for
            await asyncio.sleep(0.01)


async def get(url: str, path: str) -> Any:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        return (await client.get(path)).json()


async def usage(url: str) -> dict[str, int]:
    told = await get(url, "/agentsched/v1/tenants")
    return {row["tenant"]: row["steps"] for row in told["tenants"]}


async def shown(url: str, line: str) -> str:
    """Wait until the metrics have this line; all of them."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client, asyncio.timeout(60):
        while True:
            metrics = (await client.get("/metrics")).text
            if line in metrics:
                return metrics


async def settled(url: str) -> None:
    """Wait until the writer has written everything."""
    await shown(url, "agentsched_store_backlog 0.0")


def configured(folder: Path, url: str) -> Path:
    file = folder / "agentsched.toml"
    file.write_text(
        f'[store]\nurl = "{url}"\nreplica = "r1"\nspool = "{folder}/spool"\n'
        'flush_interval = "20ms"\n'
    )
    return file


async def restart_under_load(folder: Path, url: str) -> None:
    config, log = configured(folder, url), folder / "log"
    agents = crowd()
    # So slow that a turn takes several times as long as until its writing.
    async with started(log, "engine", "sim", "--port", "0", "--speed", "3") as engine:
        options = ("--engine", f"e0={engine.url}", "--port", "0", "--config", str(config))
        async with started(log, "serve", *options) as proxy:
            await play(agents, proxy.url, turns=3)
            await settled(proxy.url)
            before = await usage(proxy.url)
            assert before == {"default": 24, "t0": 6, "t1": 6}
            await play(agents, proxy.url, turns=2)
            await settled(proxy.url)
            # Killed in the middle of what they ask next, at the first answer: no client hears a
            # second one before this loop has seen the first.
            load = asyncio.create_task(play(agents, proxy.url, turns=1_000))
            await until(lambda: sum(agent.answers for agent in agents) > 60)
            await proxy.kill()
            await load
        assert all(agent.cut == 1 for agent in agents)
        async with started(log, "serve", *options) as proxy:
            after = await usage(proxy.url)
            # What was answered in the last instants may not have been written yet.
            missing = sum(agent.answers for agent in agents) - sum(after.values())
            assert 0 <= missing <= len(agents)
            assert all(after[tenant] >= steps for tenant, steps in before.items())
            await play(agents, proxy.url, turns=4)
            await settled(proxy.url)
            for agent in agents:
                assert len(set(agent.programs)) == 1, (agent.name, agent.programs)
            programs = Counter(agent.programs[0] for agent in agents)
            assert set(programs.values()) == {1}  # nobody was merged
            for agent in agents:
                # Steps count on; the one whose answer was lost was not counted twice.
                assert agent.steps == sorted(agent.steps), agent.name
                assert agent.steps[-1] - agent.answers in (-1, 0, 1), agent.name
            told = await get(proxy.url, "/agentsched/v1/statistics")
            assert told
            assert await proxy.end() == 0
    await exported(folder, config)


async def exported(folder: Path, config: Path) -> None:
    """The journal over both lives, taken out as a file, replays to the same decisions."""
    file = folder / "journal.ndjson"
    arguments = ("db", "export", "--config", str(config), "-o", str(file))
    process = await asyncio.create_subprocess_exec(AGENTSCHED, *arguments)
    assert await process.wait() == 0
    assert replay_file(file) is None
    numbers = [json.loads(line)["seq"] for line in file.read_text().splitlines()[1:]]
    assert numbers == list(range(len(numbers)))


async def test_sqlite(tmp_path: Path) -> None:
    await restart_under_load(tmp_path, f"sqlite:///{tmp_path}/agentsched.db")


@pytest.mark.services
async def test_postgresql(postgres: LocalPostgres, tmp_path: Path) -> None:
    await restart_under_load(tmp_path, postgres.create("restart"))


@pytest.mark.services
async def test_the_database_is_killed_under_load(
    own_postgres: LocalPostgres, tmp_path: Path
) -> None:
    """No request is lost, the spool heals, and the journal has no gap."""
    config, log = configured(tmp_path, own_postgres.create("killed")), tmp_path / "log"
    agents = crowd()
    async with started(log, "engine", "sim", "--port", "0", "--speed", "20") as engine:
        options = ("--engine", f"e0={engine.url}", "--port", "0", "--config", str(config))
        async with started(log, "serve", *options) as proxy:
            load = asyncio.create_task(play(agents, proxy.url, turns=12))
            await until(lambda: sum(agent.answers for agent in agents) >= 30)
            own_postgres.kill()
            await until(lambda: sum(agent.answers for agent in agents) >= 90)
            await asyncio.to_thread(own_postgres.start)
            await load
            assert [agent.answers for agent in agents] == [12] * len(agents)
            metrics = await shown(proxy.url, "agentsched_store_spool_bytes 0.0")
            assert 'agentsched_store_records_total{outcome="dropped"} 0.0' in metrics
            assert 'agentsched_store_records_total{outcome="spooled"} 0.0' not in metrics
            assert await proxy.end() == 0
    await exported(tmp_path, config)


async def test_a_database_that_is_not_there_stops_nobody(tmp_path: Path) -> None:
    log = tmp_path / "log"
    database = tmp_path / "agentsched.db"
    database.write_bytes(b"not a database " * 1_000)
    config = configured(tmp_path, f"sqlite:///{database}")
    async with started(log, "engine", "sim", "--port", "0", "--speed", "20") as engine:
        options = ("--engine", f"e0={engine.url}", "--port", "0", "--config", str(config))
        async with started(log, "serve", *options) as proxy:
            agents = crowd()[:2]
            await play(agents, proxy.url, turns=2)
            assert [agent.answers for agent in agents] == [2, 2]
            await shown(proxy.url, "agentsched_store_up 0.0")
            assert await proxy.end() == 0
    said = log.read_text()
    assert "the file is damaged: restore" in said or "the file is damaged, or" in said
    assert os.listdir(tmp_path / "spool")
