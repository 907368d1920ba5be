"""A proxy under fire: runs in this process, and can be asked whether it is still sound."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_bench.fuzz.raw import Exchange, RawAnswer, ask, exchange

#: How long anything may take that is not meant to.
PATIENCE_S: Final = 60.0
#: Codes that only we give, in answers that an engine had a part in.
_OURS: Final = ("engine_failed", "engine_timeout", "cut_short", "draining", "cancelled")
_ANTHROPIC: Final = ("/v1/messages", "/v1/messages/count_tokens")


class _Defects(logging.Handler):
    """Keeps what was logged as an error, by us, the HTTP library or the event loop."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@dataclass(slots=True, kw_only=True)
class Rig:
    """A running proxy and what is needed to attack it and to look it over afterwards."""

    gateway: Gateway
    host: str
    port: int
    _defects: _Defects
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)
    _plain: int = 0

    def write(self, entry: JournalEntry) -> None:
        """A turn of the scheduler: whoever waits for quiet looks again."""
        self._stirred.set()

    async def ask(self, request: bytes) -> RawAnswer:
        """One request on a connection of its own."""
        return await ask(self.host, self.port, request, timeout_s=PATIENCE_S)

    async def throw(
        self, pieces: Sequence[bytes], *, timeout_s: float = PATIENCE_S, is_ended: bool = False
    ) -> Exchange:
        """Any bytes on a connection of their own."""
        return await exchange(self.host, self.port, pieces, timeout_s=timeout_s, is_ended=is_ended)

    async def quiet(self) -> None:
        """Wait until no step is live."""
        async with asyncio.timeout(PATIENCE_S):
            while self.gateway.host.live_steps:
                self._stirred.clear()
                await self._stirred.wait()

    async def check(self) -> None:
        """Everything has ended, the books are right, and no defect was logged."""
        await self.quiet()
        scheduler = self.gateway.host.scheduler
        scheduler.check()
        assert not scheduler.steps
        assert all(not record.running for record in scheduler.engines.values())
        assert self.gateway.plain_requests == 0
        found, self._defects.found = self._defects.found, []
        assert not found, "\n".join(found)

    async def converse(self, *, model: str = "sim") -> None:
        """A plain conversation of two turns is answered, and recognised as one program."""
        self._plain += 1
        turns = [{"role": "user", "content": f"plain question {self._plain}"}]
        first = await self.ask(chat(turns, model=model))
        assert first.status == 200, first
        message = json.loads(first.body)["choices"][0]["message"]
        turns += [message, {"role": "user", "content": "and then?"}]
        second = await self.ask(chat(turns, model=model))
        assert second.status == 200, second
        name = "x-agentsched-program"
        assert first.header(name) == second.header(name) != ""
        assert second.header("x-agentsched-step") == "2"


@contextlib.asynccontextmanager
async def rigged(config: Config) -> AsyncIterator[Rig]:
    """Start a proxy on a free port and listen to what is logged; check it on the way out."""
    defects = _Defects()
    root = logging.getLogger()
    root.addHandler(defects)
    try:
        async with running(config) as (gateway, url):
            parts = urlsplit(url)
            rig = Rig(
                gateway=gateway,
                host=str(parts.hostname),
                port=int(parts.port or 0),
                _defects=defects,
            )
            gateway.host.watch(rig)
            yield rig
            await rig.check()
    finally:
        root.removeHandler(defects)


def chat(turns: Sequence[object], *, model: str = "sim", **fields: object) -> bytes:
    """A plain chat request's bytes."""
    body = {"model": model, "messages": list(turns), "max_tokens": 4, **fields}
    return post("/v1/chat/completions", json.dumps(body).encode())


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    """A sound POST of these bytes."""
    head = [b"POST %b HTTP/1.1" % path.encode(), b"Host: localhost", b"Connection: close"]
    head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def check_shape(path: str, answer: RawAnswer) -> None:
    """An answer is whole, and an error of ours has the dialect's shape; none is a defect of ours.

    Raises:
        AssertionError: it is not so.
    """
    assert answer.is_whole
    assert not [name for name, _ in answer.headers if name.lower() == "x-injected"]
    if answer.status < 400:
        return
    is_relayed = bool(answer.header("x-agentsched-engine"))
    if is_relayed and not answer.header("content-type").startswith("application/json"):
        return  # an engine's own words
    shown = json.loads(answer.body)
    assert isinstance(shown, dict), shown
    error = shown["error"]
    assert isinstance(error["message"], str), shown
    assert error.get("code") != "internal_error", shown
    # An engine's own errors pass as they are; of bytes that are no request the path is unknown.
    is_ours = not is_relayed or error.get("code") in _OURS
    if path in _ANTHROPIC and is_ours and error.get("code") != "bad_http":
        assert shown.get("type") == "error", shown
    if is_ours and shown.get("type") != "error":
        assert error["code"], shown
        assert "param" in error, shown
    assert error.get("type"), shown
    assert "The proxy failed" not in error["message"], shown


def open_files() -> int:
    """File descriptors that this process has open (Linux)."""
    return len(os.listdir("/proc/self/fd"))


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that no event announces.

    Raises:
        TimeoutError: it does not come true.
    """
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.01)
