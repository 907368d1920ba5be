"""Which writer answers which dialect."""

from __future__ import annotations

from agentsched_bench.engine.ask import Ask, Dialect
from agentsched_bench.engine.dialect_messages import MessagesWriter
from agentsched_bench.engine.dialect_responses import ResponsesWriter
from agentsched_bench.engine.dialects import ChatWriter, CompletionWriter, Writer


def writer_for(ask: Ask, *, key: str, created: int) -> Writer:
    """The writer of a request's dialect. `key` is unique; `created` is Unix time in seconds."""
    match ask.dialect:
        case Dialect.CHAT:
            return ChatWriter(ask, key=key, created=created)
        case Dialect.COMPLETION:
            return CompletionWriter(ask, key=key, created=created)
        case Dialect.MESSAGES:
            return MessagesWriter(ask, key=key)
        case Dialect.RESPONSES:
            return ResponsesWriter(ask, key=key, created=created)
        case Dialect.EMBEDDING:
            raise AssertionError("embeddings are not written as answers")
