"""Who wants which blocks kept, until when, and how dear each is: the books behind `blocks`.

Pure bookkeeping: it says which blocks nobody wants any more, and `blocks` gives them back to vLLM.
A block that several pins want is counted once; per tenant, once for each tenant that wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentsched.model import Instant


class Block(Protocol):
    """What we use of vLLM's `KVCacheBlock`."""

    block_id: int
    ref_cnt: int

    @property
    def is_null(self) -> bool: ...
    @property
    def block_hash(self) -> object | None: ...
    @property
    def block_hash_num_tokens(self) -> int | None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class HeldPin:
    """One pin: the blocks of one conversation, in the order of its prompt."""

    pin: str
    conversation: str
    program: str
    tenant: str
    value: float
    #: Nobody has said yet what it is worth.
    is_grace: bool
    since: Instant
    expires_at: Instant
    blocks: list[Block]


class PinLedger:
    """All live pins, by conversation; a conversation has at most one."""

    def __init__(self) -> None:
        self._pins: dict[str, HeldPin] = {}
        #: All and only blocks that some pin wants.
        self._blocks: dict[int, Block] = {}
        #: How many pins want a block.
        self._wanted: dict[int, int] = {}
        self._by_tenant: dict[str, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._pins)

    def __iter__(self) -> Iterator[HeldPin]:
        return iter(self._pins.values())

    @property
    def held(self) -> int:
        """Blocks held, each counted once."""
        return len(self._blocks)

    @property
    def blocks(self) -> Iterable[Block]:
        """The blocks held."""
        return self._blocks.values()

    def tenant_held(self, tenant: str) -> int:
        """Blocks held for a tenant, each counted once."""
        return len(self._by_tenant.get(tenant, ()))

    @property
    def tenants(self) -> Iterable[str]:
        """Tenants that hold anything."""
        return self._by_tenant

    def of_conversation(self, conversation: str) -> HeldPin | None:
        """The conversation's pin."""
        return self._pins.get(conversation)

    def enter(self, pin: HeldPin) -> list[Block]:
        """Enter a pin; the blocks that nobody wanted before (touch them)."""
        assert pin.conversation not in self._pins
        self._pins[pin.conversation] = pin
        fresh = []
        tenant = self._by_tenant.setdefault(pin.tenant, {})
        for block in pin.blocks:
            key = block.block_id
            if key not in self._blocks:
                self._blocks[key] = block
                fresh.append(block)
            self._wanted[key] = self._wanted.get(key, 0) + 1
            tenant[key] = tenant.get(key, 0) + 1
        if not tenant:
            del self._by_tenant[pin.tenant]
        return fresh

    def leave(self, pin: HeldPin) -> list[Block]:
        """End a pin; the blocks that nobody wants any more, head first."""
        held = self._pins.pop(pin.conversation)
        assert held is pin
        return [block for block in pin.blocks if self._drop(pin.tenant, block)]

    def by_value(self, *, spare: str = "", tenant: str | None = None) -> list[HeldPin]:
        """Pins in the order in which they give way: least value first, then nearest to its end.

        A pin that nobody has valued yet is worth the mean of those that somebody has; `spare` is
        the conversation whose pin goes last.
        """
        valued = [pin.value for pin in self._pins.values() if not pin.is_grace]
        mean = sum(valued) / len(valued) if valued else 0.0

        def key(pin: HeldPin) -> tuple[bool, float, Instant, Instant, str]:
            value = mean if pin.is_grace else pin.value
            spared = bool(spare) and pin.conversation == spare
            return (spared, value, pin.expires_at, pin.since, pin.conversation)

        wanted = (p for p in self._pins.values() if tenant is None or p.tenant == tenant)
        return sorted(wanted, key=key)

    def shrink(
        self, pins: Sequence[HeldPin], need: int, *, keep: frozenset[int] = frozenset()
    ) -> list[Block]:
        """Take blocks that no request uses from these pins, the tail of the first one first.

        Until `need` are free or there are no more; blocks in `keep` stay. Blocks that one pin alone
        wants, down to the first that is wanted or used by others as well, go before all else,
        whoever they belong to: what is before that one in a prompt is so, too, or nearly always,
        and is not looked at for each block that somebody needs.
        """
        freed: list[Block] = []
        for shared in (False, True):
            for pin in pins:
                if len(freed) >= need:
                    return freed
                self._shrink_one(pin, need, keep, freed, shared=shared)
        return freed

    def _shrink_one(
        self, pin: HeldPin, need: int, keep: frozenset[int], freed: list[Block], *, shared: bool
    ) -> None:
        kept: list[Block] = []
        blocks = pin.blocks
        while blocks and len(freed) < need:
            block = blocks[-1]
            is_free = block.ref_cnt == 1 and block.block_id not in keep
            if is_free and (shared or self._wanted[block.block_id] == 1):
                blocks.pop()
                if self._drop(pin.tenant, block):
                    freed.append(block)
            elif shared:
                kept.append(blocks.pop())
            else:
                return
        blocks.extend(reversed(kept))

    def cut(self, pins: Sequence[HeldPin], excess: Callable[[], int]) -> list[Block]:
        """Take blocks from these pins as long as `excess` is positive, used or not.

        The order is that of `shrink`. The blocks that nobody wants any more.
        """
        gone: list[Block] = []
        for shared in (False, True):
            for pin in pins:
                kept: list[Block] = []
                while pin.blocks and excess() > 0:
                    block = pin.blocks.pop()
                    if not shared and self._wanted[block.block_id] > 1:
                        kept.append(block)
                    elif self._drop(pin.tenant, block):
                        gone.append(block)
                pin.blocks.extend(reversed(kept))
        return gone

    def take_empty(self) -> list[HeldPin]:
        """End the pins that have no block left."""
        empty = [pin for pin in self._pins.values() if not pin.blocks]
        for pin in empty:
            del self._pins[pin.conversation]
        return empty

    def _drop(self, tenant: str, block: Block) -> bool:
        """One pin wants a block no more; whether that was the last."""
        key = block.block_id
        wanted = self._by_tenant[tenant]
        wanted[key] -= 1
        if not wanted[key]:
            del wanted[key]
            if not wanted:
                del self._by_tenant[tenant]
        self._wanted[key] -= 1
        if self._wanted[key]:
            return False
        del self._wanted[key]
        del self._blocks[key]
        return True

    def check(self) -> None:
        """Assert that the books agree with each other."""
        wanted: dict[int, int] = {}
        tenants: dict[str, dict[int, int]] = {}
        for conversation, pin in self._pins.items():
            assert pin.conversation == conversation
            assert pin.blocks, f"{conversation} holds nothing"
            for block in pin.blocks:
                wanted[block.block_id] = wanted.get(block.block_id, 0) + 1
                one = tenants.setdefault(pin.tenant, {})
                one[block.block_id] = one.get(block.block_id, 0) + 1
        assert wanted == self._wanted
        assert wanted.keys() == self._blocks.keys()
        assert tenants == self._by_tenant
