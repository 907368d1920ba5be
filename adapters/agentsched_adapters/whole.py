"""The body of an answer that is not streamed: read whole, so it needs a ceiling."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from agentsched.model import EngineError

#: The longest are metrics, and the tokens of a long prompt.
BYTES_MAX: Final = 64 << 20


async def read_whole(chunks: AsyncIterator[bytes]) -> bytes:
    """All chunks in one.

    Raises:
        EngineError: they are more than `BYTES_MAX` bytes, or the connection broke.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > BYTES_MAX:
            raise EngineError(f"the answer is larger than {BYTES_MAX} bytes")
    return b"".join(parts)
