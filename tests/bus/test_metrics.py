"""The bus as metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from agentsched.bus.connection import Broker
from agentsched.bus.metrics import BusCollector
from agentsched.bus.service import Bus, Wiring
from agentsched.bus.telling import State
from agentsched.model import Instant


async def test_what_was_heard_and_whether_it_is_up() -> None:
    wiring = Wiring(
        now=lambda: Instant(0), feed=lambda _: None, state=State, tool=lambda *_: "accepted"
    )
    bus = Bus(Broker(host="127.0.0.1"), wiring, cluster="c", replica="r")
    registry = CollectorRegistry()
    registry.register(BusCollector(bus))
    bus.counts["malformed"] += 2
    assert registry.get_sample_value("agentsched_bus_up") == 0
    assert registry.get_sample_value("agentsched_bus_peers") == 0
    heard = registry.get_sample_value("agentsched_bus_heard_total", {"outcome": "malformed"})
    assert heard == 2
    bus.connection.is_up.set()
    assert registry.get_sample_value("agentsched_bus_up") == 1
