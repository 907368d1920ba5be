"""Which clients were seen: a family for each request, and how many requests each family sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentsched.proxy.clients import client_of

OTHERS: Final = "others"
_LITELLM: Final = "mini-swe-agent/litellm"

#: Frameworks and SDKs by what their `User-Agent` holds, in lower case, the more telling one first.
_MARKS: Final = (
    ("mini-swe-agent", _LITELLM),
    ("litellm", _LITELLM),
    ("agents/python", "openai-agents"),
    ("pydantic-ai", "pydantic-ai"),
    ("aider", "aider"),
    ("asyncopenai/", "openai-sdk"),
    ("openai/", "openai-sdk"),
    ("asyncanthropic/", "anthropic-sdk"),
    ("anthropic/", "anthropic-sdk"),
)


def family_of(headers: Mapping[str, str]) -> str:
    """The family of a request's client (lower-case header names): one of a few fixed names."""
    name = client_of(headers).name
    if name != "other":
        return name
    agent = headers.get("user-agent", "").lower()
    if agent.startswith(("openai/", "asyncopenai/")) and _is_litellm(headers):
        return _LITELLM
    return next((family for mark, family in _MARKS if mark in agent), OTHERS)


def _is_litellm(headers: Mapping[str, str]) -> bool:
    """LiteLLM goes by OpenAI's SDK, asks for raw answers and writes its time-out with a point."""
    return headers.get("x-stainless-raw-response") == "true" and "." in headers.get(
        "x-stainless-read-timeout", ""
    )
