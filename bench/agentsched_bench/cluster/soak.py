"""Rounds of load and faults on real processes; after each all is quiet, and nothing has grown.

The first replica is only ever stopped and continued, so that one process lives through everything:
its memory, files, threads and tasks are read in the quiet after each round. All others are killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import httpx

from agentsched.model import AgentschedError
from agentsched_bench.cluster.load import HUNG_S, Load, LoadOptions, Seen
from agentsched_bench.cluster.processes import Member
from agentsched_bench.cluster.run import Cluster, ClusterOptions, cluster, plans
from agentsched_bench.cluster.scenarios import Scenario, nothing

#: How long whatever is stopped or killed is away.
_AWAY_S: Final = 3.0
_FAULTS_PER_ROUND: Final = 3
_QUIET_S_MAX: Final = 90.0
_LOOK_EVERY_S: Final = 0.5
#: Programs are forgotten soon, so that quiet is quiet.
_FORGETFUL: Final = {"identity": {"idle_max": "5s"}, "http": {"keepalive_timeout": "5s"}}
#: Gauges that are 0 when all is quiet.
_GAUGES: Final = ("live_requests", "running_steps", "waiting_steps", "programs", "known_programs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the first replica holds while nothing happens."""

    rss_mib: float
    files: int
    threads: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a reading may be over the largest of the first half of rounds."""

    rss_share: float = 0.10
    rss_mib: float = 8.0
    files: int = 8
    threads: int = 4
    tasks: int = 8


async def soak(
    options: ClusterOptions, *, minutes: float, round_s: float = 20.0, bounds: Bounds | None = None
) -> dict[str, Any]:
    """Rounds until the time is used up, three at least; what was done, read, and whether it held.

    Raises:
        AgentschedError: something is not installed, does not start, or never becomes quiet.
    """
    options = replace(options, settings={**_FORGETFUL, **options.settings})
    scenario = Scenario(name="soak", about=__doc__.splitlines()[0], deed=nothing)
    loop = asyncio.get_running_loop()
    until = loop.time() + 60 * minutes
    readings: list[Reading] = []
    rounds: list[dict[str, Any]] = []
    async with cluster(scenario, options) as stage:
        watched = stage.replicas[0]
        number = watched.pid
        faults = cycle(_faults(stage))
        while len(rounds) < 3 or loop.time() < until:
            seen = await _round(stage, list(islice(faults, _FAULTS_PER_ROUND)), seconds=round_s)
            rounds.append(_figures(seen))
            await _quiet(watched)
            readings.append(await _read(watched))
        is_same = watched.is_running and watched.pid == number
    return _verdict(rounds, readings, bounds or Bounds(), is_same=is_same, stage=stage)


Fault = tuple[str, Callable[[], Awaitable[None]]]


def _faults(stage: Cluster) -> list[Fault]:
    """What is done, in turn, the same in each soak."""
    found: list[Fault] = [
        ("replica 0 stopped", lambda: _stopped(stage.replicas[0])),
        ("engine 0 killed", lambda: _killed(stage.engines[0])),
        ("engine 1 stopped", lambda: _stopped(stage.engines[-1])),
    ]
    if len(stage.replicas) > 1:
        found.insert(1, ("replica 1 killed", lambda: _killed(stage.replicas[1])))
    if stage.broker is not None:
        found.append(("broker killed", lambda: _away(stage.broker)))
    if stage.postgres is not None:
        found.append(("store killed", lambda: _away(stage.postgres)))
    return found


async def _stopped(member: Member) -> None:
    member.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(_AWAY_S)
    finally:
        member.signal(signal.SIGCONT)


async def _killed(member: Member) -> None:
    await member.kill()
    await asyncio.sleep(_AWAY_S)
    await member.start()


async def _away(service: Any) -> None:
    await asyncio.to_thread(service.kill)
    await asyncio.sleep(_AWAY_S)
    await asyncio.to_thread(service.start)


async def _round(stage: Cluster, faults: Sequence[Fault], *, seconds: float) -> Seen:
    assert stage.front is not None
    options = LoadOptions(
        url=stage.front.url, model="sim", agents=stage.options.agents, seconds=seconds
    )
    load = Load(plans(stage.options), options)
    load.until = float("inf")
    working = asyncio.create_task(load.run(), name="load")
    try:
        stage.now = load.now
        for name, strike in faults:
            await asyncio.sleep(seconds / (len(faults) + 1))
            stage.mark(name)
            await strike()
        load.until = max(seconds, load.now())
        return await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _quiet(replica: Member) -> None:
    """Wait until it has nothing to do and remembers nobody."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _QUIET_S_MAX
    while busy := {k: v for k, v in (await _gauges(replica)).items() if v and k in _GAUGES}:
        if loop.time() > until:
            raise AgentschedError(f"{replica.name} is never quiet: {busy}")
        await asyncio.sleep(_LOOK_EVERY_S)


