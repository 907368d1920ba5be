"""One run: a proxy, its engines and its agents under a seed's faults, and what must hold.

    outcome = run(seed)
    assert not outcome.violations

The proxy is the production code from the listener to the engines' connections. The same seed and
commit give the same run: `outcome.digest` covers every turn of the scheduler, every end of a call
and every fault.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from aiohttp import web_app

from agentsched.compose import journal_header
from agentsched.config import Config
from agentsched.kernel import JournalEntry, JournalError, decode, encode, encode_header
from agentsched.model import (
    EngineId,
    Nanos,
    PeerReported,
    ServedElsewhere,
    StepArrived,
    TenantId,
    in_seconds,
)
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.journal_file import JournalFile, WholeLines
from agentsched.proxy.serve import running
from agentsched_bench.chaos.client import FAULTY, Agent, Ends
from agentsched_bench.chaos.engine import SimulatedEngine
from agentsched_bench.chaos.faults import CALM, STORM, Faults, Weather
from agentsched_bench.chaos.invariants import Witness, nothing_left
from agentsched_bench.chaos.plugin import SimulatedPlugin
from agentsched_bench.chaos.shares import SHARE, shares_told
from agentsched_bench.chaos.virtual import (
    VirtualClock,
    VirtualLoop,
    no_other_clock,
    seeded_ids,
)

#: After the last call: longer than anything that may still be waited for.
_SETTLE_S: Final = 90.0
_TENANTS: Final = ("blue", "green", "red")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a run is."""

    agents: int = 8
    turns: int = 5
    engines: int = 3
    profile: str = "agentsched"
    #: Whether tenants' shares are held against their bound: one step at each engine, so that all
    #: tenants wait, and nobody changes policies or serves tenants elsewhere meanwhile.
    has_shares: bool = False


def shape_of(seed: int, *, profile: str = "agentsched") -> Shape:
    """The usual shape of a seed: in one of four runs shares are watched."""
    if profile == "agentsched" and seed % 4 == 3:
        return Shape(agents=16, turns=4, has_shares=True)
    return Shape(profile=profile)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a run."""

    seed: int
    digest: str = ""
    violations: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    #: What engines were asked of pins, and what came of it.
    pins: Counter[str] = field(default_factory=Counter)
    #: Times in which two tenants waited, and turns at which their shares were compared.
    share_windows: int = 0
    share_turns: int = 0
    turns: int = 0
    virtual_s: float = 0.0
    longest_s: float = 0.0


class _Disk:
    """A file that takes everything; while it is full, a part of what it is given."""

    def __init__(self) -> None:
        self.is_full = False
        self.data = bytearray()
        self._at = 0

    def write(self, data: memoryview) -> int:
        taken = data[: len(data) // 2] if self.is_full else data
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += taken
        return len(taken)

    def seek(self, offset: int) -> None:
        """Only ever to take back what was written from there."""
        self._at = offset

    def truncate(self) -> None:
        del self.data[self._at :]

    def close(self) -> None:
        """Nothing is held."""


class _Journal(JournalFile):
    """The production journal on a simulated disk."""

    def __init__(self, disk: _Disk, *, header: bytes) -> None:
        super().__init__(Path("journal.ndjson"), header=header, backlog_max=500)
        self._disk = disk

    def _open(self) -> WholeLines:
        lines = WholeLines(self._disk)  # type: ignore[arg-type]
        lines.write(self._header + b"\n")
        return lines


def _is_journal(data: bytes) -> bool:
    """Whether all lines are whole, and in order: gaps are what a full disk leaves."""
    _, *lines = data.splitlines()
    try:
        told = [decode(line).seq for line in lines]
    except JournalError:
        return False
    return data.endswith(b"\n") and all(a < b for a, b in pairwise(told))


class _Broken:
    """A sink whose far end is gone: it raises now and then."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.is_gone = False

    def write(self, entry: JournalEntry) -> None:
        if self.is_gone and entry.seq % 7 == 0:
            self._faults.counts["sink_raised"] += 1
            raise ConnectionError("the store is gone")


