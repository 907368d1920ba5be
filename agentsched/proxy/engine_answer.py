"""An engine's answer as it comes: a stream and how it begins, and what packs it."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from agentsched.model import EngineUnreachable
from agentsched.ports import EngineAnswer
from agentsched.proxy import refusal
from agentsched.proxy.fleet import Member
from agentsched.proxy.sse import SseTap
from agentsched_adapters.unpacking import coding_of, unpacked

log = logging.getLogger(__name__)

#: Announcements repeat what was asked; an engine that goes on announcing is relayed all the same.
_ANNOUNCED_BYTES_MAX: Final = 16 << 20


def readable(answer: EngineAnswer, member: Member | None) -> EngineAnswer:
    """The answer in plain bytes, as it was asked for; who packs it all the same is named, once."""
    coding = coding_of(answer)
    if coding and member is not None and not member.is_said_packed:
        member.is_said_packed = True
        text = "engine %s answers in the encoding %s, which nobody asked for: turn it off there"
        log.warning(text, member.id, coding[:64])
    return unpacked(answer, coding) if coding else answer


def is_event_stream(answer: EngineAnswer) -> bool:
    """Whether the answer says that it is a stream of events."""
    return any(
        name.lower() == "content-type" and value.lower().startswith("text/event-stream")
        for name, value in answer.headers
    )


def strict_json(body: bytes) -> bytes | None:
    """A body in JSON that any reader takes; None where it is none, as when an engine dies in it.

    Python's own writer says NaN and -Infinity, of logprobs for example, and halves of characters.
    """
    try:
        msgspec.json.decode(body)
    except RecursionError:
        return body  # deeper than we read, which is not the engine's fault
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            value = json.loads(body, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return None
        return json.dumps(value, ensure_ascii=False).encode(errors="replace")
    return body


async def beginning(
    chunks: AsyncIterator[bytes],
    tap: SseTap,
    *,
    heard: Callable[[], None],
    is_background: bool,
) -> bytes:
    """What is to be relayed of a stream when its answer begins.

    In the Responses API an answer is announced before its engine has even queued it. That is held
    until more comes: until then another engine can answer, and an error can be a status. Only work
    in the background is announced at once, since its client may come back for it by its id.

    Raises:
        EngineError: it ended, was given up, or the connection broke, before it began.
    """
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        heard()
        held.append(tap.feed(chunk))
        size += len(held[-1])
        if tap.is_given_up and not tap.first_token_seen:
            raise EngineUnreachable(refusal.GIVEN_UP)
        is_known = is_background and bool(tap.response_id)
        if is_known or not tap.is_announced_only or size > _ANNOUNCED_BYTES_MAX:
            return b"".join(held)
    held.append(tap.close())
    if not tap.is_over:
        raise EngineUnreachable("the answer ended before it began")
    return b"".join(held)
