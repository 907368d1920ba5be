"""What a proxy remembers of the process before it, and leaves to the one after it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentsched.clock import Clock
from agentsched.config import Config
from agentsched.kernel import Scheduler
from agentsched.model import ConfigError, in_seconds
from agentsched.ports import EventSink
from agentsched.proxy.host import LiveHost
from agentsched.proxy.identity import IdentityIndex
from agentsched.proxy.identity.keeping import encode_turn
from agentsched.proxy.identity.sharing import SharedIndex
from agentsched.proxy.resends import Resends
from agentsched.proxy.sharing import TurnSharing

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from agentsched.store.following import Follower
    from agentsched.store.store import Store

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Memory:
    """The parts of a gateway that go on from an earlier process. `secret` keys prompts' hashes."""

    scheduler: Scheduler
    clock: Clock
    secret: int
    sink: EventSink
    resends: Resends
    collector: Collector
    _store: Store

    def index(self, **given: Any) -> SharedIndex:
        """The index of programs, with those of the earlier process; call it once."""
        restored = self._store.restored
        index = SharedIndex(keep=self._store.writer.keep, first_handle=_first_handle(), **given)
        began = time.monotonic()
        unanswered = index.bring_back(restored.turns, now=self.clock.now())
        restored.turns.clear()
        for turn, step in unanswered.items():
            self.resends.remember(turn, step)
        log.info("%d programs are known again (%.2f s)", len(index), time.monotonic() - began)
        return index

    def others(self) -> Follower:
        """Reads what other replicas write, from as far back as programs are remembered."""
        return self._store.follower()


@contextlib.asynccontextmanager
async def remembered(config: Config) -> AsyncIterator[Memory | None]:
    """The memory that the configuration asks for; None: it asks for none.

    Raises:
        ConfigError: the store is not configured as it can be, or its packages are not installed.
    """
    if config.store.url is None:
        yield None
        return
    try:
        # Imported late: SQLAlchemy is an extra, and takes longer to import than all the rest.
        from agentsched.store.metrics import StoreCollector
        from agentsched.store.store import open_store
    except ImportError as error:
        raise ConfigError("store: pip install 'agentsched[store]' for a database") from error

    resends = Resends()

    def encode(turn: Any) -> tuple[int, int, bytes]:
        return encode_turn(turn, step_id=resends.step_of(turn.handle) or "")

    async with open_store(config, encode_turn=encode) as store:
        yield Memory(
            scheduler=store.restored.scheduler,
            clock=store.restored.clock,
            secret=store.secret,
            sink=store.writer,
            resends=resends,
            collector=StoreCollector(store.writer),
            _store=store,
        )


def _first_handle() -> int:
    """Greater than those of all processes before, and no other replica's."""
    return (time.time_ns() // 1_000 << 10) | secrets.randbits(10)


def sharing_of(
    memory: Memory | None, *, index: IdentityIndex, host: LiveHost, config: Config
) -> TurnSharing | None:
    """What replicas tell each other of programs; None: hashes of no common secret agree."""
    if memory is None or not isinstance(index, SharedIndex):
        return None
    follower = memory.others() if config.store.has_replicas else None
    settle_s = in_seconds(config.bus.settle)
    return TurnSharing(index=index, host=host, follower=follower, settle_s=settle_s)
