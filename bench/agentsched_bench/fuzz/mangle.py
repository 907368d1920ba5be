"""Bytes that are nearly HTTP: what a broken or hostile client sends, and what a broken engine says.

All chance comes from the generator that is handed in, so the bytes can be made again.
"""

from __future__ import annotations

import random
from typing import Final

from agentsched_bench.fuzz.nasty import End, Script

_BODY: Final = b'{"model":"sim","messages":[{"role":"user","content":"hi"}]}'
_HEAD: Final = (
    b"POST /v1/chat/completions HTTP/1.1",
    b"Host: localhost",
    b"Content-Type: application/json",
)
_METHODS: Final = (
    b"GET POST PUT DELETE HEAD OPTIONS PATCH TRACE CONNECT get P\xc3\x96ST PRI BREW X" + b"x" * 40
).split(b" ")
_VERSIONS: Final = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.10",
    b"http/1.1",
    b"",
    b"HTTP/1.",
    b"HTTP/1.1 x",
    b"ICY/1.1",
    b"HTTP/ 1.1",
)
_TARGETS: Final = (
    b"/v1/chat/completions",
    b"/v1/models",
    b"/",
    b"*",
    b"",
    b"//",
    b"///v1/models",
    b"/v1//models",
    b"http://h/v1/models",
    b"http://other.example:1/v1/models",
    b"https://user@h/v1/x?y",
    b"h:443",
    b"/v1/../metrics",
    b"/v1/%2e%2e/metrics",
    b"/v1/.%2E/x",
    b"/v1/a%2Fb",
    b"/v1/a\\b",
    b"/v1/%5c..",
    b"/v1/%00",
    b"/v1/%zz",
    b"/v1/%",
    b"/v1/\xff\xfe",
    b"/v1/\xc3\xa9",
    b"/v1/x y",
    b"/v1/x\ty",
    b"/v1/x#y",
    b"/v1/x?a=%0d%0aX:1",
    b"/v1/%0d%0aX-Injected:%201",
    b"/v1/;a=b",
    b"/v1/responses/%0A",
    b"/v1/responses/resp_1/cancel",
    b"/v1/responses//cancel",
    b"/v1/x?",
    b"/v1/x??&&==",
    b"/v1/" + b"a" * 9_000,
    b"/" + b"%41" * 8_000,
    b"/v1/x?" + b"a=b&" * 2_000,
    b"/agentsched/v1/programs",
    b"/agentsched/v1/programs?limit=1e9",
    b"/metrics",
    b"/healthz",
    b"/agentsched/v1/programs?limit=-1&offset=" + b"9" * 5_000,
    b"/readyz/",
    b"/healthz?x",
    b"/agentsched/v1/programs?limit=%D9%A3&offset=%E2%91%A0&tenant=%00",
    b"/agentsched/v1/programs/%2F",
    b"/agentsched/v1/programs/%ff%fe",
    b"/agentsched/v1/programs/",
    b"/agentsched/v1/programs/%ED%A0%80/story",
    b"/agentsched/v1/programs/\xff/release",
    b"/agentsched/v1/engines/none/drain",
    b"/agentsched/v1/engines/%F0%9F%98%80/undrain",
    b"/agentsched/v1/statistics",
    b"/agentsched/v1/tenants",
    b"/agentsched/v1/policies",
    b"/agentsched/v1/engines",
    b"/agentsched/v1/../v1/models",
    b"/agentsched",
    b"/v1",
    b"/v1/",
)
_LENGTHS: Final = (
    b"0",
    b"5",
    b"-1",
    b"+5",
    b"5, 5",
    b"5 5",
    b"0x5",
    b"5.0",
    b"",
    b"99999999999999999999",
    b"1e1",
    b"\xd9\xa3",
    b" 5",
    b"05",
    b"999999999",
    b"a",
)
_ENCODINGS: Final = (
    b"chunked",
    b"Chunked",
    b"chunked, chunked",
    b"gzip, chunked",
    b"chunked, identity",
    b"identity",
    b"xchunked",
    b"chunked;q=1",
    b"\x0bchunked",
    b"chun\tked",
    b"",
    b'"chunked"',
)
_CHUNKS: Final = (
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"5\nhello\n",
    b"G\r\nx\r\n",
    b"-1\r\nx\r\n",
    b"5;ext\r\nhello\r\n",
    b"5;" + b"e" * 5_000 + b"\r\nhello\r\n",
    b"ffffffffffffffff\r\nx\r\n",
    b"5\r\nhello",
    b"5 \r\nhello\r\n",
    b"0x5\r\nhello\r\n",
    b"05\r\nhello\r\n",
    b"5\r\nhelloX\r\n",
    b"0\r\nTrailer: x\r\n\r\n",
    b"\r\n",
    b"1" * 40 + b"\r\n",
    b"5\r\r\nhello\r\n",
    b"0\r\n\r\nGET /v1/smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
)
_LINES: Final = (
    b"X: a\r\n folded",
    b"X : a",
    b" X: a",
    b": a",
    b"X",
    b"X:",
    b"X: \x00",
    b"X: \x01\x7f",
    b"X: a\rb",
    b"X: a\nY: b",
    b"X\x00: a",
    b"\xc3\xa9: a",
    b"X: \xc3\xa9",
    b"X: \xff",
    b"Host: two",
    b"X(y): a",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"Connection: x-request-id, host, te",
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"Content-Encoding: gzip",
    b"Content-Encoding: x",
    b"Sec-WebSocket-Key: x",
    b"Sec-WebSocket-Version: 13",
    b"X-Forwarded-For: ::1, x",
    b"Content-Type: \xff",
    b"Accept-Encoding: gzip",
    b"Authorization: Bearer \xff\xfe",
    b"Te: trailers",
    b"X: " + b"a" * 8_100,
    b"X: " + b"a" * 65_536,
    b"a" * 20_000 + b": x",
    b"X-Request-Id: a\x7fb",
    b"Trailer: Content-Length",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
)
_NOISE: Final = (
    b"",
    b"\r\n",
    b"\r\n" * 1_000,
    b"\n",
    b"\x00",
    b"GET",
    b"GET /",
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,
    b"SSH-2.0-x\r\n",
    b"\x05\x01\x00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 40,
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"a" * 70_000,
    b"\xff" * 3_000,
)

