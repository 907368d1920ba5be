"""Whose a stored response is."""

from __future__ import annotations

from agentsched.model import EngineId, TenantId
from agentsched.proxy.homes import Homes

RED, BLUE = TenantId("red"), TenantId("blue")


def test_what_is_somebodys_stays_so() -> None:
    homes = Homes()
    homes.remember("resp_1", EngineId("a"), RED)
    homes.remember("resp_1", EngineId("b"), BLUE)
    assert homes.is_of("resp_1", RED)
    assert not homes.is_of("resp_1", BLUE)
    assert homes.of("resp_1") == "a"
    homes.remember("resp_1", EngineId("c"), RED)
    assert homes.of("resp_1") == "c"
