"""All vendor knowledge: engines over the network, hint sinks, and the in-process fake.

Names are loaded when they are asked for: an engine image has what a plugin needs, and no HTTP
client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agentsched_adapters.fake import FakeEngine
    from agentsched_adapters.hints import NoHints
    from agentsched_adapters.openai_compatible import OpenAiCompatibleEngine
    from agentsched_adapters.openai_http import HttpLimits, OpenAiHttp
    from agentsched_adapters.vllm import VllmEngine

__all__ = [
    "FakeEngine",
    "HttpLimits",
    "NoHints",
    "OpenAiCompatibleEngine",
    "OpenAiHttp",
    "VllmEngine",
]

_HOMES: Final = {
    "FakeEngine": "agentsched_adapters.fake",
    "HttpLimits": "agentsched_adapters.openai_http",
    "NoHints": "agentsched_adapters.hints",
    "OpenAiCompatibleEngine": "agentsched_adapters.openai_compatible",
    "OpenAiHttp": "agentsched_adapters.openai_http",
    "VllmEngine": "agentsched_adapters.vllm",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
