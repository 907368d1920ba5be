"""Which engine keeps which stored response."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from agentsched.model import EngineId

#: Responses whose engine we remember; an engine keeps its stored responses to itself.
_HOMES_MAX: Final = 50_000


class Homes:
    """Which engine made a stored response, for `GET /v1/responses/{id}` and its like."""

    def __init__(self) -> None:
        self._homes: OrderedDict[str, EngineId] = OrderedDict()

    def remember(self, response_id: str, engine: EngineId) -> None:
        """An engine answered with this response id."""
        self._homes[response_id] = engine
        self._homes.move_to_end(response_id)
        if len(self._homes) > _HOMES_MAX:
            self._homes.popitem(last=False)

    def of(self, response_id: str) -> EngineId | None:
        """The engine that made it, while it is remembered."""
        return self._homes.get(response_id)
