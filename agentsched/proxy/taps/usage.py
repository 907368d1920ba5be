"""Token counts as the three dialects spell them, made one `Usage`."""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.model import Usage

#: No answer has so many tokens. What is beyond was miscounted, and sums of it fit no column.
_COUNT_MAX: Final = 1 << 40


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class ChatUsage(msgspec.Struct, gc=False):
    """`usage` of chat, completions and embeddings."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        return _usage(self.prompt_tokens, self.completion_tokens, self.prompt_tokens_details)


class ResponsesUsage(msgspec.Struct, gc=False):
    """`usage` of a response object."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        return _usage(self.input_tokens, self.output_tokens, self.input_tokens_details)


class MessagesUsage(msgspec.Struct, gc=False):
    """`usage` of a message, which leaves cached tokens out of its `input_tokens`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def usage(self) -> Usage:
        cached = _count(self.cache_read_input_tokens)
        created = _count(self.cache_creation_input_tokens)
        return Usage(
            prompt_tokens=_count(self.input_tokens) + cached + created,
            cached_tokens=cached if _is_told(self.cache_read_input_tokens) else None,
            output_tokens=_count(self.output_tokens),
        )

    def updated(self, later: MessagesUsage) -> MessagesUsage:
        """What is known after `later`.

        A message's end repeats all counts (vLLM: with the cached ones told apart only there) or
        gives the output alone, with an input of 0 or none: then the earlier input stands.
        """
        is_whole = bool(later.input_tokens) or later.cache_read_input_tokens is not None
        inputs = later if is_whole else self
        return MessagesUsage(
            input_tokens=inputs.input_tokens,
            output_tokens=self.output_tokens
            if later.output_tokens is None
            else later.output_tokens,
            cache_read_input_tokens=inputs.cache_read_input_tokens,
            cache_creation_input_tokens=inputs.cache_creation_input_tokens,
        )


def _usage(prompt: int | None, output: int | None, details: _Details | None) -> Usage:
    cached = None if details is None else details.cached_tokens
    return Usage(
        prompt_tokens=_count(prompt),
        cached_tokens=_count(cached) if _is_told(cached) else None,
        output_tokens=_count(output),
    )


def _is_told(value: int | None) -> bool:
    return value is not None and value <= _COUNT_MAX


def _count(value: int | None) -> int:
    """What was told; 0 where nothing was, or nothing that can be."""
    return max(0, value) if value is not None and value <= _COUNT_MAX else 0
