"""Which engine keeps which stored response, and whose it is."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from agentsched.model import EngineId, TenantId

#: Responses whose engine we remember; an engine keeps its stored responses to itself.
_HOMES_MAX: Final = 50_000


class Homes:
    """Which engine made a stored response, for `GET /v1/responses/{id}` and its like."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, tuple[EngineId, TenantId]] = OrderedDict()

    def remember(self, response_id: str, engine: EngineId, tenant: TenantId) -> None:
        """An engine answered a tenant with this response id; whose it is already, that stays so."""
        known = self._homes.get(response_id)
        if known is not None and known[1] != tenant:
            return
        self._homes[response_id] = engine, tenant
        self._homes.move_to_end(response_id)
        if len(self._homes) > _HOMES_MAX:
            self._homes.popitem(last=False)

    def of(self, response_id: str) -> EngineId | None:
        """The engine that made it, while it is remembered."""
        known = self._homes.get(response_id)
        return None if known is None else known[0]

    def is_of(self, response_id: str, tenant: TenantId) -> bool:
        """Whether it was made for this tenant, and that is remembered."""
        known = self._homes.get(response_id)
        return known is not None and known[1] == tenant
