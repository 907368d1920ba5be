"""Builds a cluster, lets agents work, plays a scenario, and takes everything down again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from agentsched.model import AgentschedError, ConfigError, TenantId
from agentsched_bench.cluster import network, targets
from agentsched_bench.cluster.balancer import Balance, make_nginx
from agentsched_bench.cluster.load import Load, LoadOptions
from agentsched_bench.cluster.measure import figures, shares
from agentsched_bench.cluster.processes import AGENTSCHED, Member
from agentsched_bench.cluster.scenarios import CODE, SCENARIOS, Scenario
from agentsched_bench.cluster.share_gap import SHARE, ShareGap, read_journals
from agentsched_bench.ports import free_port
from agentsched_bench.services.chromium import Window, chromium
from agentsched_bench.services.disk import LocalDisk
from agentsched_bench.services.mosquitto import LocalMosquitto
from agentsched_bench.services.postgres import LocalPostgres
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.trace import group_programs, read_trace

Target = Literal["agentsched", "vllm-router", "litellm"]
SAMPLE: Final = Path(__file__).parent.parent / "workload" / "samples" / "sample.jsonl.gz"
_PROGRAMS: Final = {
    "vllm-router": ("AGENTSCHED_VLLM_ROUTER", ".venv-peers/bin/vllm-router"),
    "litellm": ("AGENTSCHED_LITELLM", ".venv-litellm/bin/litellm"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """A cluster and its load. `calm_s`: how long before the scenario begins."""

    target: Target = "agentsched"
    balance: Balance = "round-robin"
    replicas: int = 2
    engines: int = 2
    has_bus: bool = True
    has_store: bool = True
    engine_kind: Literal["sim", "vllm"] = "sim"
    profile: str = "agentsched"
    speed: float = 8.0
    blocks: int = 2_000
    agents: int = 12
    seconds: float = 24.0
    calm_s: float = 6.0
    trace: Path = SAMPLE
    scale_tokens: float = 16.0
    steps_max: int = 8
    ids_every: int = 2
    #: Three agents of four are one tenant's, so that equal shares take a scheduler; no burst and
    #: no price on memory, so that how far they move apart is seen.
    is_greedy: bool = False
    #: Of the replicas of ours, beside the usual.
    settings: dict[str, object] = field(default_factory=dict)
    #: A checkout of another version, for the scenario that upgrades from it.
    old_tree: Path | None = None
    logs: Path | None = None
    #: Where pictures of a dashboard go, taken of the last replica while the first one is away.
    pictures: Path | None = None


@dataclass(slots=True, kw_only=True)
class Cluster:
    """The running cluster."""

    options: ClusterOptions
    folder: Path
    engines: list[Member] = field(default_factory=list)
    replicas: list[Member] = field(default_factory=list)
    front: Member | None = None
    postgres: LocalPostgres | None = None
    broker: LocalMosquitto | None = None
    network: network.Network | None = None
    #: PostgreSQL's, where the scenario does something to it.
    disk: LocalDisk | None = None
    store: str = ""
    now: Callable[[], float] = lambda: 0.0
    marks: list[tuple[float, str]] = field(default_factory=list)

    window: Window | None = None

    def mark(self, what: str) -> None:
        self.marks.append((round(self.now(), 2), what))

    async def look(self) -> None:
        """Pictures of the dashboard of the last replica."""
        folder = self.options.pictures
        if self.window is None or folder is None:
            return
        for page in ("overview", "tenants"):
            wanted = ".banner.warn" if self.options.has_bus else ".link-live"
            await self.window.show(page, wanted=wanted)
            await self.window.take(folder / f"{page}.png")
        await self.window.show("overview")

    async def reload(self, replica: Member, number: int) -> None:
        file = self.folder / f"{replica.name}.toml"
        text = file.read_text().replace('profile = "fcfs"\n', "")
        profile = 'profile = "fcfs"\n' if number % 2 else ""
        file.write_text(profile + text)
        replica.signal(signal.SIGHUP)

    async def migrate(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *AGENTSCHED, "db", "upgrade", "--url", self.store
        )
        if await asyncio.wait_for(process.wait(), 60):
            raise AgentschedError("`agentsched db upgrade` failed")


async def run_scenario(name: str, options: ClusterOptions) -> dict[str, Any]:
    """Play one scenario; its figures.

    Raises:
        ConfigError: there is no such scenario, or it is not for this target.
        AgentschedError: something of the cluster is not installed, or does not start.
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise ConfigError(f"no scenario {name!r} (there are {', '.join(SCENARIOS)})")
    if options.target != "agentsched" and not scenario.is_common:
        raise ConfigError(f"{name} is not for {options.target}")
    if "old tree" in scenario.needs and options.old_tree is None:
        raise ConfigError(f"{name} takes --old-tree")
    async with cluster(scenario, options) as stage:
        return await _play(stage, scenario, options)


