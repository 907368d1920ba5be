"""A bounded memory with least-used forgetting, cheaper than an ordered dictionary."""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Maps byte keys to values. Holds at most `size` entries; what was used last stays.

    Two generations: when the young one is full it becomes the old one, and the old one is dropped.
    A hit in the old one moves its entry to the young one.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, size: int) -> None:
        self._half = max(1, size // 2)
        self._young: dict[bytes, V] = {}
        self._old: dict[bytes, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: bytes) -> V | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: bytes, value: V) -> None:
        if len(self._young) >= self._half and key not in self._young:
            self._old = self._young
            self._young = {}
        self._young[key] = value

    def pop(self, key: bytes) -> V | None:
        """Forget one entry."""
        old = self._old.pop(key, None)
        return self._young.pop(key, old)
