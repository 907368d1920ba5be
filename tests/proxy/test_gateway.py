"""Who pays, and where stored responses are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from proxy_upstream import Upstream

from agentsched.model import EngineId, TenantId
from agentsched.proxy import homes
from agentsched.proxy.access.principal import DATA, TENANTS, Principal
from agentsched.proxy.gateway import ANONYMOUS


async def test_tenants(proxy: Any) -> None:
    tenant = proxy.gateway.tenant
    assert tenant({}) == ANONYMOUS
    assert tenant({"x-agentsched-tenant": "red"}) == "red"
    by_key = tenant({"authorization": "Bearer sk-secret"})
    assert by_key.startswith("key-")
    assert "secret" not in by_key
    assert tenant({"x-api-key": "sk-secret"}) == by_key
    assert tenant({"authorization": "bearer  sk-secret"}) == by_key
    assert tenant({"authorization": "Bearer sk-other"}) != by_key
    assert tenant({"authorization": "\udcff"}).startswith("key-")


@pytest.mark.parametrize("name", ["x" * 65, "é", "a\x00b", ""])
async def test_names_unfit_for_a_tenant(proxy: Any, name: str) -> None:
    assert proxy.gateway.tenant({"x-agentsched-tenant": name}) == ANONYMOUS


async def test_the_header_is_configured(start: Any, upstream: Upstream) -> None:
    async with start(upstream.url, identity={"tenant_header": "X-Team"}) as proxy:
        await proxy.chat(headers={"x-team": "blue", "x-agentsched-tenant": "red"})
        assert list(proxy.scheduler.tenants) == ["blue"]


async def test_further_headers_name_a_tenant_where_they_are_configured(
    start: Any, upstream: Upstream
) -> None:
    smg, llm_d = "x-smg-tenant-id", "x-llm-d-inference-fairness-id"
    async with start(upstream.url) as proxy:
        assert proxy.gateway.tenant({smg: "red", llm_d: "blue"}) == ANONYMOUS
    further = {"tenant_headers": ["X-SMG-Tenant-Id", llm_d]}
    async with start(upstream.url, identity=further) as proxy:
        tenant = proxy.gateway.tenant
        assert tenant({llm_d: "blue", smg: "red"}) == "red"
        assert tenant({llm_d: "blue", smg: "é"}) == "blue"
        assert tenant({smg: "red", "x-agentsched-tenant": "green"}) == "green"
        # A key's own tenant is none of theirs to say, but where it is a gateway's.
        key = Principal(name="k", scopes=frozenset({DATA}), tenant=TenantId("own"))
        assert tenant({smg: "red"}, key) == "own"
        assert tenant({smg: "red"}, replace(key, scopes=frozenset({DATA, TENANTS}))) == "red"


def test_homes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_HOMES_MAX", 2)
    known, tenant = homes.Homes(), TenantId("red")
    for response, engine in (("a", "e0"), ("b", "e1"), ("a", "e1"), ("c", "e2")):
        known.remember(response, EngineId(engine), tenant)
    assert (known.of("a"), known.of("b"), known.of("c")) == ("e1", None, "e2")


def test_homes_know_whose_a_response_is() -> None:
    known = homes.Homes()
    known.remember("a", EngineId("e0"), TenantId("red"))
    assert known.is_of("a", TenantId("red"))
    assert not known.is_of("a", TenantId("blue"))
    assert not known.is_of("b", TenantId("red"))
