"""A client's request without anything that names its program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Headers that say what a client is, not which of its programs speaks.
_HARMLESS: Final = ("user-agent", "content-type", "accept", "anthropic-", "x-stainless-")
_BODY_IDS: Final = (
    "metadata",
    "client_metadata",
    "prompt_cache_key",
    "previous_response_id",
    "conversation",
    "session_id",
    "user",
    "safety_identifier",
    "agentsched",
)


def is_harmless(header: str) -> bool:
    """Whether a header (in small letters) says nothing about whose request it is."""
    return header.startswith(_HARMLESS)


def without_ids(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without anything that names its program; call ids are the engine's, and stay."""
    kept = {k: v for k, v in body.items() if k not in _BODY_IDS}
    items = kept.get("input")
    if isinstance(items, list):
        kept["input"] = [
            {k: v for k, v in item.items() if k != "id"} if isinstance(item, dict) else item
            for item in items
        ]
    return kept