async def _play(stage: Cluster, scenario: Scenario, options: ClusterOptions) -> dict[str, Any]:
    assert stage.front is not None
    model = "tiny" if options.engine_kind == "vllm" else "sim"
    load = Load(
        plans(options),
        LoadOptions(
            url=stage.front.url,
            model=model,
            agents=options.agents,
            seconds=options.seconds,
            ids_every=options.ids_every,
            tenants=("red", "red", "red", "blue") if options.is_greedy else ("red", "blue"),
        ),
    )
    load.until = float("inf")
    working = asyncio.create_task(load.run(), name="load")
    try:
        stage.now = load.now
        await asyncio.sleep(options.calm_s)
        await scenario.deed(stage)
        # What comes after is looked at for as long as what was before.
        load.until = max(options.seconds, load.now() + options.calm_s)
        seen = await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    is_ours = options.target == "agentsched"
    result = {
        "scenario": scenario.name,
        "target": options.target,
        "balance": options.balance,
        "engine": options.engine_kind,
        "agents": options.agents,
        "is_greedy": options.is_greedy,
        "has_bus": options.has_bus,
        "has_store": options.has_store,
        "settings": options.settings,
        "marks": stage.marks,
        **figures(seen, faults=stage.marks, knows_programs=is_ours),
    }
    if stage.marks:
        first, last = stage.marks[0][0], stage.marks[-1][0]
        result["shares"] = {
            "before": shares(seen.calls, begin=0.0, end=first),
            "during": shares(seen.calls, begin=first, end=last),
            "after": shares(seen.calls, begin=last, end=float("inf")),
        }
    if is_ours:
        result["replicas"] = [await _asked(replica) for replica in stage.replicas]
        if options.is_greedy and options.has_store:
            began_ns = time.time_ns() - round(load.now() * 1e9)
            result["gap"] = await _gap(stage, began_ns=began_ns)
    return result


async def _gap(stage: Cluster, *, began_ns: int) -> dict[str, Any]:
    """How far shares moved apart, from the journals that the replicas end with."""
    for replica in stage.replicas:
        replica.signal(signal.SIGTERM)
    await asyncio.gather(*(replica.ended() for replica in stage.replicas))
    lives = {replica.name: replica.lives for replica in stage.replicas}
    journals = await read_journals(stage.store, lives=lives)
    tenants = [TenantId(name) for name in targets.TENANTS]
    gap = await asyncio.to_thread(ShareGap(journals=journals, tenants=tenants).run)
    return gap.told(since=began_ns, marks=stage.marks)


async def _asked(replica: Member) -> dict[str, float]:
    """What a replica's own counters say."""
    import httpx

    async with httpx.AsyncClient(timeout=10) as client:
        text = (await client.get(replica.url + "/metrics")).text
    wanted = ("agentsched_shared_turns_total", "agentsched_orphan_requests_total")
    found = {}
    for line in text.splitlines():
        if line.startswith(wanted):
            name, _, value = line.rpartition(" ")
            found[name.removeprefix("agentsched_")] = float(value)
    return found


def plans(options: ClusterOptions) -> list[PlannedProgram]:
    """What agents do, from the recordings of the options."""
    recordings = list(read_trace(options.trace))
    shape = ShapeOptions(
        scale_tokens=options.scale_tokens, scale_time=10.0, steps_max=options.steps_max
    )
    shared = SharedPrompts.learn(recordings)
    return plan_programs(group_programs(recordings), shape, shared=shared)


