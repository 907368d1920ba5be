"""The client of the benchmark, in a process of its own so that its CPU is not the proxy's.

`python -m agentsched_bench.overhead.load` reads one `Job` per line. It makes the programs, opens
them (turn 0), says `ready`, waits for a line, sends the measured requests and writes one
`Outcome`. Each worker has one connection and one request in flight.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

import msgspec
import uvloop

from agentsched_bench.overhead.answers import STREAM_EVENTS, answer
from agentsched_bench.overhead.bodies import SHAPES, Script, TextPool

READY: Final = "ready"
_POOL_SEED: Final = 20_261_121
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d+)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_PROGRAM: Final = re.compile(rb"\r\nx-agentsched-program: *([^\r]+)", re.IGNORECASE)
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_PATIENCE_S: Final = 60.0


class Job(msgspec.Struct, kw_only=True):
    """One block of requests. `first_program` numbers the programs: the same number, the same bytes.

    With `is_history` programs start at their first message and are played one after the other up to
    the shape's length; else all are open at once, and take turns.
    """

    port: int
    shape: str
    is_stream: bool
    concurrency: int
    programs: int
    first_program: int
    with_ids: bool
    is_history: bool = False


class Outcome(msgspec.Struct, kw_only=True):
    """What a block showed. Latencies are in microseconds, `first_us` up to the first event.

    `recognised` of `continuations` requests came back under the program of the request before;
    both are 0 where the other side does not say.
    """

    requests: int
    body_bytes: int
    failures: int = 0
    failure: str = ""
    wall_s: float = 0.0
    total_us: list[float] = []
    first_us: list[float] = []
    continuations: int = 0
    recognised: int = 0


@dataclass(slots=True)
class Reply:
    """One answer and when it came, in nanoseconds of one clock."""

    head: bytes
    body: bytes
    sent_ns: int
    first_ns: int
    done_ns: int


class Wire(asyncio.Protocol):
    """One kept-alive connection with one request in flight."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._future: asyncio.Future[Reply] | None = None
        self._body_at = 0
        #: Bytes of the whole answer; 0: chunked, or not known yet.
        self._size = 0
        self._sent_ns = self._first_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(ConnectionResetError("the other side hung up"))

    async def ask(self, request: bytes) -> Reply:
        """Send one request and wait for the end of its answer."""
        assert self._transport is not None
        self._buffer.clear()
        self._body_at = self._size = 0
        self._future = asyncio.get_running_loop().create_future()
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(request)
        return await self._future

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        self._buffer += data
        if not self._body_at:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._body_at = end + 4
            length = _LENGTH.search(self._buffer, 0, end)
            self._size = end + 4 + int(length[1]) if length else 0
            self._first_ns = 0
        if not self._first_ns and len(self._buffer) > self._body_at:
            self._first_ns = now
        if self._is_whole() and self._future is not None and not self._future.done():
            head = bytes(self._buffer[: self._body_at])
            body = bytes(self._buffer[self._body_at :])
            self._future.set_result(Reply(head, body, self._sent_ns, self._first_ns or now, now))

    def _is_whole(self) -> bool:
        if self._size:
            return len(self._buffer) >= self._size
        return self._buffer.endswith(_LAST_CHUNK)


