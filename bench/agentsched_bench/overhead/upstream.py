"""An engine that costs next to nothing: answers at once, streams at a steady pace.

A program of its own (`python -m agentsched_bench.overhead.upstream`). It prints its URL when it
listens, answers what proxies ask before they trust an engine, and reads no more of a request than
its seed. `POST /gap/SECONDS` sets the time between two events of a stream.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final, cast

import msgspec
import uvloop

from agentsched_bench.overhead.answers import MODEL, answer, stream, whole

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_SEED: Final = b'"seed":'
_DIGITS: Final = re.compile(rb"\s*(\d+)")
_HEAD_END: Final = b"\r\n\r\n"
_JSON: Final = b"application/json"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_METRICS: Final = """\
# TYPE process_start_time_seconds gauge
process_start_time_seconds {started}
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="16",enable_prefix_caching="True",num_gpu_blocks="4000000"}} 1.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{model}"}} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="{model}"}} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="{model}"}} 0.0
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{{engine="0",model_name="{model}"}} 0.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{{engine="0",model_name="{model}"}} 0.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{{engine="0",model_name="{model}"}} 0.0
"""


class Pace:
    """Seconds between two events of any stream; 0 sends them all at once."""

    def __init__(self) -> None:
        self.gap_s = 0.0


class Connection(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self, pace: Pace, metrics: bytes) -> None:
        self._pace = pace
        self._metrics = metrics
        self._buffer = bytearray()
        self._need = 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= self._need:
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, end + 2)
            self._need = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < self._need:
                return
            request = bytes(self._buffer[: self._need])
            del self._buffer[: self._need]
            self._need = 0
            self._answer(request, body_at=end + 4)
            if not self._buffer:
                return

    def _answer(self, request: bytes, *, body_at: int) -> None:
        method, target, _ = request[: request.index(b"\r\n")].split(b" ", 2)
        path = target.partition(b"?")[0]
        match method, path:
            case b"POST", b"/v1/chat/completions":
                self._chat(request)
            case b"POST", b"/v1/completions":
                self._completion(request[body_at:])
            case b"POST", _ if path.startswith(b"/gap/"):
                self._pace.gap_s = float(path.removeprefix(b"/gap/"))
                self._send(b"{}")
            case b"GET", b"/health" | b"/ping":
                self._send(b"")
            case b"GET", b"/version":
                self._send(b'{"version":"0.32.0"}')
            case b"GET", b"/metrics":
                self._send(self._metrics, kind=b"text/plain; version=0.0.4")
            case b"GET", b"/v1/models":
                self._send(_models())
            case _:
                self._send(b'{"error":{"message":"not found","code":404}}', status=b"404 Not Found")

    def _chat(self, request: bytes) -> None:
        # Some proxies write the object anew: the seed may be anywhere, so long as it is ours.
        found = _DIGITS.match(request, request.rfind(_SEED) + len(_SEED))
        said = answer(int(found[1]) if found else 0)
        if b'"stream":true' not in request:
            self._send(whole(said))
            return
        assert self._transport is not None
        blocks = [b"%x\r\n%s\r\n" % (len(event), event) for event in stream(said)]
        blocks[0] = _STREAM_HEAD + blocks[0]
        blocks[-1] += b"0\r\n\r\n"
        if self._pace.gap_s == 0:
            self._transport.write(b"".join(blocks))
            return
        self._stream(blocks, 0, asyncio.get_running_loop())

    def _stream(self, blocks: list[bytes], at: int, loop: asyncio.AbstractEventLoop) -> None:
        assert self._transport is not None
        self._transport.write(blocks[at])
        if at + 1 < len(blocks):
            self._timer = loop.call_later(self._pace.gap_s, self._stream, blocks, at + 1, loop)

    def _completion(self, body: bytes) -> None:
        """What adapters try: a session of a wrong type is refused, as the real engine does it."""
        if b'"session_id":{}' in body:
            self._send(b'{"error":{"message":"session_id","code":400}}', status=b"400 Bad Request")
            return
        usage = {"prompt_tokens": 33, "completion_tokens": 1, "total_tokens": 34}
        details = {"prompt_tokens_details": {"cached_tokens": 32}}
        choice = {"index": 0, "text": "a", "finish_reason": "length"}
        page = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": MODEL}
        self._send(msgspec.json.encode(page | {"choices": [choice], "usage": usage | details}))

    def _send(self, body: bytes, *, status: bytes = b"200 OK", kind: bytes = _JSON) -> None:
        assert self._transport is not None
        head = b"HTTP/1.1 %s\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: %s\r\n\r\n"
        self._transport.write(head % (status, len(body), kind) + body)


def _models() -> bytes:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "vllm", "root": MODEL}
    return msgspec.json.encode({"object": "list", "data": [model | {"max_model_len": 1_000_000}]})


async def _serve() -> None:
    pace = Pace()
    metrics = _METRICS.format(started=time.time(), model=MODEL).encode()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pace, metrics), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"ready on http://{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