async def _gauges(replica: Member) -> dict[str, float]:
    async with httpx.AsyncClient(timeout=10) as client:
        text = (await client.get(replica.url + "/metrics")).text
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("agentsched_"))
    return {name.removeprefix("agentsched_"): float(value) for name, _, value in lines}


async def _read(replica: Member) -> Reading:
    # Twice the keep-alive of idle connections, which count as files and as tasks.
    await asyncio.sleep(10.0)
    tasks = int((await _gauges(replica))["tasks"])
    here = Path(f"/proc/{replica.pid}")
    status = dict(line.split(":", 1) for line in (here / "status").read_text().splitlines())
    return Reading(
        rss_mib=round(int(status["VmRSS"].split()[0]) / 1024, 1),
        files=len(os.listdir(here / "fd")),
        threads=int(status["Threads"]),
        tasks=tasks,
    )


def _figures(seen: Seen) -> dict[str, Any]:
    calls = seen.calls
    failed = [c for c in calls if c.error]
    return {
        "programs": seen.programs,
        "calls": len(calls),
        "failed_whole": sum(not c.streams for c in failed),
        "failed_streams": sum(c.streams for c in failed),
        "hung": sum(c.ended - c.began > HUNG_S for c in calls),
    }


def grown(readings: Sequence[Reading], bounds: Bounds) -> list[str]:
    """What grew: a later half of readings over the most of the first half, in words."""
    half = max(1, len(readings) // 2)
    first, later = readings[:half], readings[half:]
    told: list[str] = []
    if not later:
        return told
    most = max(r.rss_mib for r in first)
    allowed = max(most * (1 + bounds.rss_share), most + bounds.rss_mib)
    # The least of what came later: growth stays, a peak goes.
    least = min(r.rss_mib for r in later[-2:])
    if least > allowed:
        told.append(f"memory: {least} MiB, {most} MiB before")
    for name in ("files", "threads", "tasks"):
        before = max(getattr(r, name) for r in first)
        now = min(getattr(r, name) for r in later[-2:])
        if now > before + getattr(bounds, name):
            told.append(f"{name}: {now}, {before} before")
    return told


def _verdict(
    rounds: list[dict[str, Any]],
    readings: list[Reading],
    bounds: Bounds,
    *,
    is_same: bool,
    stage: Cluster,
) -> dict[str, Any]:
    sums = {key: sum(one[key] for one in rounds) for key in rounds[0]}
    growth = grown(readings, bounds)
    return {
        "holds": is_same and not growth and not sums["hung"] and not sums["failed_whole"],
        "grown": growth,
        "survivor_is_the_same_process": is_same,
        "rounds": len(rounds),
        **sums,
        "faults": [name for _, name in stage.marks],
        "readings": [asdict(reading) for reading in readings],
        "bounds": asdict(bounds),
        "by_round": rounds,
    }
