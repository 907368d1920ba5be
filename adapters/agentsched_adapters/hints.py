"""Hint sinks for engines that have no means of their own."""

from __future__ import annotations

from agentsched.model import HintOutcome, Pin, Prefetch, Unpin


class NoHints:
    """Answers every hint with UNSUPPORTED: what a stock engine can say about retention."""

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        return HintOutcome.UNSUPPORTED
