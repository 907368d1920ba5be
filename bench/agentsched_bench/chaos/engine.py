"""A simulated engine: an HTTP server on the loop's network, with vLLM's pages and seeded faults.

Its answer to a prompt is a function of the prompt, so a client can tell whether what it got is
whole and its own. A crash breaks all connections and forgets everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from agentsched_bench.chaos.dialects import BY_PATH, MODEL, Dialect
from agentsched_bench.chaos.faults import Faults
from agentsched_bench.chaos.plugin import PATH as PLUGIN_PATH
from agentsched_bench.chaos.plugin import SimulatedPlugin

_PORT: Final = 8_000
_FATES: Final = (
    "error",
    "busy",
    "silent",
    "hang",
    "cut",
    "torn",
    "short",
    "garbage",
    "stream_error",
)
_CALL: Final = re.compile(r"call-[0-9a-f]{8}")
_STREAM: Final = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"


@dataclass(slots=True)
class EngineLedger:
    """What an engine did; read by the invariants."""

    begun: int = 0
    finished: int = 0
    aborted: int = 0
    crashes: int = 0
    running: set[int] = field(default_factory=set)
    running_peak: int = 0
    #: Ids of tool calls that came back and that no engine gave.
    strange_calls: set[str] = field(default_factory=set)


def words_of(prompt: str) -> list[str]:
    """The answer to a prompt, word by word."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return [f"{digest[i : i + 4]} " for i in range(0, 4 * (4 + int(digest[:2], 16) % 12), 4)]


def tool_of(prompt: str) -> str:
    """The id of the tool call that the answer to a prompt ends in, where its dialect has any; of
    four answers one is a last word.
    """
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return f"call-{digest[:8]}" if int(digest[-1], 16) % 4 else ""


