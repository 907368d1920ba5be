"""Event streams of engines, and what a tap makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from agentsched.proxy.answer import Answer
from agentsched.proxy.request import Dialect
from agentsched.proxy.sse import SseTap

CAPTURES = Path(__file__).parents[1] / "proxy/data/vllm-0.32"
DIALECTS = {
    "chat": Dialect.CHAT,
    "completions": Dialect.COMPLETIONS,
    "responses": Dialect.RESPONSES,
    "messages": Dialect.MESSAGES,
}


def dialect_of(path: Path) -> Dialect:
    return DIALECTS[path.stem.split("_")[0]]


def tapped(
    dialect: Dialect, chunks: list[bytes], *, hide_usage: bool = False, **limits: int
) -> tuple[bytes, SseTap]:
    tap = SseTap(dialect, hide_usage=hide_usage, **limits)
    relayed = b"".join([tap.feed(chunk) for chunk in chunks])
    return relayed + tap.close(), tap


def read(dialect: Dialect, *events: bytes) -> Answer:
    return tapped(dialect, list(events))[1].answer()


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def event(value: Mapping[str, object]) -> bytes:
    return f"event: {value['type']}\n".encode() + data(value)


def chat(delta: dict[str, object] | None = None, **choice: object) -> bytes:
    return data({"id": "c1", "choices": [{"index": 0, "delta": delta or {}, **choice}]})


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
USAGE_CHUNK = data({"id": "c1", "choices": [], "usage": USAGE})
FINISH = chat(finish_reason="stop")
DONE = b"data: [DONE]\n\n"


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[first:last] for first, last in pairwise(edges)]
