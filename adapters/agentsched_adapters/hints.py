"""Hint sinks for engines that have no means of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from agentsched.model import EngineError, HintOutcome, Pin, Prefetch, Unpin
from agentsched.ports import Engine, EngineRequest

log = logging.getLogger(__name__)

#: Sorts after everything that a client may ask for.
LOWEST_PRIORITY: Final = 1_000_000
_TIMEOUT_S: Final = 120.0


class NoHints:
    """Answers every hint with UNSUPPORTED: what a stock engine can say about retention."""

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        return HintOutcome.UNSUPPORTED


class WarmSource(Protocol):
    """Whoever knows what to send to have a conversation's prefix computed."""

    def warm_requests(self, hint: Prefetch, engine: Engine) -> Sequence[EngineRequest]:
        """One-token requests whose prompt is that prefix, the best first; none if not known."""
        ...


class WarmHints:
    """Warms prefixes on any engine with one-token requests. Implements `ports.HintSink`.

    A warm-up is an ordinary request of lowest priority. Cancelling the task that awaits `hint`
    closes it, which stops its prefill; what was computed so far stays in the engine's cache.
    """

    def __init__(
        self, engine: Engine, source: WarmSource, *, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._engine = engine
        self._source = source
        self._timeout_s = timeout_s

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        """ACCEPTED when the prefix was computed, REFUSED where nobody knows or wants it."""
        if not isinstance(hint, Prefetch):
            return HintOutcome.UNSUPPORTED
        for request in self._source.warm_requests(hint, self._engine):
            try:
                async with asyncio.timeout(self._timeout_s):
                    status = await self._send(request)
            except (EngineError, TimeoutError) as error:
                log.info("warm-up %s failed: %s", hint.pin, error)
                return HintOutcome.FAILED
            if 200 <= status < 300:
                return HintOutcome.ACCEPTED
            if status >= 500:
                return HintOutcome.FAILED
        return HintOutcome.REFUSED

    async def _send(self, request: EngineRequest) -> int:
        answer = await self._engine.send(request)
        try:
            await answer.read()
            return answer.status
        finally:
            await answer.aclose()
