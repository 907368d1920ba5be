"""What warm-ups send: the last request of a paused conversation with its answer, for one token.

The bodies are kept only while a prefetch policy is chosen, in bounded memory. For a new one goes
the one that was kept first, those whose conversation seems to be over before all others. A body
goes to no other engine than a real request would, with that request's headers, its client's key
included. It is forgotten when its conversation goes on, and soon after its program has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from msgspec import Raw
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.kernel import JournalEntry
from agentsched.model import (
    MINUTE,
    ConversationId,
    Instant,
    Prefetch,
    Reconfigured,
    ToolStarted,
    WireError,
    between,
)
from agentsched.ports import Engine, EngineRequest
from agentsched.proxy.answer import Answer
from agentsched.proxy.fields import BROKEN, first_byte
from agentsched.proxy.headers import with_turn, without_credentials
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.splicing import splice
from agentsched.proxy.token_ids import unpack
from agentsched.proxy.wire import WireLimits, parse_request
from agentsched_adapters.hints import LOWEST_PRIORITY

_BYTES_MAX: Final = 64 << 20
#: They concern the answer and not the prompt, and one token could break what they promise.
_DROPPED: Final = (
    "max_completion_tokens",
    "min_tokens",
    "stream_options",
    "response_format",
    "text",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "return_token_ids",
    "best_of",
    "stop",
    "stop_sequences",
)
_NO_CHOICE: Final = (b'"none"', b'{"type":"none"}')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    dialect: Dialect
    request: EngineRequest
    answer: Answer
    program: str
    tenant: str

    @property
    def size(self) -> int:
        calls = sum(len(call.arguments) for call in self.answer.calls)
        said = len(self.answer.text) + len(self.answer.token_ids)
        return len(self.request.body) + said + calls + 512

    def without_credentials(self) -> _Kept:
        headers = without_credentials(self.request.headers)
        return replace(self, request=replace(self.request, headers=headers))


class WarmBodies(Collector):
    """The last request of each paused conversation. Implements `WarmSource`, and `EventSink`.

    Nothing is kept while `is_on` says no, nor of whom `lives` says no.
    """

    def __init__(
        self,
        *,
        limits: WireLimits,
        is_on: Callable[[], bool],
        lives: Callable[[ConversationId], bool] = lambda _: True,
        bytes_max: int = _BYTES_MAX,
    ) -> None:
        self._limits = limits
        #: Whether engines get the clients' keys, as far as the configuration in force says.
        self._has_credentials = True
        self._bytes_max = bytes_max
        #: The one kept first comes first.
        self._kept: OrderedDict[ConversationId, _Kept] = OrderedDict()
        #: Those of them that said their last word as far as anyone can tell, in the same order.
        self._over: OrderedDict[ConversationId, None] = OrderedDict()
        self.bytes = 0
        self.dropped = 0
        self._is_on, self._lives = is_on, lives
        self._looked_at = Instant(0)

    def __len__(self) -> int:
        return len(self._kept)

    def follow(self, limits: WireLimits, *, has_credentials: bool) -> None:
        """Another configuration is in force: also for what is kept, and for what is on its way."""
        self._limits, self._has_credentials = limits, has_credentials
        if not has_credentials:
            for key, kept in self._kept.items():
                self._kept[key] = kept.without_credentials()

    def keep(
        self,
        conversation: ConversationId,
        request: EngineRequest,
        answer: Answer,
        *,
        dialect: Dialect,
        program: str,
        tenant: str,
        is_last_word: bool = False,
    ) -> None:
        """A conversation pauses, or is over; `request` is what its engine was sent."""
        self.forget(conversation)
        if not self._is_on():
            return
        kept = _Kept(
            dialect=dialect, request=request, answer=answer, program=program, tenant=tenant
        )
        if kept.size > self._bytes_max:
            self.dropped += 1
            return
        # It may have been sent under a configuration that is in force no more.
        self._kept[conversation] = kept if self._has_credentials else kept.without_credentials()
        self.bytes += kept.size
        while self.bytes > self._bytes_max:
            self.forget(next(iter(self._over or self._kept)))
            self.dropped += 1
        if is_last_word:
            self._over[conversation] = None

    def forget(self, conversation: ConversationId) -> None:
        """Nobody will ask for it to be warmed any more; idempotent."""
        self._over.pop(conversation, None)
        kept = self._kept.pop(conversation, None)
        if kept is not None:
            self.bytes -= kept.size

    def write(self, entry: JournalEntry) -> None:
        """What may be sent no more goes within a minute; at once, where the policies are others."""
        event = entry.event
        if isinstance(event, ToolStarted) and event.conversation is not None:
            self._over.pop(event.conversation, None)  # what seemed its last word was none
        if isinstance(event, Reconfigured) or between(self._looked_at, entry.now) >= MINUTE:
            self._looked_at = entry.now
            is_on = self._is_on()
            for key in [key for key in self._kept if not (is_on and self._lives(key))]:
                self.forget(key)

    def warm_requests(self, hint: Prefetch, engine: Engine) -> Sequence[EngineRequest]:
        """With the answer first; without it where the engine will not take it back."""
        kept = self._kept.get(hint.conversation)
        if kept is None:
            return ()
        fields = engine.admission_fields(
            priority=LOWEST_PRIORITY,
            session=str(hint.conversation),
            program=kept.program,
            tenant=kept.tenant,
            is_kept=False,
        )
        turn = engine.admission_headers(priority=LOWEST_PRIORITY)
        headers = with_turn(kept.request.headers, turn)
        try:
            parsed = parse_request(kept.dialect, kept.request.body, self._limits)
        except WireError:
            return ()
        bodies = [warm_body(parsed, answer, fields) for answer in (kept.answer, None)]
        return [
            EngineRequest(method="POST", target=kept.request.target, headers=headers, body=body)
            for body in dict.fromkeys(bodies)
        ]

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield GaugeMetricFamily(
            "agentsched_warm_bodies_bytes", "Kept for warm-ups.", value=self.bytes
        )
        yield CounterMetricFamily(
            "agentsched_warm_bodies_dropped", "Dropped for room.", value=self.dropped
        )


def warm_body(request: ParsedRequest, answer: Answer | None, fields: Any) -> bytes:
    """The body that computes a request's prompt, and the answer to it, for one token."""
    put: dict[str, object] = dict(fields)
    put |= {"stream": False, _LENGTH[request.dialect]: 1}
    if "n" in request.fields:
        put["n"] = 1
    if request.dialect is Dialect.RESPONSES:
        put |= {"store": False}
        if "background" in request.fields:
            put["background"] = False
    drop = [name for name in _DROPPED if name in request.fields]
    # The engine that had this request may have taken one, and this one may not.
    drop.append("priority")
    choice = request.fields.get("tool_choice")
    if choice is not None and bytes(choice).replace(b" ", b"") not in _NO_CHOICE:
        drop.append("tool_choice")
    is_said = answer is not None and (answer.text or answer.calls or answer.token_ids)
    if answer is not None and is_said and not answer.is_truncated:
        put |= _WITH_ANSWER[request.dialect](request, answer)
    return splice(request, put=put, drop=drop)