class SimulatedEngine:
    """Listens at `http://{name}:{port}` while it is up; port 0 picks a free one.

    With `has_tools` it calls tools; with a `plugin` it keeps pins.
    """

    def __init__(
        self,
        name: str,
        faults: Faults,
        *,
        slots: int = 8,
        port: int = _PORT,
        token_s: float = 0.02,
        blocks: int = 4_096,
        has_tools: bool = False,
        plugin: SimulatedPlugin | None = None,
    ) -> None:
        self.name = name
        self._blocks = blocks
        self._has_tools = has_tools
        self.plugin = plugin
        self._port = port
        self._token_s = token_s
        self.ledger = EngineLedger()
        self.slowness = 1.0
        self.is_sick = False
        self._faults = faults
        self._slots = slots
        self._started_at = 0.0
        self._numbers = 0
        self._turns = asyncio.Semaphore(slots)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://{self.name}:{self._port}"

    @property
    def is_up(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Come up, with nothing in the cache."""
        self._started_at = asyncio.get_running_loop().time()
        self._turns = asyncio.Semaphore(self._slots)
        self._server = await asyncio.start_server(
            self._serve, self.name, self._port, limit=1 << 20, backlog=4_096
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def crash(self) -> None:
        """Die: connections break, nothing listens, nothing is remembered."""
        if self._server is None:
            return
        self.ledger.crashes += 1
        if self.plugin is not None:
            self.plugin.forget()
        self._server.close()
        self._server = None
        for writer in sorted(self._writers, key=id_of):
            writer.transport.abort()
        for task in sorted(self._tasks, key=lambda task: task.get_name()):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._numbers += 1
        task.set_name(f"{self.name} {self._numbers:06}")
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side left, or we die
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return False
        method, target, _ = head.split(" ", 2)
        length = 0
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                length = int(value)
        body = await reader.readexactly(length)
        if method == "GET":
            _whole(writer, *self._page(target))
            await writer.drain()
            return True
        fields = json.loads(body)
        if self.plugin is not None and target.startswith(PLUGIN_PATH):
            _whole(writer, *self.plugin.asked(target.rpartition("/")[2], fields))
            await writer.drain()
            return True
        self._numbers += 1
        number = self._numbers
        gone = asyncio.ensure_future(_until_gone(reader))
        dialect = BY_PATH.get(target.partition("?")[0])
        work = asyncio.ensure_future(self._generate(number, dialect, fields, writer))
        work.set_name(f"{self.name} work {number:06}")
        try:
            await asyncio.wait((gone, work), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            self.ledger.aborted += 1
            return False
        finally:
            for one in (gone, work):
                one.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)

    def _page(self, target: str) -> tuple[int, bytes]:
        if self.is_sick:
            return 500, b'{"error": {"message": "sick"}}'
        if target == "/version":
            return 200, b'{"version": "0.32.0"}'
        if target == "/v1/models":
            data = [{"id": MODEL, "object": "model", "max_model_len": 100_000}]
            return 200, json.dumps({"object": "list", "data": data}).encode()
        if self.plugin is not None and target.startswith(f"{PLUGIN_PATH}/state"):
            return 200, self.plugin.state()
        if target == "/metrics":
            return 200, self._metrics()
        return 404, b'{"error": {"message": "nothing here"}}'

    def _metrics(self) -> bytes:
        waiting = max(0, len(self.ledger.running) - self._slots)
        info = f'block_size="16",num_gpu_blocks="{self._blocks}",enable_prefix_caching="True"'
        lines = (
            "# pages of a simulated engine",
            f"vllm:cache_config_info{{{info}}} 1.0",
            f"vllm:num_requests_running {len(self.ledger.running) - waiting}",
            f"vllm:num_requests_waiting {waiting}",
            "vllm:kv_cache_usage_perc 0.5",
            "vllm:num_preemptions_total 0",
            f"process_start_time_seconds {self._started_at:.3f}",
        )
        return "\n".join((*lines, "")).encode()

    async def _generate(
        self,
        number: int,
        dialect: Dialect | None,
        fields: dict[str, Any],
        writer: asyncio.StreamWriter,
    ) -> bool:
        if dialect is None:
            return await self._complete(fields, writer)
        fate = self._fate()
        if fate in ("engine_error", "engine_busy"):
            status = 500 if fate == "engine_error" else 503
            _whole(writer, status, b'{"error": {"message": "as asked", "code": "fault"}}')
            await writer.drain()
            return True
        if fate == "engine_silent":
            await asyncio.get_running_loop().create_future()
        if fate == "engine_garbage":
            writer.write(b"\x16\x03\x01 this is not HTTP at all\r\n\r\n")
            return False
        ledger = self.ledger
        ledger.strange_calls |= {c for c in dialect.calls_in(fields) if not _CALL.fullmatch(c)}
        ledger.begun += 1
        ledger.running.add(number)
        ledger.running_peak = max(ledger.running_peak, len(ledger.running))
        try:
            async with self._turns:
                is_whole = await self._answer(dialect, fields, writer, fate)
        finally:
            ledger.running.discard(number)
        ledger.finished += is_whole
        return is_whole

    def _fate(self) -> str:
        struck = [kind for kind in _FATES if self._faults.strikes(f"engine_{kind}")]
        return f"engine_{struck[0]}" if struck else ""

    async def _complete(self, fields: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """The tiny requests of a probe, and the warm-ups of a stock engine."""
        if not isinstance(fields.get("session_id", ""), str):
            _whole(writer, 400, b'{"error": {"message": "session_id is a string"}}')
        else:
            await asyncio.sleep(self._token_s)
            choice = {"index": 0, "text": "a", "finish_reason": "length"}
            usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            usage_details = usage | {"prompt_tokens_details": {"cached_tokens": 0}}
            shown = {"id": "p", "choices": [choice], "usage": usage_details}
            _whole(writer, 200, json.dumps(shown).encode())
        await writer.drain()
        return True

    async def _answer(
        self, dialect: Dialect, fields: dict[str, Any], writer: asyncio.StreamWriter, fate: str
    ) -> bool:
        prompt = dialect.last_text(fields)
        words, call = words_of(prompt), tool_of(prompt) if self._has_tools else ""
        usage = (8 + len(json.dumps(fields)) // 4, len(words))
        await asyncio.sleep(5 * self._token_s * self.slowness)
        if fields.get("stream"):
            closing = dialect.closing("".join(words), usage, call)
            is_whole = await self._stream(dialect, words, closing, writer, fate)
        else:
            whole = dialect.whole("".join(words), usage, call)
            is_whole = await self._at_once(whole, len(words), writer, fate)
        await writer.drain()
        return is_whole

    async def _stream(
        self,
        dialect: Dialect,
        words: list[str],
        closing: list[bytes],
        writer: asyncio.StreamWriter,
        fate: str,
    ) -> bool:
        writer.write(f"HTTP/1.1 200 OK\r\n{_STREAM}\r\n".encode())
        for event in dialect.opening():
            _chunk(writer, event)
        stop = len(words) // 2 if fate else len(words)
        for word in words[:stop]:
            await asyncio.sleep(self._token_s * self.slowness)
            _chunk(writer, dialect.word(word))
            await writer.drain()
        if fate == "engine_hang":
            await asyncio.get_running_loop().create_future()
        if fate in ("engine_cut", "engine_torn"):
            if fate == "engine_torn":
                half = dialect.word(words[stop])
                _chunk(writer, half[: self._faults.random.randrange(1, len(half))])
                await writer.drain()
            writer.transport.abort()
            return False
        if fate == "engine_stream_error":
            _chunk(writer, dialect.error())
        if not fate:
            for event in closing:
                _chunk(writer, event)
        writer.write(b"0\r\n\r\n")
        return not fate or fate == "engine_stream_error"

    async def _at_once(
        self, body: bytes, words: int, writer: asyncio.StreamWriter, fate: str
    ) -> bool:
        stop = words // 2 if fate else words
        await asyncio.sleep(stop * self._token_s * self.slowness)
        if fate == "engine_hang":
            await asyncio.get_running_loop().create_future()
        if fate == "engine_cut":
            writer.transport.abort()
            return False
        if fate in ("engine_short", "engine_torn"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
            writer.write(body[: len(body) // 2])
            return False
        _whole(writer, 200, body)
        return not fate or fate == "engine_stream_error"


def id_of(writer: asyncio.StreamWriter) -> int:
    """An order of connections that is the same in each run."""
    return int(writer.get_extra_info("peername")[1])


async def _until_gone(reader: asyncio.StreamReader) -> None:
    # Nothing is pipelined, so what can be read now is only the end.
    with contextlib.suppress(ConnectionError, TimeoutError):
        await reader.read(1)


def _whole(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
