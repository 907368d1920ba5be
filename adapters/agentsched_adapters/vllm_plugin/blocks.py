"""Soft pins on vLLM's KV blocks: the one file that touches the engine's cache.

A pinned block carries one reference of ours, however many pins want it, so vLLM neither evicts it
nor counts it as free. What makes pins soft is `_allocate`, put around the manager's own: where a
request cannot get its slots, it is asked again under the promise that blocks which only pins hold,
a few of them and then all, are as good as free; vLLM takes exactly as many as it needs, from the
pins of least value first, tails before heads. A request that does not fit even so costs no pin
anything. So whatever could run without pins runs with them, in the same engine step: they cannot
idle it or lock it up.

Facts about vLLM 0.32 that this rests on, each with a test against the real pool:

- `BlockPool.touch` takes a block off the free list, `free_blocks` puts it back at its end;
- `allocate_slots` that answers None has changed nothing but blocks outside the attention window,
  and asks for free blocks through `get_num_free_blocks` and `get_new_blocks` alone;
- blocks that a request hits are touched before it gets new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from agentsched.model import HintOutcome, Instant, Nanos, UnpinReason, after
from agentsched_adapters.vllm_plugin.layout import layout_of
from agentsched_adapters.vllm_plugin.ledger import Block, HeldPin, PinLedger

_IS_CACHED: Final = attrgetter("is_cached")
#: So many blocks are promised at first: most requests need one, and to count all of a large pool
#: takes as long as a good part of a step.
_FEW: Final = 256
#: Conversations whose blocks we remember after their pin, so that a late pin can find them.
_PAST_MAX: Final = 4_096


class Pool(Protocol):
    """What we use of vLLM's `BlockPool`."""

    num_gpu_blocks: int

    def touch(self, blocks: Sequence[Block]) -> None: ...
    def free_blocks(self, ordered_blocks: Iterable[Block]) -> None: ...
    def get_num_free_blocks(self) -> int: ...
    def get_new_blocks(self, num_blocks: int) -> list[Block]: ...


class Manager(Protocol):
    """What we use of vLLM's `KVCacheManager`."""

    block_pool: Any
    coordinator: Any
    allocate_slots: Callable[..., Any]

    def get_blocks(self, request_id: str) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Whom blocks are kept for."""

    pin: str
    conversation: str
    program: str = ""
    tenant: str = ""
    value: float = 0.0
    is_grace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What became of a request to pin: how it was answered, how many tokens, until when."""

    outcome: HintOutcome
    tokens: int = 0
    until: Instant | None = None


class _Past(NamedTuple):
    """A block of an ended step: still the same as long as it has this hash."""

    block: Block
    hash: object
    end: int

    @property
    def is_cached(self) -> bool:
        return self.block.block_hash == self.hash


class _Owner(NamedTuple):
    """Whose an ended step was."""

    program: str
    tenant: str


_REFUSED: Final = Grant(outcome=HintOutcome.REFUSED)


