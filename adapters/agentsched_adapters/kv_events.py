"""What an engine says by itself of its prefix cache: vLLM's KV events, published over ZeroMQ.

With `--kv-events-config` an engine tells which blocks it stored, after which block, and for whom:
the `session_id` of a request is the name of the conversation that we sent it. So blocks have owners
here: one conversation, or, once what a second one stored follows on it, several. A conversation of
whose own blocks none is left has gone from that cache; of one without any (all that it has is
shared) nothing is said. Tried with 0.32: what a prompt finds in the cache is not told again.

Nothing is asked of an engine for it, and an engine that is not heard has said nothing: what was
known is forgotten as soon as a message is missing.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

import msgspec

from agentsched.model import ConversationId, EngineError, EngineId
from agentsched_adapters.zmtp import messages

_log = logging.getLogger(__name__)

#: Conversations that are known of one engine: of more than these the oldest is forgotten.
_KNOWN_MAX: Final = 20_000
#: Blocks of the largest cache there may be: an account of more has missed that they went.
_BLOCKS_MAX: Final = 4_000_000
_RETRY_S: Final = 1.0
_RETRY_S_MAX: Final = 60.0
#: What the engine computes with. Blocks on a tier below it are told of, too, under other names.
_HERE: Final = frozenset({None, "GPU"})


class _Stored(msgspec.Struct, tag="BlockStored", gc=False):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None = None
    medium: str | None = None
    group_idx: int | None = None
    session_id: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved", gc=False):
    block_hashes: list[bytes | int]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    pass


class _Batch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[_Stored | _Removed | _Cleared]


_BATCH: Final = msgspec.msgpack.Decoder(_Batch)


class CacheAccount:
    """Which conversations an engine's events leave something of their own in its cache."""

    def __init__(self) -> None:
        #: Whose each block in the cache is; None: several conversations', or nobody's that we know.
        self._owner: dict[bytes | int, str | None] = {}
        #: The block before each of them; None: it is a prompt's first.
        self._before: dict[bytes | int, bytes | int | None] = {}
        #: Blocks of its own that a conversation has in the cache: one at least. Oldest first.
        self._own: dict[str, int] = {}
        #: Those that lost the last one, and were not told since.
        self._gone: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._own)

    def apply(self, batch: bytes) -> None:
        """Note what one message tells.

        Raises:
            msgspec.DecodeError: it is no batch of events.
        """
        for event in _BATCH.decode(batch).events:
            match event:
                case _Stored(medium=medium, group_idx=group) if medium in _HERE and not group:
                    self._stored(event)
                case _Removed(medium=medium, group_idx=group) if medium in _HERE and not group:
                    self._removed(event.block_hashes)
                case _Cleared():
                    gone = self._gone | dict.fromkeys(self._own)
                    self.forget()
                    self._gone = gone
                case _:
                    pass  # of a tier below, or of a further group of layers

    def take_gone(self) -> tuple[ConversationId, ...]:
        """Conversations that have gone since this was asked last."""
        gone, self._gone = sorted(self._gone), {}
        return tuple(ConversationId(name) for name in gone)

    def forget(self) -> None:
        """Something was missed: what is where is not known any more."""
        self._owner, self._before, self._own, self._gone = {}, {}, {}, {}

    def _stored(self, event: _Stored) -> None:
        session, before = event.session_id or None, event.parent_block_hash
        if session is not None:
            self._share(before, session)
            self._gone.pop(session, None)
        for block in event.block_hashes:
            if block not in self._owner:
                self._owner[block], self._before[block] = session, before
                if session is not None:
                    self._own[session] = self._own.pop(session, 0) + 1
            before = block
        if len(self._own) > _KNOWN_MAX:
            del self._own[next(iter(self._own))]
        if len(self._owner) > _BLOCKS_MAX:
            self.forget()

    def _share(self, block: bytes | int | None, session: str) -> None:
        """Somebody's prompt begins with these: whoever had them alone has less of its own."""
        while block is not None and (owner := self._owner.get(block)) not in (None, session):
            self._owner[block] = None
            self._has_less(owner)
            block = self._before[block]

    def _removed(self, blocks: list[bytes | int]) -> None:
        for block in blocks:
            self._before.pop(block, None)
            owner = self._owner.pop(block, None)
            if owner is not None and self._has_less(owner):
                self._gone[owner] = None

    def _has_less(self, owner: str) -> bool:
        """One block less is its own; whether that was the last one."""
        left = self._own.get(owner, 0) - 1
        if left > 0:
            self._own[owner] = left
            return False
        # One that was forgotten for there being too many is not said to have gone.
        return self._own.pop(owner, None) is not None


class KvEvents:
    """Listens to one engine's events. Started in the event loop that closes it."""

    def __init__(self, engine: EngineId, address: str) -> None:
        self._engine = engine
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._account = CacheAccount()
        self._task: asyncio.Task[None] | None = None
        self._is_heard = False

    @property
    def is_heard(self) -> bool:
        """Whether there is a connection over which something was heard."""
        return self._is_heard

    def start(self) -> None:
        """Begin to listen, if that was not begun before."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"KV events of {self._engine}")

    def take_gone(self) -> tuple[ConversationId, ...]:
        """As `CacheAccount.take_gone`."""
        return self._account.take_gone()

    async def aclose(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        patience = _RETRY_S
        while True:
            try:
                await self._listen()
            except EngineError as error:
                level = logging.WARNING if patience == _RETRY_S else logging.INFO
                _log.log(level, "engine %s tells no KV events: %s", self._engine, error)
            patience = _RETRY_S if self._is_heard else min(_RETRY_S_MAX, 2 * patience)
            self._is_heard = False
            self._account.forget()
            await asyncio.sleep(patience)

    async def _listen(self) -> None:
        """Until it breaks, or tells what we do not understand."""
        expected: int | None = None
        async for parts in messages(self._host, self._port):
            if len(parts) != 3 or len(parts[1]) != 8:
                raise EngineError("what is published there are no KV events")
            number = int.from_bytes(parts[1], "big")
            if expected is not None and number != expected:
                _log.info("engine %s: KV events were lost, begun anew", self._engine)
                self._account.forget()
            expected = number + 1
            try:
                self._account.apply(parts[2])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise EngineError(f"KV events of another version: {error}") from error
            if not self._is_heard:
                self._is_heard = True
                _log.info("engine %s tells KV events", self._engine)
