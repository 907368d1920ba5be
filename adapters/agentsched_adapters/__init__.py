"""All vendor knowledge: engines over the network, hint sinks, and the in-process fake."""

from __future__ import annotations

from agentsched_adapters.detect import detect
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
    "detect",
]
