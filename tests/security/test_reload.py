"""A reread configuration: what of access counts at once, and what waits for a restart, whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentsched.config import Config, EngineConfig
from agentsched.proxy.fleet import Member
from agentsched.proxy.steering import Steering

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def steer() -> Callable[..., Steering]:
    """A steering wheel of a running proxy whose file says something else now."""

    def make(proxy: Any, **auth: Any) -> Steering:
        old: Config = proxy.gateway.config
        wanted = old.model_copy(
            update={"auth": type(old.auth).model_validate(old.auth.model_dump() | auth)}
        )
        return Steering(proxy.gateway, make_member=no_engine, reread=lambda: wanted)

    return make


def no_engine(engine: EngineConfig, config: Config) -> Member:
    raise AssertionError(f"nothing was said of {engine.name}")


async def ask(proxy: Any, headers: Any = None) -> int:
    answer = await proxy.client.post("/v1/chat/completions", json=CHAT, headers=headers)
    return int(answer.status_code)


async def test_a_change_of_mode_waits_for_a_restart(
    start: Any, upstream: Any, keys: Any, steer: Any
) -> None:
    """Its keys of the store are followed from the start only: half of it would shut them out."""
    async with start(upstream.url) as proxy:
        steering = steer(proxy, **keys.config)
        for _ in range(2):
            reloaded = steering.reload()
            assert reloaded.needs_restart == ("auth.mode",)
        assert proxy.gateway.config.auth.mode == "open"
        assert await ask(proxy) == 200
        # The keys themselves count at once.
        url = "/agentsched/v1/programs"
        shown = await proxy.client.get(url, headers=keys.red.headers)
        assert shown.status_code == 200


async def test_it_is_not_opened_by_a_reload(keyed: Any, keys: Any, steer: Any) -> None:
    reloaded = steer(keyed, mode="open").reload()
    assert reloaded.needs_restart == ("auth.mode",)
    assert reloaded.changed == ()
    assert await ask(keyed) == 401
    assert await ask(keyed, keys.red.headers) == 200


async def test_a_provider_waits_and_a_key_that_goes_with_it_does_not(
    keyed: Any, keys: Any, steer: Any
) -> None:
    provider = {"issuer": "https://id.example", "audience": "us"}
    reloaded = steer(keyed, oidc=provider, keys=[keys.red.config], refresh_interval="9s").reload()
    assert reloaded.needs_restart == ("auth.oidc", "auth.refresh_interval")
    assert reloaded.changed == ("auth",)
    assert keyed.gateway.config.auth.oidc is None
    assert await ask(keyed, keys.red.headers) == 200
    assert await ask(keyed, keys.blue.headers) == 401