_STATUSES: Final = (
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 x",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 101 Switching Protocols",
    b"HTTP/1.1 103 Early Hints",
    b"HTTP/1.1 301 Moved",
    b"HTTP/1.1 400 Bad",
    b"HTTP/1.1 429 Slow down",
    b"HTTP/1.1 500 \xff\xfe",
    b"HTTP/1.1 503 x",
    b"HTTP/1.1 599 x",
    b"HTTP/1.1 600 x",
    b"HTTP/1.1 999 x",
    b"HTTP/1.1 000 x",
    b"HTTP/1.1 099 x",
    b"HTTP/1.1 2000 x",
    b"HTTP/1.1 -20 x",
    b"HTTP/1.1 abc",
    b"HTTP/9.9 200 OK",
    b"ICY 200 OK",
    b"200 OK",
    b"",
    b"HTTP/1.1 200 OK\rX: 1",
    b"HTTP/1.1 200 " + b"x" * 9_000,
)
_ANSWER_LINES: Final = (
    *_LINES,
    b"Content-Type: text/event-stream",
    b"Content-Type: text/event-stream; charset=utf-8",
    b"content-type: TEXT/EVENT-STREAM",
    b"Content-Type: application/json",
    b"Set-Cookie: a=b",
    b"x-agentsched-program: fake",
    b"x-agentsched-engine: fake",
    b"X-Request-Id: fake",
    b"Retry-After: 9999",
    b"Retry-After: \xd9\xa3",
    b"Retry-After: -1",
    b"Retry-After: soon",
    b"Location: http://other.example/",
    b"Keep-Alive: timeout=0",
    b"Content-Encoding: gzip",
    b"Content-Encoding: br",
    b"Server: x",
    b"Date: x",
    b"X-Odd: a\x0bb\x0cc",
    b"X-Odd: a\x08",
)
_BODIES: Final = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"5",
    b'"x"',
    b"\xff\xfe",
    b"{",
    b"[" * 5_000,
    b'{"a":' * 5_000,
    b"<html>",
    b'{"data":5}',
    b'{"data":[1,null,{"id":[]}]}',
    b'{"error":5}',
    b'{"error":{"message":[]}}',
    b'{"choices":[{"message":{"content":"a","tool_calls":[{"id":"c","function":'
    b'{"name":"x","arguments":"{\\"cmd\\":[],\\"command\\":[]}"}}]},"finish_reason":"tool_calls"}]}',
    b'{"id":5,"choices":[{"message":{"content":[{"text":5}]}}],"usage":{"prompt_tokens":-1}}',
    b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1e99}}',
    b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":99999999999999999999,"completion_tokens":9223372036854775807}}',
    b'{"choices":[{"index":0,"text":"' + b"a" * 100_000 + b'"}]}',
    b'{"type":"message","id":"m","content":[{"type":"tool_use","id":"'
    + b"i" * 10_000
    + b'","name":"'
    b"\\ud83d\\ude00" + b'","input":' + b"[" * 400 + b"]" * 400 + b'}],"stop_reason":"tool_use"}',
    b'{"id":"resp_1","object":"response","status":"completed","output":[{"type":"function_call",'
    b'"call_id":"c","name":"n","arguments":"' + b"[" * 3_000 + b'"}]}',
)
_EVENTS: Final = (
    b"data: {}\n\n",
    b"data: [DONE]\n\n",
    b"data: null\n\n",
    b"data: \xff\n\n",
    b"data\n\n",
    b"\n\n",
    b"\r",
    b"\r\n\r",
    b": comment\n\n",
    b"event: error\ndata: {}\n\n",
    b"id: 1\n\n",
    b"data: [\n\n",
    b"data: {\n",
    b"data: ",
    b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":5}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\r\n\r\n',
    b"\xef\xbb\xbfdata: {}\n\n",
    b'data: {"choices":[{"delta":{"tool_calls":[{"index":-1,"id":"c","function":'
    b'{"name":"n"}}]}}]}\n\n',
    b'data: {"choices":[{"delta":{"tool_calls":[{"index":99999999999,"function":'
    b'{"arguments":"x"}}]}}]}\n\n',
    b'data: {"error":{"message":"no","code":500}}\n\n',
    b'data: {"error":null}\n\n',
    b'data: {"error":7}\n\n',
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":null}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":-5,'
    b'"delta":{"text":"a"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":-9}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'data: {"type":"response.created","response":{"id":"' + b"r" * 3_000 + b'"}}\n\n',
    b'data: {"type":"response.completed","response":{"id":[],"output":5}}\n\n',
    b'data: {"type":"response.completed","response":{"id":"r","status":"completed",'
    b'"output":[null]}}\n\n',
    b'data: {"type":"response.output_text.delta","delta":{"a":1}}\n\n',
    b"data: " + b"[" * 3_000 + b"\n\n",
    b"data: " + b"a" * 200_000 + b"\n\n",
    b"data: x\r\rdata: y\r\n\r\n",
)