def _chat(request: ParsedRequest, answer: Answer) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": answer.text}
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    return {"messages": [*request.messages, message]}


def _messages(request: ParsedRequest, answer: Answer) -> dict[str, object]:
    blocks: list[object] = [{"type": "text", "text": answer.text}] if answer.text else []
    for call in answer.calls:
        blocks.append(
            {"type": "tool_use", "id": call.call_id, "name": call.name, "input": _object(call)}
        )
    return {"messages": [*request.messages, {"role": "assistant", "content": blocks}]}


def _responses(request: ParsedRequest, answer: Answer) -> dict[str, object]:
    items: list[object] = [
        {"role": "user", "content": item} if first_byte(item) == ord('"') else item
        for item in request.messages
    ]
    if answer.text:
        part = {"type": "output_text", "text": answer.text, "annotations": []}
        items.append({"type": "message", "role": "assistant", "content": [part]})
    for call in answer.calls:
        items.append(
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments,
            }
        )
    return {"input": items}


def _completion(request: ParsedRequest, answer: Answer) -> dict[str, object]:
    try:
        prompt = msgspec.json.decode(request.fields.get("prompt", b"null"), type=str | list[int])
    except BROKEN:
        return {}  # several prompts, or one in a list of its own
    if isinstance(prompt, str):
        return {"prompt": prompt + answer.text}
    return {"prompt": prompt + unpack(answer.token_ids)}


def _object(call: Any) -> Raw:
    try:
        msgspec.json.decode(call.arguments, type=dict[str, Any])
    except BROKEN:
        return Raw(b"{}")
    return Raw(call.arguments.encode())


_LENGTH: Final = {
    Dialect.CHAT: "max_tokens",
    Dialect.COMPLETIONS: "max_tokens",
    Dialect.MESSAGES: "max_tokens",
    Dialect.RESPONSES: "max_output_tokens",
}
_WITH_ANSWER: Final = {
    Dialect.CHAT: _chat,
    Dialect.COMPLETIONS: _completion,
    Dialect.MESSAGES: _messages,
    Dialect.RESPONSES: _responses,
}
