"""What hosts need from outside, as protocols: engines, hint sinks and event sinks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agentsched.model import (
    Capabilities,
    EngineId,
    EngineLoad,
    HintOutcome,
    Pin,
    Prefetch,
    Unpin,
)

if TYPE_CHECKING:
    from agentsched.kernel.journal import JournalEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One HTTP request to an engine, ready to send.

    `headers` are end-to-end headers in the client's order; the adapter adds what belongs to the
    connection. `target` is path and query, as `/v1/chat/completions`. `body` goes out as it is.
    `idle_s` bounds the silence inside the answer in place of the adapter's own limit.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    idle_s: float | None = None


class EngineAnswer(Protocol):
    """An engine's answer: status and headers at once, the body as it comes.

    Must be closed. Closing it before the body ended aborts the request in the engine.
    """

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """End-to-end headers, in order; hop-by-hop ones are already taken out."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive.

        Raises:
            EngineUnreachable: the connection broke before the body ended.
            EngineTimeout: silence longer than the adapter's limit.
        """
        ...

    async def read(self) -> bytes:
        """The whole body. Raises as `chunks` does."""
        ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """One serving engine, reached over the network."""

    @property
    def id(self) -> EngineId: ...
    @property
    def url(self) -> str: ...
    @property
    def capabilities(self) -> Capabilities:
        """As last probed, with the models of the last look; `Capabilities()` before the first."""
        ...

    async def send(self, request: EngineRequest) -> EngineAnswer:
        """Send a request and wait for status and headers.

        Raises:
            EngineUnreachable: no connection, or it broke before the status line.
            EngineTimeout: no status line in time.
        """
        ...

    async def probe(self) -> Capabilities:
        """Find out what the engine can do. Raises `EngineError` when it does not answer."""
        ...

    async def load(self) -> EngineLoad:
        """Read its gauges. Raises `EngineError` when it does not answer."""
        ...

    def admission_fields(
        self,
        *,
        priority: int,
        session: str,
        program: str = "",
        tenant: str = "",
        is_kept: bool = True,
    ) -> Mapping[str, object]:
        """Body fields that tell this engine about order and identity; only what it takes.

        `session` is the conversation; `is_kept` false says that nobody will ask to keep it.
        """
        ...

    def admission_headers(self, *, priority: int) -> Sequence[tuple[str, str]]:
        """Headers that tell it about order, beside the fields: some APIs have no such field."""
        ...

    async def aclose(self) -> None: ...


class HintSink(Protocol):
    """Whatever can retain or warm KV for an engine. Advisory: a failed hint fails nothing."""

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome: ...


class EventSink(Protocol):
    """A reader of the journal: store, bus, telemetry, watchers. Never blocks; drops and counts."""

    def write(self, entry: JournalEntry) -> None: ...
