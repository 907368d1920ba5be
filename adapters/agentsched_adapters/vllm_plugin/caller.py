"""Whose request is this? What the proxy wrote into `vllm_xargs`, as the engine core sees it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from agentsched.model import Nanos, seconds
from agentsched_adapters.vllm_plugin.wire import (
    ID_CHARS_MAX,
    XARG_CONVERSATION,
    XARG_GRACE,
    XARG_PROGRAM,
    XARG_TENANT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A request's place. Without a conversation it is nobody's and nothing is kept for it."""

    program: str
    conversation: str
    tenant: str
    #: In place of the operator's grace.
    grace: Nanos | None = None

    @property
    def is_known(self) -> bool:
        """Whether anybody can come back to it."""
        return bool(self.conversation)


def caller_of(request: Any) -> Caller:
    """Read a vLLM request. Values of a wrong kind count as not sent: they are claims."""
    params = request.sampling_params
    extra = (params.extra_args if params is not None else None) or {}
    conversation = _id(extra.get(XARG_CONVERSATION)) or _id(getattr(request, "session_id", None))
    return Caller(
        program=_id(extra.get(XARG_PROGRAM)) or conversation,
        conversation=conversation,
        tenant=_id(extra.get(XARG_TENANT)),
        grace=_span(extra.get(XARG_GRACE)),
    )


def _id(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= ID_CHARS_MAX else ""


def _span(value: object) -> Nanos | None:
    if type(value) is not int and type(value) is not float:
        return None
    if not isfinite(value) or not 0 <= value <= 86_400:
        return None
    return seconds(value)
