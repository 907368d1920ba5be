"""Who may watch at once: so many and no more, and no tenant in everybody's place."""

from __future__ import annotations

from collections import Counter


class Seats:
    """Counts who watches. A tenant has a quarter of the seats at most; a quarter is operators'."""

    def __init__(self) -> None:
        self._taken: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return self._taken.total()

    def has_room(self, tenant: str | None, *, most: int) -> bool:
        """Whether one more may watch what is this tenant's; None: an operator, who sees all."""
        if len(self) >= most:
            return False
        part = most // 4
        tenants = len(self) - self._taken[None]
        is_free = tenants < most - part and self._taken[tenant] < max(part, 1)
        return tenant is None or is_free

    def take(self, tenant: str | None) -> None:
        """One more watches."""
        self._taken[tenant] += 1

    def leave(self, tenant: str | None) -> None:
        """It watches no more."""
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
