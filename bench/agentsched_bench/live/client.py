"""One call as an agent makes it: streamed, timed, retried when the other side asks for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from agentsched.proxy.request import Dialect
from agentsched_bench.live.dialects import PATHS, StreamReader

RETRIED: Final = frozenset({429, 503})
_ERROR_CHARS_MAX: Final = 500
_LINE_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a call is tried. `retry_after_s_max` bounds a wait that the other side asks for."""

    attempts_max: int = 6
    backoff_s: float = 0.5
    backoff_s_max: float = 8.0
    retry_after_s_max: float = 120.0
    timeout_s: float = 600.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one call.

    Times are seconds since the first attempt was sent, waits between attempts included; `refused_s`
    is when the last one was sent, 0 where none was turned away. `status` is the last HTTP status, 0
    without any answer. `error` is empty on success. Token counts are the server's own, None where
    it sent none. `marks` are the `x-agentsched-*` headers of the answer.
    """

    status: int = 0
    error: str = ""
    attempts: int = 0
    waited_s: float = 0.0
    refused_s: float = 0.0
    ttft_s: float | None = None
    latency_s: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)


class Client:
    """Calls one base URL. Must be closed; cancelling a call closes its connection."""

    def __init__(
        self,
        base_url: str,
        *,
        dialect: Dialect,
        patience: Patience,
        rng: random.Random,
        api_key: str | None = None,
    ) -> None:
        base = base_url.rstrip("/").removesuffix("/v1")
        self.base_url = base
        self._url = base + PATHS[dialect]
        self._dialect = dialect
        self._patience = patience
        self._rng = rng
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        if dialect is Dialect.MESSAGES:
            headers["anthropic-version"] = "2023-06-01"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=None),
            auto_decompress=False,
            read_bufsize=_LINE_BYTES_MAX,
        )

    async def aclose(self) -> None:
        await self._session.close()

    async def call(
        self,
        body: Mapping[str, object],
        *,
        headers: Mapping[str, str],
        outcome: Outcome | None = None,
    ) -> Outcome:
        """Make one call; failures are in the outcome, never raised.

        Cancellation is passed on, and `outcome` (if given) then holds what was seen so far.
        """
        seen = Outcome() if outcome is None else outcome
        data = msgspec.json.encode(body)
        begun = time.perf_counter()
        try:
            while True:
                seen.attempts += 1
                retry_s = await self._attempt(data, headers, seen, begun)
                if retry_s is None:
                    return seen
                seen.waited_s += retry_s
                await asyncio.sleep(retry_s)
                seen.refused_s = time.perf_counter() - begun
        finally:
            seen.latency_s = time.perf_counter() - begun

    async def _attempt(
        self, data: bytes, headers: Mapping[str, str], seen: Outcome, begun: float
    ) -> float | None:
        """Try once; the wait before the next attempt, or None when this was the last."""
        seen.status, seen.error = 0, ""
        try:
            async with (
                asyncio.timeout(self._patience.timeout_s),
                self._session.post(self._url, data=data, headers=headers) as response,
            ):
                seen.status = response.status
                seen.marks = _marks(response.headers)
                if response.status != 200:
                    text = await response.text(errors="replace")
                    seen.error = f"HTTP {response.status}: {text[:_ERROR_CHARS_MAX]}"
                    return self._wait_s(response, seen)
                await self._read(response, seen, begun)
        except TimeoutError:
            seen.error = f"no complete answer within {self._patience.timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            seen.error = f"{type(error).__name__}: {error}"[:_ERROR_CHARS_MAX]
        return None

    async def _read(self, response: aiohttp.ClientResponse, seen: Outcome, begun: float) -> None:
        reader = StreamReader(dialect=self._dialect)
        try:
            async for chunk in response.content.iter_any():
                reader.feed(chunk)
                if seen.ttft_s is None and reader.has_token:
                    seen.ttft_s = time.perf_counter() - begun
        finally:
            seen.prompt_tokens = reader.prompt_tokens
            seen.cached_tokens = reader.cached_tokens
            seen.output_tokens = reader.output_tokens
            seen.text, seen.token_ids = reader.text, reader.token_ids
        if reader.error:
            seen.error = reader.error[:_ERROR_CHARS_MAX]
        elif not reader.is_complete:
            seen.error = "the stream ended before the answer did"

    def _wait_s(self, response: aiohttp.ClientResponse, seen: Outcome) -> float | None:
        patience = self._patience
        if response.status not in RETRIED or seen.attempts >= patience.attempts_max:
            return None
        try:
            asked_s = float(response.headers.get("retry-after", ""))
        except ValueError:
            grown_s = patience.backoff_s * 2.0 ** (seen.attempts - 1)
            return min(grown_s, patience.backoff_s_max) * self._rng.uniform(0.75, 1.0)
        return min(max(asked_s, 0.0), patience.retry_after_s_max)

    async def post_json(
        self,
        path: str,
        body: Mapping[str, object],
        *,
        headers: Mapping[str, str] | None = None,
        status: int = 200,
    ) -> bytes | None:
        """POST to another path of the same server; its answer, or None if it has none to give."""
        url = self.base_url + path
        try:
            async with (
                asyncio.timeout(30),
                self._session.post(
                    url, data=msgspec.json.encode(body), headers=headers
                ) as response,
            ):
                answer = await response.read()
                return answer if response.status == status else None
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None

    async def models(self) -> list[str]:
        """The names of the models served; empty if they cannot be had."""
        try:
            async with (
                asyncio.timeout(30),
                self._session.get(self.base_url + "/v1/models") as response,
            ):
                found = msgspec.json.decode(await response.read(), type=_Models)
                return [model.id for model in found.data]
        except (TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError):
            return []


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _marks(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name.lower(): value
        for name, value in headers.items()
        if name.lower().startswith("x-agentsched-")
    }
