"""Simulated clients: agents that talk HTTP over the loop's network, check what they get, misbehave.

Each call ends in one word. Two of them are the proxy's fault: `short` (an answer that is not whole
and does not say so) and `wrong` (not the answer to this prompt); so is `hung`, a call that neither
ended nor was closed within its deadline. All others are what faults may lead to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from agentsched_bench.chaos.dialects import DIALECTS, Dialect, Said
from agentsched_bench.chaos.engine import words_of
from agentsched_bench.chaos.faults import Faults

#: Ends of a call for which the proxy is to blame.
FAULTY: Final = frozenset({"short", "wrong", "hung", "shapeless"})
_RETRIES: Final = 2


@dataclass(slots=True)
class Ends:
    """How calls ended, in the order in which they did."""

    counts: Counter[str] = field(default_factory=Counter)
    log: list[tuple[str, str, float]] = field(default_factory=list)
    longest_s: float = 0.0
    #: Calls by dialect and whether they were streams.
    kinds: Counter[str] = field(default_factory=Counter)
    #: What became of reports of tools, by status.
    reports: Counter[str] = field(default_factory=Counter)

    def note(self, call: str, end: str, *, took_s: float) -> None:
        self.counts[end] += 1
        self.log.append((call, end, round(took_s, 6)))
        if not end.startswith("left"):
            self.longest_s = max(self.longest_s, took_s)


@dataclass(slots=True)
class _Line:
    """Whether a call's own connection leads nowhere: then nobody can tell it anything."""

    is_dead: bool = True


