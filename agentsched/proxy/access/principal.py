"""Who asks: a tenant, and what it may do. Every request has one before its handler runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from agentsched.model import TenantId

DATA: Final = "data"
READ: Final = "read"
ADMIN: Final = "admin"
TENANTS: Final = "tenants"
METRICS: Final = "metrics"

#: What goes with a scope: who may change everything may look at everything.
_IMPLIED: Final = {ADMIN: frozenset({ADMIN, READ, METRICS})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whoever sent a request.

    `tenant` None: the request's headers say who pays, for nobody was asked for a key. `uses_header`
    says that the client's `Authorization` (or `x-api-key`) was meant for us, not for an engine.
    `key` is the id of the API key that let it in; empty: something else did, or nobody asked.
    """

    name: str
    scopes: frozenset[str]
    tenant: TenantId | None = None
    uses_header: bool = False
    key: str = ""

    @property
    def is_admin(self) -> bool:
        """Whether all tenants are its business."""
        return ADMIN in self.scopes

    def sees(self, tenant: str) -> bool:
        """Whether this tenant's programs are shown to it; others do not exist for it."""
        return ADMIN in self.scopes or tenant == self.tenant


def scopes_of(granted: tuple[str, ...] | list[str]) -> frozenset[str]:
    """What was granted, and what goes with it."""
    found: frozenset[str] = frozenset(granted)
    for scope in granted:
        found |= _IMPLIED.get(scope, frozenset())
    return found


#: Where no key is asked for: anybody, as the headers say.
ANYBODY: Final = Principal(name="", scopes=frozenset({DATA, TENANTS, METRICS}))
#: The same, where the admin key came as a credential: no engine may see it.
ANYBODY_WITH_OUR_KEY: Final = Principal(name="", scopes=ANYBODY.scopes, uses_header=True)
#: Whoever has the admin key, or sits at this machine.
OPERATOR: Final = Principal(name="operator", scopes=scopes_of([ADMIN]), uses_header=True)

PRINCIPAL: Final = web.RequestKey("agentsched.principal", Principal)


def principal_of(request: web.BaseRequest) -> Principal:
    """Who sent this request."""
    found: Principal = request.get(PRINCIPAL, ANYBODY)
    return found
