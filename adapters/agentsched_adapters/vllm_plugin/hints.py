"""PluginHints: the proxy's side. Pins and unpins go over HTTP to an engine that has the plugin."""

from __future__ import annotations

from collections import OrderedDict
from http import HTTPStatus
from typing import Final

import msgspec

from agentsched.clock import Clock, MonotonicClock
from agentsched.model import (
    ConversationId,
    EngineError,
    HintOutcome,
    Pin,
    PinId,
    Prefetch,
    Unpin,
    UnpinReason,
    between,
    in_seconds,
)
from agentsched_adapters.openai_http import OpenAiHttp
from agentsched_adapters.vllm_plugin.wire import (
    PATH,
    XARG_CONVERSATION,
    XARG_GRACE,
    XARG_PROGRAM,
    XARG_TENANT,
    PinAnswer,
    PinRequest,
    ReleaseRequest,
    State,
)

#: Above what the endpoint itself waits for an engine step, so that it is the one that gives up.
_TIMEOUT_S: Final = 12.0
#: Answers after which the engine may still do what it was asked, when its step is over.
_PERHAPS_LATER: Final = (0, HTTPStatus.GATEWAY_TIMEOUT)
#: A server's words for its engine having said nothing, which do not tell what is in it.
_NO_ANSWER: Final = frozenset(
    {
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_REMEMBERED_MAX: Final = 20_000
_OUTCOMES: Final = {outcome.value: outcome for outcome in HintOutcome}
#: The engine ends these by itself, at the same moment or before, if it has said what it has.
_ENDED_THERE: Final = frozenset({UnpinReason.RESUMED, UnpinReason.EXPIRED, UnpinReason.REFUSED})


def engine_arguments(
    *, program: str, conversation: str, tenant: str, is_kept: bool
) -> dict[str, object]:
    """The `vllm_xargs` by which the plugin knows whose a request is."""
    arguments: dict[str, object] = {XARG_CONVERSATION: conversation}
    if program:
        arguments[XARG_PROGRAM] = program
    if tenant:
        arguments[XARG_TENANT] = tenant
    if not is_kept:
        arguments[XARG_GRACE] = 0
    return arguments


class PluginHints:
    """Retains for real. Implements `agentsched.ports.HintSink` over an engine's connections.

    `clock` must be the host's: deadlines are sent as what is left of them.
    """

    def __init__(self, http: OpenAiHttp, *, clock: Clock | None = None) -> None:
        self._http = http
        self._clock = clock or MonotonicClock()
        #: Whose each pin is, of those that were sent and not ended; the oldest is forgotten.
        self._of: OrderedDict[PinId, ConversationId] = OrderedDict()
        #: Those of them that the engine may have got without an answer of its coming back.
        self._unsure: set[PinId] = set()

    def take_over(self, older: PluginHints) -> None:
        """Know whose those pins are that another one sent to this engine."""
        self._of, self._unsure = older._of, older._unsure

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        """Perform a pin or an unpin. FAILED where the engine did not answer as it should."""
        match hint:
            case Pin():
                return await self._pin(hint)
            case Unpin():
                return await self._unpin(hint)
            case Prefetch():
                return HintOutcome.UNSUPPORTED

    async def state(self, *, is_brief: bool = False, timeout_s: float = _TIMEOUT_S) -> State | None:
        """What the engine says of its blocks and pins; None where there is no plugin.

        Raises:
            EngineError: it did not answer, or not as it should.
        """
        return await self._state(f"brief={int(is_brief)}", timeout_s=timeout_s)

    async def cached(self, *, timeout_s: float = _TIMEOUT_S) -> State | None:
        """As `state`, with `cached` in place of lists; a plugin that cannot do that gives all."""
        return await self._state("only=cached", timeout_s=timeout_s)

    async def _state(self, query: str, *, timeout_s: float) -> State | None:
        target = f"{PATH}/state?{query}"
        status, body = await self._http.fetch("GET", target, timeout_s=timeout_s)
        if status in _NO_ANSWER:
            raise EngineError(f"{self._http.url}{target} answered {status}")
        if status != HTTPStatus.OK:
            return None
        try:
            return msgspec.json.decode(body, type=State)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(f"{self._http.url}{target}: not what was expected") from error

    async def _pin(self, hint: Pin) -> HintOutcome:
        left = in_seconds(between(self._clock.now(), hint.expires_at))
        if left <= 0:
            return HintOutcome.REFUSED
        request = PinRequest(
            pin=hint.pin,
            conversation=hint.conversation,
            program=hint.program,
            ttl_s=left,
            value=hint.value,
            tokens=hint.prefix.tokens,
        )
        self._of[hint.pin] = hint.conversation
        if len(self._of) > _REMEMBERED_MAX:
            self._unsure.discard(self._of.popitem(last=False)[0])
        status, body = await self._post("pin", request)
        if status in _PERHAPS_LATER and hint.pin in self._of:
            self._unsure.add(hint.pin)
        if status != HTTPStatus.OK:
            return HintOutcome.FAILED
        try:
            answer = msgspec.json.decode(body, type=PinAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return HintOutcome.FAILED
        return _OUTCOMES.get(answer.outcome, HintOutcome.FAILED)

    async def _unpin(self, hint: Unpin) -> HintOutcome:
        conversation = self._of.pop(hint.pin, ConversationId(""))
        is_unsure = hint.pin in self._unsure
        self._unsure.discard(hint.pin)
        if hint.reason in _ENDED_THERE and not is_unsure:
            return HintOutcome.ACCEPTED
        request = ReleaseRequest(pin=hint.pin, conversation=conversation)
        status, _ = await self._post("release", request)
        if status == HTTPStatus.BAD_REQUEST and conversation:
            # The first plugins take one name only. The id would end other proxies' pins as well.
            request = ReleaseRequest(conversation=conversation)
            status, _ = await self._post("release", request)
        return HintOutcome.ACCEPTED if status == HTTPStatus.OK else HintOutcome.FAILED

    async def _post(self, operation: str, request: msgspec.Struct) -> tuple[int, bytes]:
        """Status and body; 0 where there was no answer."""
        try:
            return await self._http.fetch(
                "POST",
                f"{PATH}/{operation}",
                body=msgspec.json.encode(request),
                timeout_s=_TIMEOUT_S,
            )
        except EngineError:
            return 0, b""
