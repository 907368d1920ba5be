"""What this proxy tells others of itself, and that it needs nobody who listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from proxy_upstream import Upstream

from agentsched.bus.messages import EngineMessage
from agentsched.config import Config
from agentsched.model import ConfigError, EngineId, PeerReported, TenantId
from agentsched.proxy.on_bus import joined

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


async def test_it_tells_its_own_service_and_memory_and_not_what_it_heard(
    proxy: Any, upstream: Upstream
) -> None:
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
