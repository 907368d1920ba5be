"""An engine's answer as it comes: whether it is a stream, and its whole body, bounded."""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.model import EngineError
from agentsched.ports import EngineAnswer

#: An answer that is not streamed is read whole, so it needs a ceiling.
_BYTES_MAX: Final = 64 << 20


def is_event_stream(answer: EngineAnswer) -> bool:
    """Whether the answer says that it is a stream of events."""
    return any(
        name.lower() == "content-type" and value.lower().startswith("text/event-stream")
        for name, value in answer.headers
    )


def is_broken(body: bytes) -> bool:
    """Whether a body that should be JSON is none, as when an engine dies in the middle of it."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True
    except RecursionError:
        return False  # deeper than we read, which is not the engine's fault
    return False


async def read_whole(answer: EngineAnswer) -> bytes:
    """The answer's body.

    Raises:
        EngineError: it is too large, or the connection broke.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.chunks():
        parts.append(chunk)
        size += len(chunk)
        if size > _BYTES_MAX:
            raise EngineError(f"the answer is larger than {_BYTES_MAX} bytes")
    return b"".join(parts)
