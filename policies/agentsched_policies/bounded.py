"""A map that forgets: what policies remember about strangers must not grow without end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """The latest `size_max` keys that were set, in the order of their latest setting."""

    def __init__(self, *, size_max: int = 16_384) -> None:
        self._size_max = size_max
        self._items: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def get(self, key: K) -> V | None:
        """What is known of a key; asking does not keep it longer."""
        return self._items.get(key)

    def set(self, key: K, value: V) -> None:
        """Remember; the key set longest ago is forgotten when there are too many."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size_max:
            self._items.popitem(last=False)

    def pop(self, key: K) -> V | None:
        """Forget a key."""
        return self._items.pop(key, None)

    def items(self) -> Iterator[tuple[K, V]]:
        """All of it, the key set longest ago first."""
        return iter(self._items.items())
