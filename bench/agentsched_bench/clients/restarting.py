"""An index of programs whose process ends before every single request, and starts again.

What a store would hold between two lives is held here, in the order and form of a real store.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentsched.model import Instant, Prefix, StepId, TenantId
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity import Identity, IdentityIndex, IdentityLimits
from agentsched.proxy.identity.index import BYTES_PER_TOKEN
from agentsched.proxy.identity.keeping import KeptIndex, encode_turn
from agentsched.proxy.identity.records import Turn
from agentsched.proxy.request import ParsedRequest


class Disk:
    """What a store would hold: the latest bytes of each turn, by handle."""

    def __init__(self, *, secret: int) -> None:
        self.kept: dict[int, bytes] = {}
        self.steps: dict[int, str] = {}
        self._secret = secret
        self._starts = 0

    def keep(self, turn: Turn) -> None:
        """Write a turn, over what was written of it before."""
        handle, _, data = encode_turn(turn, step_id=self.steps.get(turn.handle, ""))
        self.kept[handle] = data

    def start(self, limits: IdentityLimits | None = None) -> KeptIndex:
        """An index that knows nobody, and writes here."""
        self._starts += 1
        return KeptIndex(
            secret=self._secret, keep=self.keep, first_handle=self._starts << 32, limits=limits
        )

    def restart(self, *, now: Instant) -> tuple[KeptIndex, dict[int, StepId]]:
        """An index that knows what was written, and the steps that have no answer."""
        index = self.start()
        return index, index.bring_back([d for _, d in sorted(self.kept.items())], now=now)


class Restarting(IdentityIndex):
    """An index that is made anew from what was kept before every single request."""

    def __init__(self, *, secret: int) -> None:
        self._disk = Disk(secret=secret)
        self._current = self._disk.start()

    def identify(
        self,
        request: ParsedRequest,
        headers: Mapping[str, str],
        *,
        tenant: TenantId,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
        is_dry: bool = False,
    ) -> Identity:
        self._current, _ = self._disk.restart(now=now)
        return self._current.identify(request, headers, tenant=tenant, now=now, is_dry=is_dry)

    def answered(
        self,
        identity: Identity,
        answer: Answer,
        *,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
        can_be_named: bool = True,
    ) -> Prefix | None:
        return self._current.answered(identity, answer, now=now, can_be_named=can_be_named)

    def abandoned(self, identity: Identity, *, now: Instant) -> None:
        self._current.abandoned(identity, now=now)
