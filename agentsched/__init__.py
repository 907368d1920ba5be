"""Agentic workflow-aware scheduling in front of LLM engines.

Importing this package imports nothing heavy: it lives inside users' agent processes. Names are
looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agentsched.model.errors import AgentschedError

__all__ = ["AgentschedError", "__version__"]

#: The one place of the version; the build reads it here.
__version__ = "0.1.0"

#: Exported name -> the module that has it.
_EXPORTS: Final = {"AgentschedError": "agentsched.model.errors"}


def __getattr__(name: str) -> object:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