class Agent:
    """One program: turns that build on each other, with thinking in between."""

    def __init__(
        self, name: str, *, port: int, tenant: str, faults: Faults, ends: Ends, deadline_s: float
    ) -> None:
        self.name = name
        self._port = port
        self._faults = faults
        self._ends = ends
        self._deadline_s = deadline_s
        random = faults.random
        self._think_s = random.choice((0.05, 0.5, 3.0))
        self._headers = {"x-agentsched-tenant": tenant}
        if random.random() < 0.5:
            self._headers["x-agentsched-program"] = name
        self._dialect = random.choice((*DIALECTS, DIALECTS[0]))
        #: The id of the tool call that the next turn answers.
        self._call_id = ""
        self._messages: list[dict[str, str]] = [
            {"role": "system", "content": f"You are agent {random.randrange(3)}. " * 8}
        ]

    async def run(self, turns: int) -> None:
        """Take so many turns, or stop where one cannot be had."""
        for turn in range(turns):
            asked = {"role": "user", "content": f"{self.name} asks {turn}", "call": self._call_id}
            self._messages.append(asked)
            if not await self._turn(turn):
                return
            if self._faults.strikes("tool_reports"):
                await self._report(turn)
            await asyncio.sleep(self._faults.random.expovariate(1 / self._think_s))

    async def _turn(self, turn: int) -> bool:
        is_stream = self._faults.random.random() < 0.6
        keyed = self._faults.random.choice(("", "idempotency-key", "x-request-id"))
        for attempt in range(1 + _RETRIES):
            headers = dict(self._headers)
            if keyed:
                headers[keyed] = f"{self.name}-{turn}"
            if attempt:
                headers["x-stainless-retry-count"] = str(attempt)
            call = f"{self.name}.{turn}.{attempt}"
            calls = [self._call(call, headers, is_stream=is_stream)]
            if self._faults.strikes("client_duplicate"):
                calls.append(self._call(f"{call}b", headers, is_stream=is_stream))
            answers = [said for said in await asyncio.gather(*calls) if said is not None]
            if answers:
                text, self._call_id = answers[0].text, answers[0].call
                said = {"role": "assistant", "content": text, "call": self._call_id}
                self._messages.append(said)
                return True
            await asyncio.sleep(self._faults.random.uniform(0.2, 2.0))
        return False

    async def _call(self, call: str, headers: dict[str, str], *, is_stream: bool) -> Said | None:
        """One request; the answer where it is whole."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        patience = self._deadline_s
        leaves = self._faults.strikes("client_hang_up")
        if leaves:
            patience = self._faults.random.uniform(0.0, 3.0)
        said: Said | None = None
        line = _Line()
        try:
            async with asyncio.timeout(patience):
                end, said = await self._exchange(line, headers, is_stream=is_stream)
        except TimeoutError as error:
            end = "left" if leaves else "timed_out" if error.args else "hung"
        except ConnectionRefusedError:
            end = "refused"
        except (ConnectionError, asyncio.IncompleteReadError):
            end = "closed"
        if end == "hung" and line.is_dead:
            end = "left in silence"
        self._ends.note(call, end, took_s=loop.time() - began)
        self._ends.kinds[f"{self._dialect.name} {'stream' if is_stream else 'whole'}"] += 1
        return said

    async def _exchange(
        self, line: _Line, headers: dict[str, str], *, is_stream: bool
    ) -> tuple[str, Said | None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        link = writer.transport.wire.link  # type: ignore[attr-defined]  # ours: see `wire.End`
        line.is_dead = link.stall_after is not None
        try:
            prompt = self._messages[-1]["content"]
            fields = self._dialect.fields(self._messages)
            body = json.dumps(fields | ({"stream": True} if is_stream else {})).encode()
            await self._send(writer, headers, body)
            if self._faults.strikes("client_slow_reader"):
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.sleep(self._faults.random.uniform(0.5, 20.0))
                writer.transport.resume_reading()  # type: ignore[attr-defined]
            return await _read(reader, self._dialect, expected="".join(words_of(prompt)))
        finally:
            writer.transport.abort()

    async def _send(
        self, writer: asyncio.StreamWriter, headers: dict[str, str], body: bytes
    ) -> None:
        lines = [f"POST {self._dialect.path} HTTP/1.1", "host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
        data = "\r\n".join([*lines, "", ""]).encode() + body
        pieces = self._faults.random.randrange(2, 6)
        if self._faults.strikes("client_slow_writer"):
            size = len(data) // pieces + 1
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await writer.drain()
                await asyncio.sleep(self._faults.random.uniform(0.0, 4.0))
            return
        writer.write(data)
        await writer.drain()

    async def _report(self, turn: int) -> None:
        """A tool began and ended, told in any order, perhaps twice."""
        random = self._faults.random
        verbs = random.choices(("started", "finished"), k=random.randrange(1, 4))
        for verb in verbs:
            report = {"event": verb, "program": self.name, "tool": "bash", "call_id": f"c{turn}"}
            body = json.dumps(report).encode()
            head = "POST /agentsched/v1/tools HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            head += "authorization: Bearer key\r\n"
            head += f"x-agentsched-tenant: {self._headers['x-agentsched-tenant']}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(5.0):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    try:
                        writer.write(head.encode() + body)
                        said = await reader.readuntil(b"\r\n\r\n")
                        self._ends.reports[said.split(b" ", 2)[1].decode()] += 1
                    finally:
                        writer.transport.abort()


async def _read(
    reader: asyncio.StreamReader, dialect: Dialect, *, expected: str
) -> tuple[str, Said | None]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
    }
    is_chunked = headers.get("transfer-encoding") == "chunked"
    body = await (_chunks(reader) if is_chunked else _sized(reader, headers))
    if status != 200:
        is_shaped = b'"error"' in body and b'"message"' in body
        return f"status {status}" if is_shaped else "shapeless", None
    if headers.get("content-type", "").startswith("text/event-stream"):
        return _judge_stream(body, dialect, expected)
    try:
        answer = json.loads(body)
        said = Said(dialect.text_of(answer), True, False, dialect.call_of(answer))
    except (ValueError, KeyError, IndexError, TypeError):
        return "short", None
    return ("answered", said) if said.text == expected else ("wrong", None)


async def _sized(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    return await reader.readexactly(int(headers["content-length"]))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while True:
        size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
        parts.append((await reader.readexactly(size + 2))[:-2])
        if not size:
            return b"".join(parts)


def _judge_stream(body: bytes, dialect: Dialect, expected: str) -> tuple[str, Said | None]:
    try:
        said = dialect.read(body)
    except (ValueError, KeyError, IndexError, TypeError):
        return "shapeless", None
    if said.has_error:
        return "error event", None
    if not said.is_done:
        return "short", None
    return ("answered", said) if said.text == expected else ("wrong", None)
