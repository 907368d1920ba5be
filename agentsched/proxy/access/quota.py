"""How much one tenant may send of what costs the scheduler and no engine: hints, dry runs."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from agentsched.model import SECOND, Instant

#: Tenants whose use is remembered; the one that sent nothing for longest is forgotten.
_TENANTS_MAX: Final = 10_000
#: A tenant that was silent may send so many seconds' worth at once.
_BURST_S: Final = 10


class HintQuota:
    """A bucket of tokens for each tenant, `rate` a second."""

    def __init__(self) -> None:
        #: Tokens that are left, and since when; the tenant that was idle for longest first.
        self._buckets: OrderedDict[str, tuple[float, Instant]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, tenant: str, count: int, *, rate: int, now: Instant) -> float:
        """Take so many; returns 0, or after how many seconds it is worth asking again.

        What is refused takes nothing.
        """
        full = float(max(rate * _BURST_S, 1))
        left, since = self._buckets.get(tenant, (full, now))
        left = min(full, left + rate * (now - since) / SECOND)
        # More than fits into the bucket goes where it is full: it would never fit otherwise.
        wanted = min(float(count), full)
        wait = 0.0 if left >= wanted else (wanted - left) / rate
        self._buckets[tenant] = (left if wait else left - wanted, now)
        self._buckets.move_to_end(tenant)
        if len(self._buckets) > _TENANTS_MAX:
            self._buckets.popitem(last=False)
        return wait