class _Log(logging.Handler):
    """Errors that production code logged: each is a defect, but for those that we cause."""

    _OURS = ("a journal sink failed", "the journal cannot be written")

    def __init__(self, violations: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._violations = violations

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith(self._OURS):
            cause = repr(record.exc_info[1]) if record.exc_info else ""
            self._violations.append(f"logged: {text} {cause}".strip())


def settings(shape: Shape, seed: int) -> dict[str, Any]:
    """The proxy's configuration: limits small enough to be met, other ones for each seed."""
    # Prompts here are too small for pins to pay; in two of three runs all pauses have one.
    policies: dict[str, Any] = {"pin": {"name": "fixed", "params": {"ttl_s": 5.0}}}
    policies = policies if seed % 3 else {}
    return {
        "port": 0,
        "profile": shape.profile,
        "engines": [
            {"url": f"http://engine-{n}:8000", "id": f"e{n}", "kind": ("auto", "vllm")[n % 2]}
            for n in range(shape.engines)
        ],
        "http": {
            "header_timeout": "10s",
            "body_timeout": "15s",
            "write_timeout": "10s",
            "keepalive_timeout": "20s",
            "keep_alive": {} if seed % 2 else "2s",
        },
        "upstream": {
            "connect_timeout": "2s",
            "first_byte_timeout": "20s",
            "idle_timeout": "6s",
            "probe_interval": "1s",
            "probe_timeout": "2s",
            "trial_timeout": "10s",
        },
        "limits": {
            "max_wait": ("5s", "20s")[seed % 2],
            "engine_wait_max": "4s",
            "running_steps_per_engine_max": 1 if shape.has_shares else (2, 4, 64)[seed % 3],
            "ready_steps_max": 1_000 if shape.has_shares else (3, 1_000)[seed // 2 % 2],
        },
        "policies": policies | ({"share": SHARE} if shape.has_shares else {}),
        "identity": {"secret": "simulated"},
        "admin_key": "key",
    }


def deadline_s(config: Config) -> float:
    """How long a call may take at most, from the limits of the configuration."""
    http, upstream = config.http, config.upstream
    limits = config.limits.to_limits()
    attempt = upstream.connect_timeout + upstream.first_byte_timeout + upstream.idle_timeout
    waits = limits.wait_ns_max + limits.engine_wait_ns_max
    total = http.body_timeout + (1 + limits.retries_max) * (attempt + waits)
    # A stream's pieces each come within the idle timeout; whole answers take seconds here.
    return in_seconds(Nanos(total)) + 16 * in_seconds(upstream.idle_timeout) + 40.0


class World:
    """The parts of one run."""

    def __init__(self, loop: VirtualLoop, seed: int, shape: Shape, outcome: Outcome) -> None:
        self.loop = loop
        self.faults = loop.faults
        if shape.has_shares:
            calmer = replace(self.faults.weather, peers_every_s=0.0, verbs_every_s=0.0)
            self.faults.weather = calmer
        self.shape = shape
        self.outcome = outcome
        self.config = Config(**settings(shape, seed))
        self.engines = [
            SimulatedEngine(
                f"engine-{n}",
                self.faults,
                slots=4,
                # In two of three runs a pool that few conversations fill, so that some are pinned.
                blocks=8 if seed % 3 else 4_096,
                has_tools=True,
                # The first is stock, as in a fleet that is being moved over.
                plugin=SimulatedPlugin(self.faults) if n else None,
            )
            for n in range(shape.engines)
        ]
        self.disk = _Disk()
        self.sink = _Broken(self.faults)
        self.ends = Ends()
        self.witness = Witness(outcome.violations)

    async def run(self) -> None:
        """From the first engine's start to the last check."""
        for engine in self.engines:
            await engine.start()
        header = encode_header(journal_header(self.config.scheduler()))
        async with (
            _Journal(self.disk, header=header) as journal,
            running(
                self.config,
                sinks=[self.witness, journal, self.sink],
                clock=VirtualClock(self.loop),
            ) as (gateway, url),
        ):
            self.witness.watch(gateway)
            await self._live(gateway, int(url.rpartition(":")[2]))
            nothing_left(gateway, self.engines, self.outcome.violations)
        if not _is_journal(bytes(self.disk.data)):
            self.outcome.violations.append("the journal on disk cannot be read")
        await asyncio.sleep(1.0)
        for engine in self.engines:
            await engine.crash()
        await asyncio.sleep(1.0)
        self._leaks()

    async def _live(self, gateway: Gateway, port: int) -> None:
        agents = [
            Agent(
                f"p{n}",
                port=port,
                tenant=_TENANTS[n % len(_TENANTS)],
                faults=self.faults,
                ends=self.ends,
                deadline_s=deadline_s(self.config),
            )
            for n in range(self.shape.agents)
        ]
        storms = [asyncio.ensure_future(storm) for storm in self._storms(gateway)]
        await asyncio.gather(*(agent.run(self.shape.turns) for agent in agents))
        self.faults.weather = CALM
        for storm in storms:
            storm.cancel()
        await asyncio.gather(*storms, return_exceptions=True)
        self._clear_up()
        for engine in self.engines:
            if not engine.is_up:
                await engine.start()
        await asyncio.sleep(_SETTLE_S)

    def _clear_up(self) -> None:
        self.disk.is_full = self.sink.is_gone = False
        for engine in self.engines:
            engine.slowness, engine.is_sick = 1.0, False

    def _storms(self, gateway: Gateway) -> list[Awaitable[None]]:
        return [
            self._again("crash_every_s", self._crash),
            self._again("slow_engine_every_s", self._slow),
            self._again("sick_probe_every_s", self._sick),
            self._again("pause_every_s", self._pause),
            self._again("disk_full_every_s", self._disk_full),
            self._again("peers_every_s", lambda: self._peers(gateway)),
            self._again("verbs_every_s", lambda: self._verbs(gateway)),
        ]

    async def _again(self, kind: str, strike: Callable[[], Awaitable[None]]) -> None:
        mean = getattr(self.faults.weather, kind)
        while mean:
            await asyncio.sleep(self.faults.span(mean))
            self.faults.counts[kind.removesuffix("_every_s")] += 1
            await strike()

    async def _crash(self) -> None:
        engine = self.faults.random.choice(self.engines)
        await engine.crash()
        await asyncio.sleep(self.faults.random.uniform(0.1, 12.0))
        if not engine.is_up:
            await engine.start()

    async def _slow(self) -> None:
        engine = self.faults.random.choice(self.engines)
        engine.slowness = self.faults.random.choice((5.0, 40.0))
        await asyncio.sleep(self.faults.random.uniform(1.0, 10.0))
        engine.slowness = 1.0

    async def _sick(self) -> None:
        engine = self.faults.random.choice(self.engines)
        engine.is_sick = True
        await asyncio.sleep(self.faults.random.uniform(0.5, 8.0))
        engine.is_sick = False

    async def _pause(self) -> None:
        # The process is stopped, or its machine sleeps: all clocks jump, nothing ran.
        self.loop.pass_time(self.faults.random.choice((0.5, 3.0, 30.0)))

    async def _disk_full(self) -> None:
        self.disk.is_full = self.sink.is_gone = True
        await asyncio.sleep(self.faults.random.uniform(0.5, 10.0))
        self.disk.is_full = self.sink.is_gone = False

    async def _peers(self, gateway: Gateway) -> None:
        """The broker's messages: late, repeated, from a replica that comes and goes."""
        random = self.faults.random
        engine = EngineId(f"e{random.randrange(self.shape.engines)}")
        steps = random.choice((0, 0, 3, 50))
        said = PeerReported(engine=engine, peer="r2", running_steps=steps, resident_tokens=steps)
        for _ in range(random.randrange(1, 3)):
            gateway.host.feed(said)
        served = ServedElsewhere(
            tenant=TenantId(random.choice(_TENANTS)),
            uncached_tokens=random.randrange(5_000),
            output_tokens=random.randrange(500),
        )
        gateway.host.feed(served)

    async def _verbs(self, gateway: Gateway) -> None:
        """An operator at work: policies and limits change under load."""
        profile = self.faults.random.choice(("agentsched", "fcfs", "continuum", "passthrough"))
        body = b'{"profile": "%s"}' % profile.encode()
        port = next(p for host, p in self.loop.listeners if host == "127.0.0.1")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /agentsched/v1/policies HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        head += b"authorization: Bearer key\r\n"
        head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        try:
            writer.write(head + body)
            await asyncio.sleep(2.0)
        finally:
            writer.transport.abort()

    def _leaks(self) -> None:
        here = asyncio.current_task()
        tasks = sorted(task.get_name() for task in asyncio.all_tasks() if task is not here)
        if tasks:
            self.outcome.violations.append(f"tasks are left: {tasks}")
        if self.loop.wires:
            self.outcome.violations.append(f"{len(self.loop.wires)} connections are left")


def run(seed: int, *, shape: Shape | None = None, weather: Weather = STORM) -> Outcome:
    """One run on a loop of its own; nothing outside is touched."""
    shape = shape or Shape()
    outcome = Outcome(seed=seed)
    faults = Faults(seed, weather)
    loop = VirtualLoop(faults)
    world: World | None = None

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        cause = context.get("exception")
        outcome.violations.append(f"loop: {context.get('message')} {cause!r}")

    async def main() -> None:
        nonlocal world
        loop.set_exception_handler(complain)
        world = World(loop, seed, shape, outcome)
        await world.run()

    with (
        seeded_ids(seed),
        no_other_clock(loop),
        _listening(outcome.violations),
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):
        began = loop.time()
        runner.run(main())
        outcome.virtual_s = loop.time() - began
    assert world is not None
    # The library remembers the handlers of every application that a process ever made.
    web_app._cached_build_middleware.cache_clear()
    return _sum_up(world, outcome)


def _sum_up(world: World, outcome: Outcome) -> Outcome:
    digest = hashlib.sha256()
    for entry in world.witness.entries:
        digest.update(encode(entry))
    for noted in world.ends.log:
        digest.update(repr(noted).encode())
    digest.update(repr(sorted(world.faults.counts.items())).encode())
    outcome.digest = digest.hexdigest()
    outcome.ends, outcome.faults = world.ends.counts, world.faults.counts
    outcome.kinds = world.ends.kinds
    for engine in world.engines:
        outcome.pins.update(engine.plugin.counts if engine.plugin is not None else {})
    outcome.turns = len(world.witness.entries)
    outcome.longest_s = world.ends.longest_s
    for call, end, took in world.ends.log:
        if end in FAULTY:
            outcome.violations.append(f"call {call} ended {end} after {took} s")
    if world.shape.has_shares:
        _judge_shares(world, outcome)
    arrived = sum(isinstance(e.event, StepArrived) for e in world.witness.entries)
    if not arrived:
        outcome.violations.append("no step arrived")
    return outcome


def _judge_shares(world: World, outcome: Outcome) -> None:
    told = shares_told(world.witness.entries, world.config, _TENANTS)
    outcome.share_windows, outcome.share_turns = told["windows"], told["watched_turns"]
    if told["windows_exceeded"]:
        outcome.violations.append(f"shares moved too far apart: {told['spans']['all']['nearest']}")
    if told["entries_missing"] or told["entries_unlike"]:
        outcome.violations.append("the journal does not give the same decisions again")


class _listening:  # a context manager that reads as a phrase
    """Hear what is logged, and let none of it out."""

    def __init__(self, violations: list[str]) -> None:
        self._handler = _Log(violations)
        self._names = ("agentsched", "agentsched_adapters", "aiohttp", "asyncio")
        self._before: list[tuple[bool, int]] = []

    def __enter__(self) -> None:
        for name in self._names:
            logger = logging.getLogger(name)
            self._before.append((logger.propagate, logger.level))
            logger.propagate = False
            logger.setLevel(logging.ERROR)
            logger.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        for name, (propagates, level) in zip(self._names, self._before, strict=True):
            logger = logging.getLogger(name)
            logger.propagate = propagates
            logger.setLevel(level)
            logger.removeHandler(self._handler)
