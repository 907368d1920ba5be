"""What this proxy tells others of itself, and that it needs nobody who listens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from proxy_upstream import ANSWER, Exchange, Upstream
from shorthand import answered, arrived, at, prefix, reported

from agentsched.bus.messages import EngineMessage
from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.config import Config
from agentsched.kernel import Scheduler
from agentsched.model import (
    ConfigError,
    Dispatch,
    EngineId,
    PeerReported,
    ProgramClosed,
    ProgramId,
    StepStarted,
    TenantId,
)
from agentsched.proxy.on_bus import _state, joined

#: Nobody listens there.
NOBODY = "mqtt://user:p%40ss@127.0.0.1:1"


def configured(**bus: Any) -> Config:
    return Config(bus=bus)


async def test_without_a_broker_there_is_no_bus(proxy: Any) -> None:
    async with joined(configured(), proxy.gateway, url=proxy.url) as bus:
        assert bus is None
    assert proxy.gateway.bus is None


async def test_a_broker_that_is_away_keeps_nobody_waiting(proxy: Any) -> None:
    config = configured(url=NOBODY, replica="r1")
    async with joined(config, proxy.gateway, url=proxy.url) as bus:
        assert bus is not None
        assert proxy.gateway.bus is bus
        assert (await proxy.chat()).status_code == 200
        assert not bus.connection.is_up.is_set()
        assert "agentsched_bus" in (await proxy.client.get("/metrics")).text
    assert proxy.gateway.bus is None
    assert "agentsched_bus" not in (await proxy.client.get("/metrics")).text


async def cut_off(exchange: Exchange) -> None:
    """An answer that is not its program's last word."""
    said = json.loads(ANSWER)
    said["choices"][0]["finish_reason"] = "length"
    await exchange.json(said)


async def test_it_tells_its_own_service_and_memory_and_not_what_it_heard(
    proxy: Any, upstream: Upstream
) -> None:
    upstream.script = cut_off
    await proxy.chat("word " * 200)
    [engine] = proxy.scheduler.engines
    here = proxy.scheduler.world.resident_tokens(engine)
    proxy.gateway.host.feed(
        PeerReported(peer="r2", engine=EngineId(engine), running_steps=3, resident_tokens=5_000)
    )
    async with joined(configured(url=NOBODY), proxy.gateway, url=proxy.url) as bus:
        assert bus is not None
        state = bus._wiring.state()
    assert state.engines == {engine: EngineMessage(running_steps=0, resident_tokens=here)}
    [(tenant, served)] = state.tenants.items()
    assert tenant == TenantId("default")
    assert served.output_tokens > 0
    assert not served.waits


async def test_certificates_that_cannot_be_read_are_a_wrong_configuration(
    proxy: Any, tmp_path: Path
) -> None:
    config = configured(url="mqtts://127.0.0.1", tls_ca=tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="certificates cannot be read"):
        async with joined(config, proxy.gateway, url=proxy.url):
            pytest.fail("it was taken")


def shared() -> Scheduler:
    """One of the schedulers in front of an engine of 10,000 tokens."""
    made = build_scheduler(SchedulerConfig(profile="agentsched"))
    made.handle(reported("e", kv_tokens=10_000), now=at(0))
    return made


def serve(scheduler: Scheduler, step: str, program: str, *, time_s: float, is_last: bool) -> None:
    """A step of 1,000 tokens, 300 of them a beginning that all have."""
    prefixes = (prefix("head", 300), prefix(program, 900))
    came = arrived(step, program, tokens=900, prefixes=prefixes)
    assert any(isinstance(c, Dispatch) for c in scheduler.handle(came, now=at(time_s)))
    scheduler.handle(StepStarted(step=came.step), now=at(time_s))
    scheduler.handle(answered(step, is_last=is_last, prompt=900, output=100), now=at(time_s))


def told(scheduler: Scheduler, *, time_s: float) -> PeerReported:
    """What the other scheduler hears of this one."""
    host = SimpleNamespace(scheduler=scheduler, now=lambda: at(time_s))
    gateway: Any = SimpleNamespace(host=host)
    said = _state(gateway).engines[EngineId("e")]
    return PeerReported(
        engine=EngineId("e"),
        peer="one",
        running_steps=said.running_steps,
        resident_tokens=said.resident_tokens,
    )


@pytest.mark.parametrize("is_last", [True, False])
def test_nobody_waits_for_memory_that_another_replica_would_give_up(*, is_last: bool) -> None:
    one, two = shared(), shared()
    for number in range(12):
        serve(one, f"s{number}", f"p{number}", time_s=number, is_last=is_last)
    one.handle(arrived("run", "r", tokens=400), now=at(20))
    assert one.world.resident_tokens(EngineId("e")) == 300 + 12 * 700 + 400
    two.handle(told(one, time_s=20), now=at(20))
    assert two.engines[EngineId("e")].peer_tokens == (400 if is_last else 9_100)
    # Their programs are over, or they are not.
    commands = two.handle(arrived("a", "newcomer", tokens=1_500), now=at(20))
    assert [c.step for c in commands if isinstance(c, Dispatch)] == (["a"] if is_last else [])


def test_what_is_probably_over_is_no_memory_that_others_must_leave_alone() -> None:
    scheduler = shared()
    for number in range(30):  # such programs end with their fifth step and do not say so
        for step in range(5):
            time_s = 10 * number + step
            serve(scheduler, f"s{number}-{step}", f"p{number}", time_s=time_s, is_last=False)
        closed = ProgramClosed(program=ProgramId(f"p{number}"), reason="released")
        scheduler.handle(closed, now=at(10 * number + 5))
    for step in range(5):
        serve(scheduler, f"t{step}", "last", time_s=400 + step, is_last=False)
        tokens = told(scheduler, time_s=400 + step).resident_tokens
        assert tokens == (1_000 if step < 4 else 0)
    scheduler.check()
