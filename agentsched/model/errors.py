"""Our error tree.

AgentschedError
├── ConfigError        the operator's input is wrong; the text says what to write instead
├── WireError          the client's bytes are wrong; becomes a 4xx in the client's shape
├── PolicyError        a policy is unknown, broken or misconfigured
└── EngineError        the engine did not answer as asked
    ├── EngineUnreachable   no connection could be made: safe to try elsewhere
    ├── EngineTimeout       a connection, but no answer in time
    └── EngineRefused       an answer, and it was no
"""

from __future__ import annotations


class AgentschedError(Exception):
    """The root of every error that agentsched raises on purpose."""


class ConfigError(AgentschedError):
    """The operator's input is wrong."""


class WireError(AgentschedError):
    """The client's request cannot be understood or breaks a limit.

    `status` is the HTTP status to answer with, `code` a short machine-readable word, `param` the
    request field at fault where one is.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param


class PolicyError(AgentschedError):
    """A policy is unknown, cannot be loaded or refuses its parameters."""


class EngineError(AgentschedError):
    """An engine did not answer as asked."""


class EngineUnreachable(EngineError):
    """No connection could be made; nothing was sent, so another engine may be tried."""


class EngineTimeout(EngineError):
    """The engine took the request and then was silent for too long."""


class EngineRefused(EngineError):
    """The engine answered with an error status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
