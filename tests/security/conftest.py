"""Two tenants, their keys, and a real proxy that knows them, in front of a scripted engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from proxy_rig import (
    proxy,
    pytest_asyncio_loop_factories,
    second,
    start,
    start_proxy,
    upstream,
)

from agentsched.proxy.access.keys import hash_key, new_key

#: Fixtures of the proxy's own tests.
__all__ = ["proxy", "pytest_asyncio_loop_factories", "second", "start", "upstream"]

ADMIN_KEY = "an-admin-key-of-some-length"


@dataclass(frozen=True)
class Key:
    """A key as its owner has it, and as the configuration has it."""

    id: str
    token: str
    tenant: str
    scopes: tuple[str, ...]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def config(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "hash": f"sha256:{hash_key(self.token).hex()}",
            "tenant": self.tenant,
            "scopes": list(self.scopes),
        }


def make_key(tenant: str, *scopes: str) -> Key:
    key, token = new_key()
    return Key(key, token, tenant, scopes or ("data",))


@dataclass(frozen=True)
class Keys:
    """Who there is in most tests."""

    red: Key
    blue: Key
    red_data: Key
    red_read: Key
    admin: Key
    front: Key
    metrics: Key

    @property
    def config(self) -> dict[str, Any]:
        return {"mode": "keys", "keys": [k.config for k in vars(self).values()]}


@pytest.fixture
def keys() -> Keys:
    return Keys(
        red=make_key("red", "data", "read"),
        blue=make_key("blue", "data", "read"),
        red_data=make_key("red", "data"),
        red_read=make_key("red", "read"),
        admin=make_key("default", "admin"),
        front=make_key("front", "data", "tenants"),
        metrics=make_key("default", "metrics"),
    )


@pytest.fixture
def new() -> Callable[..., Key]:
    """Makes a key: `new(tenant, *scopes)`."""
    return make_key


@pytest.fixture
def start_keyed(keys: Keys) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """A proxy that asks for keys."""

    def begin(*urls: str, **settings: Any) -> AbstractAsyncContextManager[Any]:
        auth = keys.config | settings.pop("auth", {})
        return start_proxy(*urls, auth=auth, admin_key=ADMIN_KEY, **settings)

    return begin


@pytest.fixture
async def keyed(upstream: Any, start_keyed: Any) -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(start_keyed(upstream.url))