class BlockPins:
    """The pins of one engine.

    `block_size` is the scheduler's: the length at whose multiples a prefix is found, also where
    groups of layers have blocks of other lengths. `budget` and `tenant_budget` are shares of the
    pool; beyond them the pins of least value shrink, the new one included. Everything runs on the
    engine's own thread.
    """

    def __init__(
        self,
        manager: Manager,
        *,
        block_size: int,
        budget: float,
        tenant_budget: float,
        ttl_max: Nanos,
        pins_max: int,
    ) -> None:
        self._manager = manager
        self._pool: Pool = manager.block_pool
        self._layout = layout_of(manager, unit=block_size)
        # vLLM keeps one block for itself.
        usable = self._pool.num_gpu_blocks - 1
        self.blocks_max = int(budget * usable)
        self.tenant_blocks_max = int(tenant_budget * usable)
        self._ttl_max = ttl_max
        self._pins_max = pins_max
        self._ledger = PinLedger()
        #: Blocks of conversations that ended a step lately, least recent first.
        self._past: OrderedDict[str, list[_Past]] = OrderedDict()
        #: Whose those conversations are.
        self._owners: dict[str, _Owner] = {}
        self._past_blocks = 0
        #: No pin expires before this.
        self._next_expiry: Instant | None = None
        #: Conversations with a request in the engine: their pins do not expire meanwhile.
        self._awaited: Callable[[str], bool] = lambda conversation: False
        self._failed: Callable[[str], None] = lambda what: None
        self._free_now: Callable[[], int] = self._pool.get_num_free_blocks
        self._new_now: Callable[[int], list[Block]] = self._pool.get_new_blocks
        self._promise = 0
        self._original: Callable[..., Any] | None = None
        self.granted_total = 0
        self.shrunk_blocks_total = 0
        #: How pins ended, by reason.
        self.ended_total: dict[str, int] = {}

    # Into the engine and out of it.

    def install(self, *, awaited: Callable[[str], bool], failed: Callable[[str], None]) -> None:
        """From now on pins give way where a request needs their blocks.

        `awaited` says whether a conversation has a request in the engine; `failed` is told, in an
        `except` block, of an error of ours, after which the engine is on its own.
        """
        assert self._original is None
        self._awaited, self._failed = awaited, failed
        self._original = self._manager.allocate_slots
        self._manager.allocate_slots = self._allocate

    def uninstall(self) -> None:
        """Give everything back and leave no trace."""
        self.release_all(UnpinReason.RELEASED)
        if self._original is not None:
            # Uncovers the method of the class again.
            del self._manager.allocate_slots
            self._original = None

    # Pins.

    def hold_request(
        self,
        keeper: Keeper,
        request: Any,
        *,
        ttl: Nanos,
        now: Instant,
        tokens: int | None = None,
    ) -> HeldPin | None:
        """Pin what a request that ends has in the cache, as long as it still has its blocks.

        With `tokens`, only the blocks that hold so many of its first tokens. Ends the
        conversation's older pin. None where nothing could be kept.
        """
        owner = _Owner(keeper.program, keeper.tenant)
        past = self._remember(keeper.conversation, owner, request)
        if ttl <= 0:
            return None
        return self._hold(keeper, self._beginning(past, tokens), ttl=ttl, now=now)

    def remember_request(
        self, conversation: str, request: Any, *, program: str, tenant: str
    ) -> None:
        """Note a request's blocks without pinning them."""
        self._remember(conversation, _Owner(program, tenant), request)

    def pin(self, keeper: Keeper, *, ttl: Nanos, now: Instant, tokens: int | None = None) -> Grant:
        """Refine the pin that a conversation has, or pin what is still cached of its latest step.

        With `tokens`, only the blocks that hold so many of its first tokens. Without a tenant, it
        is that of the latest step. Refused where nothing is cached, or it is worth less than
        `pins_max` others; clipped where the time is cut, or the budget has no room for all of it.
        """
        if ttl <= 0:
            return _REFUSED
        self.expire(now=now)
        granted = min(ttl, self._ttl_max)
        past = self._past.get(keeper.conversation, [])
        present = self._present(past)
        held = self._ledger.of_conversation(keeper.conversation)
        if not keeper.tenant:
            # A proxy's pins do not say it, its requests do: one budget must hold for both.
            keeper = replace(keeper, tenant=self._tenant_of(keeper.conversation, held))
        if held is not None and len(held.blocks) > len(present):
            present = _past_of(held.blocks)
        wanted = len(self._beginning(past or present, tokens))
        pin = self._hold(keeper, self._beginning(present, tokens), ttl=granted, now=now)
        if pin is None:
            return _REFUSED
        is_whole = granted == ttl and len(pin.blocks) == wanted
        return Grant(
            outcome=HintOutcome.ACCEPTED if is_whole else HintOutcome.CLIPPED,
            tokens=self.tokens_of(pin),
            until=pin.expires_at,
        )

    def extend(
        self, conversation: str, *, ttl: Nanos, value: float | None = None, now: Instant
    ) -> Grant:
        """Let a live pin end `ttl` from now, or be worth something else. Refused without one."""
        self.expire(now=now)
        held = self._ledger.of_conversation(conversation)
        if held is None or ttl <= 0:
            return _REFUSED
        granted = min(ttl, self._ttl_max)
        held.expires_at = after(now, granted)
        self._expect(held.expires_at)
        if value is not None:
            held.value, held.is_grace = value, False
        outcome = HintOutcome.ACCEPTED if granted == ttl else HintOutcome.CLIPPED
        return Grant(outcome=outcome, tokens=self.tokens_of(held), until=held.expires_at)

    def release(self, conversation: str, reason: UnpinReason, *, pin: str = "") -> bool:
        """End a conversation's pin, if it is the one called `pin` where that is given."""
        held = self._ledger.of_conversation(conversation)
        if held is None or (pin and held.pin != pin):
            return False
        self._end(held, reason)
        return True

    def release_where(self, wanted: Callable[[HeldPin], bool], reason: UnpinReason) -> int:
        """End all pins that `wanted` says yes to; how many."""
        found = [pin for pin in self._ledger if wanted(pin)]
        for pin in found:
            self._end(pin, reason)
        return len(found)

    def release_all(self, reason: UnpinReason) -> int:
        """End every pin and forget the past: nobody will come back to it."""
        self._past.clear()
        self._owners.clear()
        self._past_blocks = 0
        return self.release_where(lambda pin: True, reason)

    def forget(self, conversation: str) -> None:
        """Nobody will come back to a conversation."""
        self._past_blocks -= len(self._past.pop(conversation, ()))
        self._owners.pop(conversation, None)

    def expire(self, *, now: Instant) -> None:
        """End the pins whose time is over, unless a request of their conversation is here.

        Costs nothing before the first of them is due.
        """
        if self._next_expiry is None or now < self._next_expiry:
            return
        due = [p for p in self._ledger if p.expires_at <= now and not self._awaited(p.conversation)]
        for pin in due:
            self._end(pin, UnpinReason.EXPIRED)
        # An awaited one is looked at again when its request ends: see `no_longer_awaited`.
        later = (p.expires_at for p in self._ledger if p.expires_at > now)
        self._next_expiry = min(later, default=None)

    def no_longer_awaited(self, conversation: str) -> None:
        """Its last request ended, perhaps before it ran: its pin's time counts again."""
        held = self._ledger.of_conversation(conversation)
        if held is not None:
            self._expect(held.expires_at)

    def give_way(self, need: int, *, keep: frozenset[int] = frozenset(), spare: str = "") -> int:
        """Give back `need` blocks that only pins hold, if there are so many; how many it were."""
        freed = self._ledger.shrink(self._ledger.by_value(spare=spare), need, keep=keep)
        self._give_back(freed)
        return len(freed)

    # What there is.

    def __len__(self) -> int:
        return len(self._ledger)

    def __iter__(self) -> Iterator[HeldPin]:
        return iter(self._ledger)

    def of_conversation(self, conversation: str) -> HeldPin | None:
        """The conversation's pin."""
        return self._ledger.of_conversation(conversation)

    @property
    def held(self) -> int:
        """Blocks pinned, each counted once."""
        return self._ledger.held

    @property
    def free(self) -> int:
        """Blocks that vLLM counts as free, cached ones included."""
        return self._free_now()

    @property
    def total(self) -> int:
        """Blocks of the pool that requests can have."""
        return self._pool.num_gpu_blocks - 1

    def reclaimable(self, keep: frozenset[int] = frozenset(), *, most: int | None = None) -> int:
        """Blocks that only pins hold, but for those in `keep`; counted up to `most`."""
        only_ours = (b for b in self._ledger.blocks if b.ref_cnt == 1 and b.block_id not in keep)
        return sum(1 for _ in islice(only_ours, most))

    def tokens_of(self, pin: HeldPin) -> int:
        """How many tokens a pin's blocks hold."""
        return self._layout.tokens(pin.blocks)

    def cached_tokens(self, conversation: str) -> int:
        """How many tokens of a conversation's latest step are still in the cache."""
        present = self._present(self._past.get(conversation, []))
        return self._layout.tokens([entry.block for entry in present])

    def is_gone(self, conversation: str) -> bool:
        """Whether nothing of a conversation that we remember is in the cache; cheap to ask."""
        past = self._past[conversation]
        if self._layout.has_windows:
            return not all(map(_IS_CACHED, past))
        return not past[0].is_cached

    def program_of(self, conversation: str) -> str:
        """The program of a conversation that we remember."""
        return self._owners[conversation].program

    @property
    def conversations(self) -> Iterable[str]:
        """Conversations that we remember, least recent first."""
        return self._past

    def check(self) -> None:
        """Assert that books, budgets and vLLM's reference counts agree."""
        self._ledger.check()
        assert self.held <= self.blocks_max
        assert len(self._ledger) <= self._pins_max
        assert all(
            self._ledger.tenant_held(tenant) <= self.tenant_blocks_max
            for tenant in self._ledger.tenants
        )
        assert all(block.ref_cnt >= 1 for block in self._ledger.blocks)
        assert self._promise == 0
        assert self._past_blocks == sum(map(len, self._past.values()))

    # Inside.

    def _beginning(self, past: list[_Past], tokens: int | None) -> list[Block]:
        """The blocks in which the first `tokens` lie, in all groups; all of them with None."""
        if tokens is None:
            return [entry.block for entry in past]
        limit = self._layout.limit(tokens)
        return [entry.block for entry in past if entry.end <= limit]

    def _present(self, past: list[_Past]) -> list[_Past]:
        """What of it is still cached, and can be found: without its window, that is nothing."""
        found = list(takewhile(_IS_CACHED, past))
        return [] if self._layout.has_windows and len(found) < len(past) else found

    def _is_ours(self, block: Any) -> bool:
        pool = getattr(block, "pool", None)
        is_here = pool is None or pool is self._pool
        return is_here and not block.is_null and block.block_hash is not None

    def _tenant_of(self, conversation: str, held: HeldPin | None) -> str:
        owner = self._owners.get(conversation)
        remembered = "" if owner is None else owner.tenant
        return remembered or ("" if held is None else held.tenant)

    def _remember(self, conversation: str, owner: _Owner, request: Any) -> list[_Past]:
        """Note what a request that ends has in the cache; what that is."""
        groups = self._layout.groups(self._manager, request)
        ours = (block for group in groups for block in group if self._is_ours(block))
        past = _past_of(self._layout.by_position(ours))
        self.forget(conversation)
        if not past:
            return past
        self._past[conversation] = past
        self._owners[conversation] = owner
        self._past_blocks += len(past)
        # More than four times the pool would only be about blocks that are long gone.
        while self._past_blocks > 4 * self._pool.num_gpu_blocks or len(self._past) > _PAST_MAX:
            self.forget(next(iter(self._past)))
        return past

    def _hold(
        self, keeper: Keeper, blocks: list[Block], *, ttl: Nanos, now: Instant
    ) -> HeldPin | None:
        old = self._ledger.of_conversation(keeper.conversation)
        if not blocks or self._pins_max == 0:
            if old is not None:
                self._end(old, UnpinReason.SUPERSEDED)
            return None
        pin = HeldPin(
            pin=keeper.pin,
            conversation=keeper.conversation,
            program=keeper.program,
            tenant=keeper.tenant,
            value=keeper.value,
            is_grace=keeper.is_grace,
            since=now,
            expires_at=after(now, min(ttl, self._ttl_max)),
            blocks=list(blocks),
        )
        # What both want keeps our reference: it must not become free in between.
        gone = {} if old is None else {b.block_id: b for b in self._ledger.leave(old)}
        fresh = self._ledger.enter(pin)
        self._pool.touch([block for block in fresh if gone.pop(block.block_id, None) is None])
        self._pool.free_blocks(list(reversed(gone.values())))
        if old is not None:
            self._count(UnpinReason.SUPERSEDED)
        self.granted_total += 1
        self._expect(pin.expires_at)
        self._keep_to_budget(pin)
        # It may itself be what was of least value.
        return pin if self._ledger.of_conversation(pin.conversation) is pin else None

    def _keep_to_budget(self, newest: HeldPin) -> None:
        while len(self._ledger) > self._pins_max:
            self._end(self._ledger.by_value()[0], UnpinReason.BUDGET)
        beyond = self._ledger.tenant_held(newest.tenant) - self.tenant_blocks_max
        if beyond > 0:
            self._cut(self._ledger.by_value(tenant=newest.tenant), beyond, newest.tenant)
        beyond = self.held - self.blocks_max
        if beyond > 0:
            self._cut(self._ledger.by_value(), beyond, None)

    def _cut(self, pins: list[HeldPin], beyond: int, tenant: str | None) -> None:
        """Let go of claims until the budget holds, also of blocks that requests use just now."""

        def excess() -> int:
            if tenant is None:
                return self.held - self.blocks_max
            return self._ledger.tenant_held(tenant) - self.tenant_blocks_max

        self._give_back(self._ledger.cut(pins, excess))

    def _end(self, pin: HeldPin, reason: UnpinReason) -> None:
        freed = self._ledger.leave(pin)
        # Tail first, so that vLLM evicts the tail of the prompt before its head.
        self._pool.free_blocks(list(reversed(freed)))
        self._count(reason)

    def _give_back(self, blocks: list[Block]) -> None:
        """Return blocks that gave way, and end the pins that have none left."""
        self.shrunk_blocks_total += len(blocks)
        self._pool.free_blocks(blocks)
        for _ in self._ledger.take_empty():
            self._count(UnpinReason.BUDGET)

    def _count(self, reason: UnpinReason) -> None:
        self.ended_total[reason.value] = self.ended_total.get(reason.value, 0) + 1

    def _expect(self, at: Instant) -> None:
        self._next_expiry = at if self._next_expiry is None else min(at, self._next_expiry)

    def _allocate(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's `allocate_slots`; where it says no, once more with what pins could give."""
        assert self._original is not None
        original = self._original
        slots = original(request, *args, **kwargs)
        if slots is not None or not len(self._ledger):
            return slots
        try:
            hits = kwargs.get("new_computed_blocks")
            groups = hits.blocks if hits is not None else ()
            keep = frozenset(block.block_id for group in groups for block in group)
            promise = self.reclaimable(keep, most=_FEW)
        except Exception:
            self._failed("allocate")
            return original(request, *args, **kwargs)
        if not promise:
            return None
        with self._promised(promise, keep):
            slots = original(request, *args, **kwargs)
        if slots is not None or promise < _FEW:
            return slots
        with self._promised(self.reclaimable(keep), keep):
            return original(request, *args, **kwargs)

    @contextmanager
    def _promised(self, promise: int, keep: frozenset[int]) -> Iterator[None]:
        """Count that many pinned blocks as free, and make them so as they are taken."""
        pool: Any = self._pool

        def free() -> int:
            return self._free_now() + self._promise

        def take(count: int) -> list[Block]:
            short = count - self._free_now()
            if short > 0:
                self._promise -= self.give_way(short, keep=keep)
            left, self._promise = self._promise, 0
            try:
                return self._new_now(count)
            finally:
                self._promise = left

        self._promise = promise
        pool.get_num_free_blocks, pool.get_new_blocks = free, take
        try:
            yield
        finally:
            del pool.get_num_free_blocks, pool.get_new_blocks
            self._promise = 0


def _past_of(blocks: list[Block]) -> list[_Past]:
    return [_Past(block, block.block_hash, block.block_hash_num_tokens or 0) for block in blocks]
