"""Agentic workflow-aware scheduling in front of LLM engines.

Importing this package imports nothing heavy: it lives inside users' agent processes. Names are
looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from agentsched.version import __version__

if TYPE_CHECKING:
    from agentsched.model.errors import AgentschedError
    from agentsched.sdk.clients import (
        anthropic,
        async_anthropic,
        async_httpx_hooks,
        async_openai,
        httpx_hooks,
        openai,
        with_headers,
    )
    from agentsched.sdk.context import (
        Program,
        carry,
        current_headers,
        current_program,
        current_step,
    )
    from agentsched.sdk.decorators import agent_step, declared_workflow, program, tool_call
    from agentsched.sdk.reporter import configure

__all__ = [
    "AgentschedError",
    "Program",
    "__version__",
    "agent_step",
    "anthropic",
    "async_anthropic",
    "async_httpx_hooks",
    "async_openai",
    "carry",
    "configure",
    "current_headers",
    "current_program",
    "current_step",
    "declared_workflow",
    "httpx_hooks",
    "openai",
    "program",
    "tool_call",
    "with_headers",
]

#: Exported name -> the module that has it.
_EXPORTS: Final = {
    "AgentschedError": "agentsched.model.errors",
    **dict.fromkeys(
        (
            "anthropic",
            "async_anthropic",
            "async_httpx_hooks",
            "async_openai",
            "httpx_hooks",
            "openai",
            "with_headers",
        ),
        "agentsched.sdk.clients",
    ),
    **dict.fromkeys(
        ("Program", "carry", "current_headers", "current_program", "current_step"),
        "agentsched.sdk.context",
    ),
    **dict.fromkeys(
        ("agent_step", "declared_workflow", "program", "tool_call"), "agentsched.sdk.decorators"
    ),
    "configure": "agentsched.sdk.reporter",
}


def __getattr__(name: str) -> object:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
