"""A scripted engine: says exactly the bytes that a test wants, and tells what came and went."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

MODEL = "m"
PATIENCE_S = 60.0


@dataclass
class Exchange:
    """One request as it came over the wire, and the means to answer it."""

    method: str
    target: str
    pairs: list[tuple[str, str]]
    body: bytes
    writer: asyncio.StreamWriter
    #: Set when the other side has closed the connection.
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    is_chunked: bool = False

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.pairs}

    @property
    def fields(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def head(self, status: int = 200, **headers: str) -> None:
        """Status and headers of an answer whose body comes in chunks."""
        self.is_chunked = True
        lines = [f"HTTP/1.1 {status} Whatever", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(self, status: int, body: bytes, **headers: str) -> None:
        """An answer with a length."""
        lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def json(self, value: object, status: int = 200, **headers: str) -> None:
        await self.whole(
            status, json.dumps(value).encode(), content_type="application/json", **headers
        )

    async def stream(self, *parts: bytes) -> None:
        """A whole event stream, one chunk for each part."""
        await self.head(content_type="text/event-stream; charset=utf-8")
        for part in parts:
            await self.chunk(part)
        await self.end()

    def cut(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()

    async def until_gone(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.gone.wait()


Script = Callable[[Exchange], Awaitable[None]]


class Upstream:
    """Listens on a port of its own; `script` answers what is no probe."""

    def __init__(self) -> None:
        self.script: Script = answer
        self.exchanges: list[Exchange] = []
        self.models = [MODEL]
        #: Probes wait while this is clear.
        self.is_well = asyncio.Event()
        self.is_well.set()
        #: What a probe is answered with in place of the list of models.
        self.look: Script | None = None
        self.looks = 0
        #: What is answered to other probes, by path.
        self.pages: dict[str, bytes] = {}
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=1 << 20
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die: connections break, the port is closed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def exchange(self, number: int = 0) -> Exchange:
        """The request with this number, once it has come."""
        async with asyncio.timeout(PATIENCE_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.exchanges) > number)
        return self.exchanges[number]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while (exchange := await self._read(reader, writer)) is not None:
                await self._handle(exchange, reader)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side left, or we die
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Exchange | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        pairs = [
            (name, value.strip()) for name, _, value in (line.partition(":") for line in lines)
        ]
        length = int({n.lower(): v for n, v in pairs}.get("content-length", "0"))
        body = await reader.readexactly(length)
        return Exchange(method=method, target=target, pairs=pairs, body=body, writer=writer)

    async def _handle(self, exchange: Exchange, reader: asyncio.StreamReader) -> None:
        is_probe = exchange.method == "GET" and "x-request-id" not in exchange.headers
        if is_probe and exchange.target in self.pages:
            await exchange.whole(200, self.pages[exchange.target])
            return
        if is_probe and exchange.target in ("/metrics", "/server_info"):
            await exchange.whole(404, b"")
            return
        if is_probe and exchange.target == "/v1/models":
            self.looks += 1
            await self.is_well.wait()
            await (self.look or self.list_models)(exchange)
            return
        async with self._arrived:
            self.exchanges.append(exchange)
            self._arrived.notify_all()
        watch = asyncio.create_task(self._watch(exchange, reader))
        try:
            await self.script(exchange)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def list_models(self, exchange: Exchange) -> None:
        data = [{"id": name, "object": "model"} for name in self.models]
        await exchange.json({"object": "list", "data": data})

    async def _watch(self, exchange: Exchange, reader: asyncio.StreamReader) -> None:
        # No request is pipelined here, so what can be read now is only the end.
        with contextlib.suppress(ConnectionError):
            if await reader.read(1) != b"":
                return
        exchange.gone.set()


@contextlib.asynccontextmanager
async def running_upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()


def chunk(text: str | None = None, finish: str | None = None, **extra: Any) -> bytes:
    """One event of a chat stream."""
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return data({"id": "c1", "object": "chat.completion.chunk", "choices": choices} | extra)


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
USAGE_CHUNK = data({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
ANSWER = json.dumps(CHAT, indent=1).encode()


async def answer(exchange: Exchange) -> None:
    """A good chat answer, streamed where that was asked for."""
    fields = exchange.fields if exchange.body else {}
    if not fields.get("stream"):
        await exchange.whole(200, ANSWER, content_type="application/json")
        return
    usage = (fields.get("stream_options") or {}).get("include_usage")
    parts = [chunk("hel"), chunk("lo"), chunk(finish="stop"), USAGE_CHUNK if usage else b"", DONE]
    await exchange.stream(*(part for part in parts if part))


class Gate:
    """A script that begins as `before` says and then waits, until opened or gone."""

    def __init__(self, *before: bytes, is_stream: bool = True) -> None:
        self._before = before
        self._is_stream = is_stream
        self.open = asyncio.Event()
        #: Set when the script has sent its beginning.
        self.begun = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        if self._before:
            await exchange.head(content_type="text/event-stream")
            for part in self._before:
                await exchange.chunk(part)
        self.begun.set()
        waits = [asyncio.create_task(e.wait()) for e in (self.open, exchange.gone)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if exchange.gone.is_set():
            return
        if self._before:
            await exchange.chunk(chunk(finish="stop") + DONE)
            await exchange.end()
        else:
            await answer(exchange)


async def drop(exchange: Exchange) -> None:
    """Break the connection without a word."""
    exchange.cut()


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 5,
        "output_tokens": 1,
        "total_tokens": 6,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 1},
}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "text": "hello", "finish_reason": "stop", "logprobs": None}],
    "usage": CHAT["usage"],
}


def event(name: str, value: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + data({"type": name} | value)


MESSAGE_STREAM = (
    event("message_start", {"message": MESSAGE | {"content": [], "stop_reason": None}}),
    event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
    event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hello"}}),
    event("content_block_stop", {"index": 0}),
    event("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}),
    event("message_stop", {}),
)
RESPONSE_STREAM = (
    event(
        "response.created",
        {"sequence_number": 0, "response": RESPONSE | {"output": [], "status": "in_progress"}},
    ),
    event(
        "response.output_item.added",
        {
            "sequence_number": 1,
            "output_index": 0,
            "item": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            },
        },
    ),
    event(
        "response.output_text.delta",
        {
            "sequence_number": 2,
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": "hello",
            "logprobs": [],
        },
    ),
    event("response.completed", {"sequence_number": 3, "response": RESPONSE}),
)
COMPLETION_STREAM = (
    data({"id": "cmpl-1", "choices": [{"index": 0, "text": "hello", "finish_reason": None}]}),
    data({"id": "cmpl-1", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}),
    DONE,
)
CHAT_STREAM = (chunk("hel"), chunk("lo"), chunk(finish="stop"), DONE)

DIALECTS = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "hé"}]}, CHAT, CHAT_STREAM),
    "/v1/completions": ({"prompt": "hé"}, COMPLETION, COMPLETION_STREAM),
    "/v1/responses": ({"input": "hé"}, RESPONSE, RESPONSE_STREAM),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "hé"}], "max_tokens": 5},
        MESSAGE,
        MESSAGE_STREAM,
    ),
}


def oddly_spelled(fields: dict[str, Any], **more: Any) -> bytes:
    """JSON as no encoder of ours would write it."""
    body = {"model": "m"} | fields | {"temperature": 0.0, "x-unknown": [1, {"b": None}]} | more
    text = json.dumps(body, ensure_ascii=False, indent=3).replace("0.0", "0.000e-0")
    return b"  " + text.encode() + b"\n"