@contextlib.asynccontextmanager
async def cluster(scenario: Scenario, options: ClusterOptions) -> AsyncIterator[Cluster]:
    """A cluster that runs while inside, with what the scenario needs."""
    async with contextlib.AsyncExitStack() as stack:
        folder = options.logs
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="as-cluster-")))
        folder.mkdir(parents=True, exist_ok=True)
        stage = Cluster(options=options, folder=folder)
        if "network" in scenario.needs:
            stage.network = stack.enter_context(network.network(1))
        if "disk" in scenario.needs:
            stage.disk = stack.enter_context(LocalDisk(mib=512))
        await _start_engines(stage, stack)
        if options.target == "agentsched":
            _start_services(stage, stack)
        make = _maker(stage)
        stage.replicas = [make(number) for number in range(options.replicas)]
        for replica in stage.replicas:
            stack.callback(replica.close)
            if "old tree" in scenario.needs:
                replica.environment[CODE] = _path_of(options.old_tree)
        await asyncio.gather(*(replica.start() for replica in stage.replicas))
        servers = [replica.url.removeprefix("http://") for replica in stage.replicas]
        stage.front = make_nginx(servers, folder=folder, balance=options.balance)
        stack.callback(stage.front.close)
        await stage.front.start()
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            browser = await stack.enter_async_context(chromium())
            stage.window = await Window.opened(browser, stage.replicas[-1].url)
        yield stage


async def _start_engines(stage: Cluster, stack: contextlib.AsyncExitStack) -> None:
    options = stage.options
    for number in range(options.engines):
        inside = stage.network if number == 0 else None
        port = free_port()
        host = inside.host if inside is not None else "127.0.0.1"
        command = [*AGENTSCHED, "engine", options.engine_kind, "--host", host, "--port", str(port)]
        if options.engine_kind == "sim":
            command += ["--preset", "cpu-2core", "--speed", str(options.speed)]
        command += ["--blocks", str(options.blocks)]
        engine = Member(
            f"engine-{number}",
            command,
            port=port,
            folder=stage.folder,
            ready="/health",
            host=host,
            prefix=inside.prefix if inside is not None else (),
            stop_s=20.0 if options.engine_kind == "vllm" else 0.0,
            start_s=300.0,
        )
        stack.callback(engine.close)
        stage.engines.append(engine)
    await asyncio.gather(*(engine.start() for engine in stage.engines))


def _start_services(stage: Cluster, stack: contextlib.AsyncExitStack) -> None:
    if stage.options.has_store:
        where = stage.disk.folder if stage.disk is not None else None
        stage.postgres = stack.enter_context(LocalPostgres(where=where))
        stage.store = stage.postgres.create("cluster")
    if stage.options.has_bus:
        stage.broker = stack.enter_context(LocalMosquitto())


def _maker(stage: Cluster) -> Callable[[int], Member]:
    options = stage.options
    place = targets.Place(
        folder=stage.folder,
        engines=[engine.url for engine in stage.engines],
        model="tiny" if options.engine_kind == "vllm" else "sim",
        store=stage.store,
        broker=stage.broker.url if stage.broker is not None else "",
        settings={
            "profile": options.profile,
            **({"policies": {"share": SHARE}} if options.is_greedy else {}),
            **options.settings,
        },
    )
    match options.target:
        case "agentsched":
            return partial(targets.agentsched, place)
        case "vllm-router":
            return partial(targets.vllm_router, place, program=_program(options.target))
        case "litellm":
            return partial(targets.litellm, place, program=_program(options.target))


def _path_of(tree: Path | None) -> str:
    """Where Python finds the packages of a checkout."""
    assert tree is not None
    roots = (".", "graphs", "policies", "adapters", "bench")
    return os.pathsep.join(str((tree / root).resolve()) for root in roots)


def _program(target: str) -> str:
    variable, usual = _PROGRAMS[target]
    program = Path(os.environ.get(variable, usual))
    if not program.exists():
        raise AgentschedError(f"{target} is not installed ({program}; or set {variable})")
    return str(program.absolute())
