"""LMCache: pins and moves in the tiers below an engine's own cache, through its controller.

The controller (`lmcache_controller`, port 9000) takes token ids: `POST /lookup` says where they
are, `/pin` keeps them in a location, `/move` copies them from one to another. As read in its
source; it could not be tried here, where there is no GPU for an engine that uses it.

A pin there has no end that could be told: LMCache lets it go after its own time. So `Unpin` is
UNSUPPORTED, and a pin's expiry is the controller's matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from agentsched.model import EngineError, HintOutcome, Pin, Prefetch, Unpin
from agentsched.ports import Engine, EngineRequest
from agentsched_adapters.hints import WarmSource
from agentsched_adapters.openai_compatible import decoded
from agentsched_adapters.openai_http import OpenAiHttp

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_TIMEOUT_S: Final = 10.0
#: Fields of a request that `/tokenize` reads as the engine itself does.
_TOKENIZED: Final = (
    "model",
    "messages",
    "prompt",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "media_io_kwargs",
    "mm_processor_kwargs",
)
#: Where an engine's worker keeps what it may load back at once.
LOCAL_CPU: Final = "LocalCPUBackend"


class TokenSource(Protocol):
    """Whoever can say which tokens a conversation's prefix is made of."""

    async def tokens(self, hint: Pin | Prefetch) -> Sequence[int]:
        """The prefix's token ids; empty where nobody knows."""
        ...


class _Layout(msgspec.Struct):
    #: Instance -> (location, tokens).
    layout_info: dict[str, tuple[str, int]] = {}


class _Moved(msgspec.Struct):
    num_tokens: int = 0


class _Tokens(msgspec.Struct):
    tokens: list[int] = []


class LmcacheHints:
    """Retains and fetches prefixes in LMCache's tiers. Implements `ports.HintSink`.

    `instance` is the engine's name in LMCache's configuration (`lmcache_instance_id`).
    """

    def __init__(
        self,
        url: str,
        *,
        instance: str,
        tokens: TokenSource,
        location: str = LOCAL_CPU,
    ) -> None:
        self._http = OpenAiHttp(url)
        self._instance = instance
        self._location = location
        self._tokens = tokens

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        """Pin what is in the tier, or copy to it what another tier or instance has.

        CLIPPED is never said: LMCache tells tokens, not times. FAILED where it does not answer.
        """
        if isinstance(hint, Unpin):
            return HintOutcome.UNSUPPORTED
        try:
            async with asyncio.timeout(_TIMEOUT_S):  # an engine's first byte may take half an hour
                tokens = list(await self._tokens.tokens(hint))
            if not tokens:
                return HintOutcome.REFUSED
            done = await (self._pin(tokens) if isinstance(hint, Pin) else self._fetch(tokens))
        except (EngineError, TimeoutError) as error:
            _log.info("LMCache at %s: %s failed: %s", self._http.url, hint.pin, error)
            return HintOutcome.FAILED
        return HintOutcome.ACCEPTED if done else HintOutcome.REFUSED

    async def aclose(self) -> None:
        """Close the connections to the controller."""
        await self._http.aclose()

    async def _pin(self, tokens: list[int]) -> int:
        asked = {"instance_id": self._instance, "location": self._location, "tokens": tokens}
        return (await self._ask("/pin", asked, _Moved)).num_tokens

    async def _fetch(self, tokens: list[int]) -> int:
        """Tokens that are near now. What this instance's own tier has need not be moved."""
        layout = (await self._ask("/lookup", {"tokens": tokens}, _Layout)).layout_info
        here = layout.get(self._instance)
        if here is not None and here[0] == self._location:
            return here[1]
        # Its own other tier first, then whoever has most of it; names decide between equals.
        places = sorted(
            (name != self._instance, -count, name, location)
            for name, (location, count) in layout.items()
            if count
        )
        if not places:
            return 0
        _, _, name, location = places[0]
        asked = {
            "old_position": (name, location),
            "new_position": (self._instance, self._location),
            "tokens": tokens,
            "copy": True,
        }
        return (await self._ask("/move", asked, _Moved)).num_tokens

    async def _ask(self, target: str, body: object, shape: type[_T]) -> _T:
        status, answer = await self._http.fetch(
            "POST", target, body=msgspec.json.encode(body), timeout_s=_TIMEOUT_S
        )
        where = f"{self._http.url}{target}"
        if status != 200:
            raise EngineError(f"{where} answered {status}")
        return decoded(answer, shape, where=where)


class EngineTokens:
    """Asks the engine itself: `POST /tokenize` with what would be sent to warm the prefix."""

    def __init__(self, engine: Engine, source: WarmSource) -> None:
        self._engine = engine
        self._source = source

    async def tokens(self, hint: Pin | Prefetch) -> Sequence[int]:
        """Raises `EngineError` when the engine does not answer."""
        prefetch = hint if isinstance(hint, Prefetch) else _as_prefetch(hint)
        for request in self._source.warm_requests(prefetch, self._engine):
            body = _question(request.body)
            if body is None:
                continue
            asked = EngineRequest(
                method="POST", target="/tokenize", headers=request.headers, body=body
            )
            answer = await self._engine.send(asked)
            try:
                text = await answer.read()
            finally:
                await answer.aclose()
            if answer.status == 200:
                return decoded(text, _Tokens, where=f"{self._engine.url}/tokenize").tokens
        return ()


def _as_prefetch(pin: Pin) -> Prefetch:
    return Prefetch(
        pin=pin.pin,
        program=pin.program,
        conversation=pin.conversation,
        engine=pin.engine,
        prefix=pin.prefix,
        wanted_by=pin.expires_at,
    )


def _question(body: bytes) -> bytes | None:
    """What `/tokenize` is asked about the prompt of a request; None for one that it cannot take."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    # The Messages API tells its system prompt apart: without it, all tokens would be others.
    if "system" in fields or ("messages" not in fields and "prompt" not in fields):
        return None
    kept = {name: fields[name] for name in _TOKENIZED if name in fields}
    return msgspec.json.encode(kept)
