"""Shares and ceilings of tenants: from the configuration, and at run time by the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web
from pydantic import ValidationError

from agentsched.config_limits import TenantConfig
from agentsched.proxy import shapes
from agentsched.proxy.errors import error_body
from agentsched.proxy.fields import BROKEN
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.receive import receive
from agentsched.proxy.request import Dialect


def apply_tenants(
    gateway: Gateway, old: Mapping[str, TenantConfig], new: Mapping[str, TenantConfig]
) -> None:
    """Tell the scheduler of tenants that are configured anew, and of those that no longer are."""
    for name, tenant in new.items():
        if old.get(name) != tenant:
            gateway.host.feed(tenant.configured(name))
    for name in old:
        if name not in new:
            gateway.host.feed(TenantConfig().configured(name))


class TenantVerbs:
    """What the control plane does with tenants."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def put(self, request: web.Request) -> web.Response:
        """`PUT tenants/NAME` with the keys of `[tenants.NAME]`. What is left out is the default."""
        name = request.match_info["tenant"]
        try:
            received = await receive(request, self._gateway.config.http)
            given = msgspec.json.decode(received.body or b"{}", type=dict[str, Any])
            if isinstance(given.get("deadline"), int):  # nanoseconds, as nobody means them
                return _error(400, "bad_tenant", "deadline: write 250ms, 15s, 2m or 1h")
            event = TenantConfig(**given).configured(name)
        except BROKEN as error:
            return _error(400, "bad_tenant", f"The body is not a JSON object: {error}")
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return _error(
                400, "bad_tenant", f"{where}: {first['msg'].removeprefix('Value error, ')}"
            )
        host = self._gateway.host
        host.feed(event)
        account = host.scheduler.tenants.get(event.tenant)
        if account is None or account.limits != event.limits or account.weight != event.weight:
            return _error(
                409, "too_many_tenants", "As many tenants as there may be are configured."
            )
        body = msgspec.json.encode(shapes.tenant(account, now=host.now()))
        return web.Response(body=body, content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    body = error_body(Dialect.OTHER, status=status, message=message, code=code)
    return web.Response(status=status, body=body, content_type="application/json")
