"""Which client sends a request, and how long it bears silence before an answer's status.

The limits were measured on the real clients (docs/clients.md); SDKs say theirs in a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agentsched.config import ClientName
from agentsched.model import SECOND, Nanos, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A kind of client. `silence` is None where it waits for a status without end.

    `takes_early_responses`: it does not mind a Responses event before `response.created`, which
    OpenAI's own helper refuses. `resends_after_end`: it notices a stream that ends too early and
    asks again, whereas an error event in the middle of a text ends its run.
    """

    name: ClientName
    silence: Nanos | None = None
    takes_early_responses: bool = False
    resends_after_end: bool = False


_CLAUDE_CODE: Final = Client(name="claude-code", silence=Nanos(300 * SECOND))
_CODEX: Final = Client(name="codex", takes_early_responses=True)
_OPENCODE: Final = Client(name="opencode", silence=Nanos(300 * SECOND))
_QWEN: Final = Client(name="qwen", silence=Nanos(120 * SECOND), resends_after_end=True)
_CLINE: Final = Client(name="cline", silence=Nanos(300 * SECOND))
_OPENHANDS: Final = Client(name="openhands", silence=Nanos(300 * SECOND))
_OTHER: Final = Client(name="other")

#: Who says more means no limit at all.
_SILENCE_S_MAX: Final = 3_600

#: How their `User-Agent` begins, in lower case.
_AGENTS: Final = (
    ("claude-cli/", _CLAUDE_CODE),
    ("codex", _CODEX),
    ("opencode/", _OPENCODE),
    ("qwencode/", _QWEN),
    ("qwen-code/", _QWEN),
    ("cline", _CLINE),
    ("openhands", _OPENHANDS),
)
#: Those that use an SDK's `User-Agent` and say who they are beside it.
_TITLES: Final = {"openhands": _OPENHANDS, "cline": _CLINE, "qwen code": _QWEN}


def client_of(headers: Mapping[str, str]) -> Client:
    """The client of a request with these headers (lower-case names)."""
    agent = headers.get("user-agent", "").lower()
    for beginning, client in _AGENTS:
        if agent.startswith(beginning):
            return client
    titled = _TITLES.get(headers.get("x-title", "").lower())
    if titled is not None:
        return titled
    said = read_seconds(headers.get("x-stainless-read-timeout", ""))
    return _OTHER if said is None else Client(name="other", silence=said)


def read_seconds(text: str) -> Nanos | None:
    """A length of time from a header, in seconds; None for what is none, or makes no sense."""
    try:
        value = float(text)
    except ValueError:
        return None
    return seconds(value) if 0.001 <= value <= _SILENCE_S_MAX else None
