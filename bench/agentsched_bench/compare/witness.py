"""Stands between foreign clients and an arm, and notes when each call came and what came back.

Each program has a path of its own (`/p3/v1/...`), so a call's program is known without any id, and
the arm sees exactly what the client sent.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

from agentsched_bench.compare.results import Call

_HOP: Final = frozenset(
    {"host", "connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding"}
)
_BODY_BYTES_MAX: Final = 64 << 20
_WAIT: Final = re.compile(r"\bwait_ms=(\d+)")
_TIMEOUT: Final = ClientTimeout(total=900, sock_connect=10)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class Witness:
    """The calls seen so far. Times are seconds since `begin`."""

    def __init__(self, upstream: str, session: ClientSession, *, on_call: Callable[[], None]):
        self.calls: list[Call] = []
        self.url = ""
        self._upstream = upstream
        self._session = session
        self._on_call = on_call
        self._begun = time.perf_counter()
        #: Tokens of the last prompt and its answer, by program.
        self._known: dict[str, int] = {}
        self._steps: dict[str, int] = {}

    def begin(self) -> None:
        """Second 0 is now."""
        self._begun = time.perf_counter()

    async def handle(self, request: web.Request) -> web.Response:
        """Pass one request on and note what became of it."""
        program = request.match_info["program"]
        raw = await request.read()
        step = self._steps.get(program, 0)
        self._steps[program] = step + 1
        sent = time.perf_counter()
        call = Call(
            program=program,
            conversation=program,
            step=step,
            sent_s=sent - self._begun,
            latency_s=0.0,
            known_tokens=self._known.get(program, 0),
        )
        self.calls.append(call)
        try:
            return await self._pass_on(request, raw, call)
        except (ClientError, TimeoutError) as error:
            call.error = f"{type(error).__name__}: {error}"
            return web.Response(status=502, text=call.error)
        finally:
            call.latency_s = time.perf_counter() - sent
            self._on_call()

    async def _pass_on(self, request: web.Request, raw: bytes, call: Call) -> web.Response:
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP]
        path = "/" + request.match_info["rest"]
        begun = time.perf_counter()
        async with self._session.request(
            request.method, self._upstream + path, data=raw, headers=headers
        ) as answer:
            # Answers are not streamed: what comes first comes with the last token.
            call.ttft_s = time.perf_counter() - begun
            body = await answer.read()
            if answer.status != 200:
                call.error = f"HTTP {answer.status}: {body[:300].decode(errors='replace')}"
            self._note(call, body, answer.headers)
            back = [(k, v) for k, v in answer.headers.items() if k.lower() not in _HOP]
            return web.Response(status=answer.status, body=body, headers=back)

    def _note(self, call: Call, body: bytes, headers: object) -> None:
        said = {k.lower(): v for k, v in headers.items()}  # type: ignore[attr-defined]
        call.label = said.get("x-agentsched-program", "")
        call.engine = said.get("x-agentsched-engine", "")
        call.decision = said.get("x-agentsched-decision", "")
        held = _WAIT.search(call.decision)
        call.held_s = int(held[1]) / 1000 if held else None
        with contextlib.suppress(msgspec.MsgspecError):
            usage = msgspec.json.decode(body, type=_Answer).usage
            if usage is not None:
                call.prompt_tokens = usage.prompt_tokens
                call.output_tokens = usage.completion_tokens
                details = usage.prompt_tokens_details
                call.cached_tokens = details.cached_tokens if details is not None else None
                call.known_tokens = min(call.known_tokens, usage.prompt_tokens or 0)
                self._known[call.program] = (usage.prompt_tokens or 0) + (
                    usage.completion_tokens or 0
                )


@contextlib.asynccontextmanager
async def witnessing(upstream: str, *, on_call: Callable[[], None]) -> AsyncIterator[Witness]:
    """A witness in front of `upstream`, on a free port of loopback."""
    async with ClientSession(
        timeout=_TIMEOUT,
        connector=TCPConnector(limit=0),
        cookie_jar=DummyCookieJar(),
    ) as session:
        witness = Witness(upstream, session, on_call=on_call)
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_route("*", "/{program}/{rest:.*}", witness.handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            witness.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield witness
        finally:
            await runner.cleanup()
