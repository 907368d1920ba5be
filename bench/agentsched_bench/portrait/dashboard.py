"""Takes the documentation's pictures of the dashboard, of recorded agents at work.

    python -m agentsched_bench.portrait.dashboard TRACE [--out docs/images] [--seconds 45]

Starts two embedded engines and a proxy in this process, lets agents of three tenants replay the
recordings with their tool calls and sub-agents, and photographs each page while they work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx

from agentsched.config import Config
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.portrait.replay import Scale, replay_program
from agentsched_bench.services.chromium import Window, chromium
from agentsched_bench.workload.generate import sample_path
from agentsched_bench.workload.trace import RecordedProgram, group_programs, read_trace

_TENANTS: Final = {"web": 1.0, "research": 2.0, "batch": 0.5}
_ENGINES: Final = ("gpu-1", "gpu-2")
_BLOCKS: Final = 1_500
_AGENTS: Final = 18
_APART_S: Final = 0.4
_SCALE: Final = Scale(tokens=8.0, time=2.0, pause_s_max=12.0, steps_max=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One picture: its file, what page it shows, and how wide and high the window is."""

    name: str
    page: str
    size: tuple[int, int]
    wanted: str = ".link-live"
    is_dark: bool = False
    is_phone: bool = False

    @property
    def file(self) -> str:
        """Its name in docs/images."""
        return f"dashboard-{self.name}.png"


#: `{program}` stands for the program that has done most, sub-agents counted first.
VIEWS: Final = (
    View(name="programs", page="overview", size=(1280, 860), wanted=".rows .row"),
    View(name="engines", page="engines", size=(1280, 900), wanted=".map svg", is_dark=True),
    View(name="tenants", page="tenants", size=(1280, 620), wanted="td .tenant"),
    View(name="program", page="programs/{program}", size=(1280, 1000), wanted=".graph svg"),
    View(name="phone", page="overview", size=(390, 844), wanted=".rows .row", is_phone=True),
)


@dataclass(slots=True, kw_only=True)
class Office:
    """Agents at work; `is_open` false: each ends with the program that it is at."""

    url: str
    programs: Sequence[RecordedProgram]
    is_open: bool = True
    _numbers: count[int] = field(default_factory=count)

    async def agent(self, number: int) -> None:
        await asyncio.sleep(number * _APART_S)
        tenant = tuple(_TENANTS)[number % len(_TENANTS)]
        while self.is_open:
            program = self.programs[next(self._numbers) % len(self.programs)]
            await replay_program(self.url, program, _SCALE, tenant=tenant)


@contextlib.asynccontextmanager
async def _proxy() -> AsyncIterator[str]:
    """A proxy on two engines in this process; its URL."""
    sizes = replace(EngineConfig.from_preset(preset("cpu-2core")), blocks=_BLOCKS)
    async with contextlib.AsyncExitStack() as stack:
        described: list[dict[str, Any]] = []
        for name in _ENGINES:
            engine = await stack.enter_async_context(running_engine(ServerConfig(engine=sizes)))
            described.append({"url": engine.url, "id": name})
        tenants = {name: {"weight": weight} for name, weight in _TENANTS.items()}
        settings: dict[str, Any] = {"port": 0, "engines": described, "tenants": tenants}
        _, url = await stack.enter_async_context(running(Config(**settings)))
        yield url


async def _photograph(url: str, out: Path) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        rows = (await client.get("/agentsched/v1/overview")).json()["programs"]
    busiest = max(rows, key=lambda row: (row["conversations"], row["steps"], row["program"]))
    async with chromium() as browser:
        for view in VIEWS:
            width, height = view.size
            window = await Window.opened(
                browser,
                url,
                width=width,
                height=height,
                is_dark=view.is_dark,
                is_phone=view.is_phone,
            )
            page = view.page.format(program=busiest["program"].replace("/", "%2F"))
            await window.show(page, wanted=view.wanted)
            await window.take(out / view.file)
            print(out / view.file, flush=True)


async def portray(programs: Sequence[RecordedProgram], *, out: Path, seconds: float) -> None:
    """Let agents work for so long, then take all pictures while they go on."""
    async with _proxy() as url:
        office = Office(url=url, programs=programs)
        agents = [asyncio.create_task(office.agent(n), name=f"agent {n}") for n in range(_AGENTS)]
        try:
            await asyncio.sleep(seconds)
            await _photograph(url, out)
        finally:
            office.is_open = False
            for agent in agents:
                agent.cancel()
            ended = await asyncio.gather(*agents, return_exceptions=True)
        failures = [e for e in ended if isinstance(e, Exception)]
        if failures:
            raise failures[0]


def main(arguments: list[str] | None = None) -> int:
    """Replay and photograph; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="agentsched_bench.portrait.dashboard", description=__doc__
    )
    parser.add_argument("trace", type=Path, nargs="?", default=sample_path())
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--seconds", type=float, default=45.0)
    chosen = parser.parse_args(arguments)
    # Those with sub-agents first: their graphs have more to show.
    programs = sorted(group_programs(read_trace(chosen.trace)), key=lambda p: -len(p.children))
    chosen.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(portray(programs, out=chosen.out, seconds=chosen.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
