"""A client's request as the data plane sees it: the bytes, and the few fields that we need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class Dialect(StrEnum):
    """Which API a request speaks; it decides field names, stream events and error shapes."""

    CHAT = "chat"  # /v1/chat/completions
    COMPLETIONS = "completions"  # /v1/completions
    RESPONSES = "responses"  # /v1/responses
    MESSAGES = "messages"  # /v1/messages
    COUNT_TOKENS = "count_tokens"  # /v1/messages/count_tokens
    EMBEDDINGS = "embeddings"  # /v1/embeddings
    OTHER = "other"  # relayed unscheduled

    @property
    def is_generation(self) -> bool:
        return self in _GENERATION

    @property
    def is_anthropic(self) -> bool:
        return self in (Dialect.MESSAGES, Dialect.COUNT_TOKENS)


_GENERATION = frozenset({Dialect.CHAT, Dialect.COMPLETIONS, Dialect.RESPONSES, Dialect.MESSAGES})


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """One request. Raw values are views into `body`: valid as long as it is.

    `messages` are the raw JSON values that make up the prompt, in order: chat `messages`, Responses
    `input` items (a plain string input is one item), Anthropic `messages`, a completion's `prompt`
    (one item). `system` is what stands beside them (Anthropic `system`, Responses
    `instructions`), `tools` the raw tool list. `fields` are all top-level fields, raw, in the
    client's order, `messages` included.
    """

    dialect: Dialect
    body: bytes
    model: str = ""
    is_stream: bool = False
    is_background: bool = False  # its engine goes on without its client (Responses)
    wants_usage: bool = True  # the client asked for usage, or it is always sent
    output_tokens_max: int | None = None
    messages: tuple[msgspec.Raw, ...] = ()
    system: msgspec.Raw | None = None
    tools: msgspec.Raw | None = None
    fields: Mapping[str, msgspec.Raw] = field(default_factory=dict)
