"""What is done to a cluster while it is under load, step by step."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from agentsched_bench.cluster.network import Network
from agentsched_bench.cluster.processes import Member
from agentsched_bench.services.disk import LocalDisk
from agentsched_bench.services.mosquitto import LocalMosquitto
from agentsched_bench.services.postgres import LocalPostgres

#: How long things are away, and how long a restarted replica is left alone.
AWAY_S: Final = 4.0
#: The variable by which replicas run another version of our code.
CODE: Final = "PYTHONPATH"
_CALM_S: Final = 1.0
#: What a write waits for on a slow disk.
_WRITE_S: Final = 0.5


class Stage(Protocol):
    """What a scenario may lay hands on."""

    replicas: list[Member]
    engines: list[Member]
    postgres: LocalPostgres | None
    broker: LocalMosquitto | None
    network: Network | None
    disk: LocalDisk | None

    def mark(self, what: str) -> None:
        """Note that something is done now."""

    async def look(self) -> None:
        """Something is away now: take pictures of it, where that is wanted."""

    async def reload(self, replica: Member, number: int) -> None:
        """Change a replica's configuration file and tell it."""

    async def migrate(self) -> None:
        """Run the database's migration beside the replicas."""


Deed = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One story. `needs` names what the cluster must have for it."""

    name: str
    about: str
    deed: Deed
    needs: frozenset[str] = frozenset()
    #: Whether it can be done to any router, so that they can be compared.
    is_common: bool = False


async def nothing(stage: Stage) -> None:
    return


async def _kill_replica(stage: Stage) -> None:
    replica = stage.replicas[0]
    stage.mark("kill -9")
    await replica.kill()
    await asyncio.sleep(AWAY_S)
    await stage.look()
    await replica.start()
    stage.mark("back")


async def _stop_replica(stage: Stage) -> None:
    await _stopped(stage, stage.replicas[0])


async def _rolling_restart(stage: Stage) -> None:
    for replica in stage.replicas:
        stage.mark("SIGTERM")
        replica.signal(signal.SIGTERM)
        await replica.ended()
        await replica.start()
        stage.mark("back")
        await asyncio.sleep(_CALM_S)


async def _upgrade(stage: Stage) -> None:
    """From another version of the code to this one, while clients are served by both."""
    for replica in stage.replicas:
        replica.environment.pop(CODE, None)
    await _rolling_restart(stage)


async def _kill_engine(stage: Stage) -> None:
    engine = stage.engines[0]
    stage.mark("kill -9")
    await engine.kill()
    await asyncio.sleep(AWAY_S)
    await engine.start()
    stage.mark("back")


async def _stop_engine(stage: Stage) -> None:
    await _stopped(stage, stage.engines[0])


async def _cut_engine(stage: Stage) -> None:
    assert stage.network is not None
    stage.mark("cut")
    stage.network.cut()
    try:
        await asyncio.sleep(AWAY_S)
    finally:
        stage.network.heal()
        stage.mark("healed")


async def _kill_broker(stage: Stage) -> None:
    assert stage.broker is not None
    stage.mark("kill -9")
    stage.broker.kill()
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(stage.broker.start)
    stage.mark("back")


async def _kill_store(stage: Stage) -> None:
    assert stage.postgres is not None
    stage.mark("kill -9")
    await asyncio.to_thread(stage.postgres.kill)
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(stage.postgres.start)
    stage.mark("back")


async def _hang_store(stage: Stage) -> None:
    """As a disk does that does not answer: connections stay, nothing comes back."""
    assert stage.postgres is not None
    stage.mark("stop")
    stage.postgres.pause()
    try:
        await asyncio.sleep(AWAY_S)
    finally:
        stage.postgres.go_on()
        stage.mark("continue")


async def _slow_disk(stage: Stage) -> None:
    assert stage.disk is not None
    stage.mark("slow")
    await asyncio.to_thread(stage.disk.slow, _WRITE_S)
    try:
        await asyncio.sleep(2 * AWAY_S)
    finally:
        await asyncio.to_thread(stage.disk.go_on)
        stage.mark("as before")


async def _kill_all_but_engines(stage: Stage) -> None:
    """The broker and the database go together, then a replica: nobody is left to ask."""
    assert stage.postgres is not None
    assert stage.broker is not None
    stage.mark("broker and store killed")
    stage.broker.kill()
    await asyncio.to_thread(stage.postgres.kill)
    await asyncio.sleep(1.0)
    stage.mark("replica killed")
    await stage.replicas[0].kill()
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(stage.postgres.start)
    await asyncio.to_thread(stage.broker.start)
    await stage.replicas[0].start()
    stage.mark("back")


async def _reload(stage: Stage) -> None:
    for number in range(6):
        stage.mark("SIGHUP")
        for replica in stage.replicas:
            await stage.reload(replica, number)
        await asyncio.sleep(_CALM_S)


async def _migrate(stage: Stage) -> None:
    for _ in range(2):
        stage.mark("db upgrade")
        await stage.migrate()
    stage.mark("done")


async def _stopped(stage: Stage, member: Member) -> None:
    stage.mark("SIGSTOP")
    member.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(AWAY_S)
    finally:
        member.signal(signal.SIGCONT)
        stage.mark("SIGCONT")


_STORE: Final = frozenset({"postgres"})
_BUS: Final = frozenset({"broker"})

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="calm", about="nothing happens", deed=nothing, is_common=True),
        Scenario(
            name="replica-kill",
            about="kill -9 one replica, back after 4 s",
            deed=_kill_replica,
            is_common=True,
        ),
        Scenario(
            name="replica-stop",
            about="SIGSTOP one replica for 4 s",
            deed=_stop_replica,
            is_common=True,
        ),
        Scenario(
            name="rolling-restart",
            about="SIGTERM and start again, one replica after the other",
            deed=_rolling_restart,
            is_common=True,
        ),
        Scenario(
            name="engine-kill",
            about="kill -9 one engine, back after 4 s",
            deed=_kill_engine,
            is_common=True,
        ),
        Scenario(
            name="engine-stop",
            about="SIGSTOP one engine for 4 s",
            deed=_stop_engine,
            is_common=True,
        ),
        Scenario(
            name="engine-cut",
            about="the network to one engine is cut for 4 s",
            deed=_cut_engine,
            needs=frozenset({"network"}),
            is_common=True,
        ),
        Scenario(
            name="broker-kill", about="kill -9 mosquitto for 4 s", deed=_kill_broker, needs=_BUS
        ),
        Scenario(
            name="store-kill", about="kill -9 PostgreSQL for 4 s", deed=_kill_store, needs=_STORE
        ),
        Scenario(
            name="store-hang",
            about="PostgreSQL does not answer for 4 s (SIGSTOP, as with a dead disk)",
            deed=_hang_store,
            needs=_STORE,
        ),
        Scenario(
            name="slow-disk",
            about="whatever PostgreSQL writes waits for half a second, for 8 s",
            deed=_slow_disk,
            needs=_STORE | frozenset({"disk"}),
        ),
        Scenario(
            name="everything",
            about="kill -9 of broker and PostgreSQL, then of a replica",
            deed=_kill_all_but_engines,
            needs=_STORE | _BUS,
        ),
        Scenario(
            name="upgrade",
            about="a rolling restart from another version of the code (--old-tree) to this one",
            deed=_upgrade,
            needs=frozenset({"old tree"}),
        ),
        Scenario(name="reload", about="the configuration changes six times", deed=_reload),
        Scenario(
            name="migrate", about="`agentsched db upgrade` twice", deed=_migrate, needs=_STORE
        ),
    )
}