class Mangler:
    """Makes clients' bytes and engines' answers from `dice`."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    # -- clients ---------------------------------------------------------------------------------

    def pieces(self) -> list[bytes]:
        """What a client sends on one connection, write by write."""
        dice = self._dice
        data = b"".join(self._request() for _ in range(dice.choice((1, 1, 1, 2, 3))))
        match dice.randrange(10):
            case 0:
                data = dice.choice(_NOISE) + data
            case 1:
                data = data[: dice.randrange(len(data) + 1)]
            case 2:
                at = dice.randrange(len(data) + 1)
                data = data[:at] + dice.randbytes(1 + dice.randrange(4)) + data[at + 1 :]
            case 3:
                data = dice.randbytes(dice.randrange(400))
            case 4:
                data = data.replace(b"\r\n", dice.choice((b"\n", b"\r", b"\r\r\n", b"\n\r\n")))
        cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(3)))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _request(self) -> bytes:
        dice = self._dice
        if not dice.randrange(4):
            return _joined(_HEAD, b"Content-Length: %d" % len(_BODY)) + _BODY
        first = _HEAD[0]
        if dice.randrange(3):
            first = b" ".join(
                (
                    dice.choice(_METHODS),
                    dice.choice(_TARGETS),
                    dice.choice((_VERSIONS[0], *_VERSIONS)),
                )
            )
        lines = [dice.choice(_LINES) for _ in range(dice.choice((0, 0, 1, 1, 2, 4)))]
        if not dice.randrange(20):
            lines += [b"X-%d: a" % at for at in range(dice.choice((100, 127, 130, 5_000)))]
        body = b""
        match dice.randrange(7):
            case 0 | 1:
                lines.append(b"Content-Length: %d" % len(_BODY))
                body = _BODY
            case 2:
                lines.append(b"Content-Length: " + dice.choice(_LENGTHS))
                body = dice.choice((b"hello", _BODY, b""))
            case 3:
                lines.append(b"Transfer-Encoding: " + dice.choice(_ENCODINGS))
                body = self._chunked()
            case 4:
                lines.append(b"Transfer-Encoding: chunked")
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)
            case 5:
                lines.append(b"Content-Length: " + dice.choice(_LENGTHS))
                lines.append(b"Transfer-Encoding: " + dice.choice(_ENCODINGS))
                body = self._chunked()
                dice.shuffle(lines)
        return _joined((first, *_HEAD[1:]), *lines) + body

    def _chunked(self) -> bytes:
        return b"".join(self._dice.choice(_CHUNKS) for _ in range(self._dice.randrange(4)))

    def target(self) -> bytes:
        """A path and query that a careful client could not have meant."""
        dice = self._dice
        base = dice.choice(_TARGETS)
        if dice.randrange(3):
            at = dice.randrange(len(base) + 1)
            more = dice.choice(
                (b"/..", b"%2e", b"%00", b"?", b"&", b"%25", b"//", b"/.", b"%C0%AE", b"%u002e")
            )
            base = base[:at] + more + base[at:]
        return base

    # -- engines ---------------------------------------------------------------------------------

    def answer(self) -> Script:
        """What an engine says to one request."""
        dice = self._dice
        status = _STATUSES[0] if dice.randrange(3) else dice.choice(_STATUSES)
        lines = [dice.choice(_ANSWER_LINES) for _ in range(dice.choice((0, 0, 1, 1, 2, 3)))]
        is_stream = bool(dice.randrange(2))
        if is_stream:
            lines.append(b"Content-Type: text/event-stream")
            body = b"".join(dice.choice(_EVENTS) for _ in range(dice.randrange(7)))
        else:
            lines.append(b"Content-Type: application/json")
            body = dice.choice(_BODIES)
        framed, more = self._framed(body)
        head = _joined((status,), *lines, *more)
        data = head + framed
        match dice.randrange(9):
            case 0:
                data = data[: dice.randrange(len(data) + 1)]
            case 1:
                data = dice.choice(_NOISE)
            case 2:
                data = b"HTTP/1.1 103 Early Hints\r\n\r\n" * dice.randrange(4) + data
            case 3:
                data = head + b"X: y\r\n" * dice.choice((10, 5_000)) + framed
        cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(4)))
        pieces = tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))
        end = dice.choice((End.CLOSE, End.CLOSE, End.RESET, End.KEEP, End.HANG))
        return Script(pieces=pieces, end=end)

    def _framed(self, body: bytes) -> tuple[bytes, list[bytes]]:
        dice = self._dice
        match dice.randrange(6):
            case 0:
                return body, []
            case 1:
                return body, [b"Content-Length: " + dice.choice(_LENGTHS)]
            case 2:
                return self._chunked(), [b"Transfer-Encoding: chunked"]
            case 3:
                chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
                return chunked, [b"Transfer-Encoding: " + dice.choice((b"chunked", *_ENCODINGS))]
            case _:
                return body, [b"Content-Length: %d" % len(body)]


def _joined(head: tuple[bytes, ...], *lines: bytes) -> bytes:
    return b"\r\n".join((*head, *lines)) + b"\r\n\r\n"
