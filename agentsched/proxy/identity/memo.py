"""A bounded memory with least-used forgetting, cheaper than an ordered dictionary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Maps byte keys to values. Holds at most `size` entries; what was used last stays.

    Two generations: when the young one is full it becomes the old one, and the old one is dropped.
    A hit in the old one moves its entry to the young one. Where values differ in what they take,
    `weigh` says how many entries' room a value has.
    """

    __slots__ = ("_filled", "_half", "_old", "_weigh", "_young")

    def __init__(self, size: int, *, weigh: Callable[[V], int] | None = None) -> None:
        self._half = max(1, size // 2)
        self._weigh = weigh
        self._filled = 0
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
        known = self._young.pop(key, None)
        room = self._room(value)
        if known is not None:
            self._filled -= self._room(known)
        elif self._young and self._filled + room > self._half:
            self._old = self._young
            self._young = {}
            self._filled = 0
        self._young[key] = value
        self._filled += room

    def pop(self, key: bytes) -> V | None:
        """Forget one entry."""
        old = self._old.pop(key, None)
        young = self._young.pop(key, None)
        if young is None:
            return old
        self._filled -= self._room(young)
        return young

    def _room(self, value: V) -> int:
        return 1 if self._weigh is None else self._weigh(value)