class Block:
    """One job under way."""

    def __init__(self, job: Job, text: TextPool) -> None:
        self._job = job
        self._shape = SHAPES[job.shape]
        self._text = text
        self._labels: dict[int, bytes] = {}
        self.outcome = Outcome(requests=0, body_bytes=0)
        self._wires: list[Wire] = []
        self._scripts: list[list[tuple[int, Script]]] = []

    async def open(self) -> None:
        """Connect, and send what is not measured."""
        job = self._job
        loop = asyncio.get_running_loop()
        for _ in range(job.concurrency):
            _, wire = await loop.create_connection(Wire, "127.0.0.1", job.port)
            self._wires.append(wire)
        if job.is_history:
            return
        numbers = range(job.first_program, job.first_program + job.programs)
        made = [(n, Script(self._shape, number=n, text=self._text)) for n in numbers]
        self._scripts = [made[i :: job.concurrency] for i in range(job.concurrency)]
        await asyncio.gather(*(self._play(w, self._opening(w)) for w in range(job.concurrency)))
        # What opened them is not part of the count.
        self.outcome = Outcome(
            requests=0,
            body_bytes=0,
            failures=self.outcome.failures,
            failure=self.outcome.failure,
        )

    async def measure(self) -> Outcome:
        """Send what is measured."""
        workers = range(self._job.concurrency)
        plan = self._histories if self._job.is_history else self._turns
        begun = time.perf_counter()
        await asyncio.gather(*(self._play(w, plan(w)) for w in workers))
        self.outcome.wall_s = time.perf_counter() - begun
        if self.outcome.requests:
            self.outcome.body_bytes //= self.outcome.requests
        for wire in self._wires:
            wire.close()
        return self.outcome

    def _opening(self, worker: int) -> Iterator[tuple[int, Script, int]]:
        for number, script in self._scripts[worker]:
            yield number, script, self._shape.messages_at(0)

    def _turns(self, worker: int) -> Iterator[tuple[int, Script, int]]:
        for turn in range(1, self._shape.turns + 1):
            for number, script in self._scripts[worker]:
                yield number, script, self._shape.messages_at(turn)

    def _histories(self, worker: int) -> Iterator[tuple[int, Script, int]]:
        job = self._job
        for index in range(worker, job.programs, job.concurrency):
            number = job.first_program + index
            script = Script(self._shape, number=number, text=self._text)
            for messages in range(2, self._shape.messages + 1, 2):
                yield number, script, messages
            self._labels.pop(number, None)

    async def _play(self, worker: int, plan: Iterator[tuple[int, Script, int]]) -> None:
        wire = self._wires[worker]
        for number, script, messages in plan:
            seed, body = script.body(messages, is_stream=self._job.is_stream)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    reply = await wire.ask(self._request(number, body))
            except (OSError, TimeoutError) as error:
                self._fail(f"{type(error).__name__}: {error}")
                return
            self._note(number, seed, len(body), reply)

    def _request(self, number: int, body: bytes) -> bytes:
        identity = b"x-session-id: program-%d\r\n" % number if self._job.with_ids else b""
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
            b"accept: application/json\r\nuser-agent: OpenAI/Python 2.8.1\r\n"
            b"content-type: application/json\r\nauthorization: Bearer sk-bench\r\n%s"
            b"content-length: %d\r\n\r\n%s"
        ) % (self._job.port, identity, len(body), body)

    def _note(self, number: int, seed: int, size: int, reply: Reply) -> None:
        out = self.outcome
        out.requests += 1
        out.body_bytes += size
        wrong = _defect(reply, seed, is_stream=self._job.is_stream)
        if wrong:
            self._fail(wrong)
            return
        if not self._job.is_history:
            out.total_us.append((reply.done_ns - reply.sent_ns) / 1_000)
            out.first_us.append((reply.first_ns - reply.sent_ns) / 1_000)
        label = _PROGRAM.search(reply.head)
        if label is None:
            return
        before = self._labels.get(number)
        if before is not None:
            out.continuations += 1
            out.recognised += before == label[1]
        self._labels[number] = label[1]

    def _fail(self, reason: str) -> None:
        self.outcome.failures += 1
        self.outcome.failure = self.outcome.failure or reason


def _defect(reply: Reply, seed: int, *, is_stream: bool) -> str:
    """What is wrong with an answer; empty if it is the right one."""
    status = _STATUS.match(reply.head)
    if status is None or status[1] != b"200":
        return f"{reply.head[:40]!r}: {reply.body[:200]!r}"
    body = _unchunked(reply.body) if _CHUNKED.search(reply.head) else reply.body
    if answer(seed).call.encode() not in body:
        return f"not the answer to {seed}: {body[:200]!r}"
    if is_stream:
        events = body.count(b"data: ")
        if events != STREAM_EVENTS or not body.endswith(b"data: [DONE]\n\n"):
            return f"{events} events instead of {STREAM_EVENTS}"
    return ""


def _unchunked(data: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    text = TextPool(_POOL_SEED)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        block = Block(msgspec.json.decode(line, type=Job), text)
        await block.open()
        print(READY, flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        outcome = await block.measure()
        print(msgspec.json.encode(outcome).decode(), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
