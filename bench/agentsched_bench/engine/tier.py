"""A bounded tier below the engine's memory: evicted blocks go there and can be loaded back."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from agentsched.model.errors import ConfigError
from agentsched.model.time import SECOND, Instant, Nanos, after


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """`blocks` of room, loaded back at `tokens_per_second` over one link, after `latency_ns`."""

    blocks: int
    tokens_per_second: float
    latency_ns: Nanos = Nanos(0)

    def __post_init__(self) -> None:
        assert self.blocks >= 0
        assert self.tokens_per_second > 0
        assert self.latency_ns >= 0


def read_tier(text: str) -> TierConfig:
    """Read `BLOCKS@TOKENS_PER_SECOND`.

    Raises:
        ConfigError: it is not of that form.
    """
    size, _, speed = text.partition("@")
    try:
        return TierConfig(blocks=int(size), tokens_per_second=float(speed))
    except (ValueError, AssertionError):
        raise ConfigError(f"not a tier: {text!r} (write BLOCKS@TOKENS_PER_SECOND)") from None


class HostTier:
    """Block hashes in the host's memory, least recently used first to go.

    Loads share one link and follow each other on it. Storing costs the engine nothing: it is a copy
    beside the computation, on the other direction of the link.
    """

    __slots__ = ("_config", "_held", "_link_free_at", "loaded_blocks")

    def __init__(self, config: TierConfig) -> None:
        self._config = config
        self._held: OrderedDict[int, None] = OrderedDict()
        self._link_free_at = Instant(0)
        self.loaded_blocks = 0

    def __len__(self) -> int:
        return len(self._held)

    def holds(self, content: int) -> bool:
        return content in self._held

    def put(self, content: int) -> None:
        """Keep a block's content, as the most recent; the oldest goes when there is no room."""
        if self._config.blocks == 0:
            return
        self._held[content] = None
        self._held.move_to_end(content)
        if len(self._held) > self._config.blocks:
            self._held.popitem(last=False)

    def load(self, contents: tuple[int, ...], *, block_size: int, now: Instant) -> Instant:
        """Start loading blocks that are held here; the instant at which they will be there."""
        for content in contents:
            self._held.move_to_end(content)
        self.loaded_blocks += len(contents)
        tokens = len(contents) * block_size
        span = Nanos(round(tokens / self._config.tokens_per_second * SECOND))
        start = Instant(max(now, self._link_free_at))
        self._link_free_at = after(start, Nanos(span + self._config.latency_ns))
        return self._link_free_at

    def clear(self) -> None:
        self._held.clear()

    def check(self) -> None:
        """Assert the bound."""
        assert len(self._held) <= self._config.blocks
