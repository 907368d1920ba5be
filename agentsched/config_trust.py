"""What is done about engines that fail and clients that repeat themselves."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentsched.config_base import Count, Part, Span
from agentsched.model import MINUTE, SECOND, Nanos

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class BreakerConfig(Part):
    """When an engine that answers its probes but fails requests gets no new work (`[breaker]`)."""

    is_on: bool = Field(default=True, description="whether engines are ejected for failures")
    failures: Count = Field(
        default=5, description="failed requests in a row: no connection, silence, a 5xx, a cut"
    )
    failure_share: _Share = Field(
        default=0.5, description="or this share of the requests in the window"
    )
    requests_min: Count = Field(default=20, description="of which there must be so many")
    window: Span = Field(default=Nanos(30 * SECOND), description="what counts as lately")
    ejection: Span = Field(
        default=Nanos(10 * SECOND),
        description="for so long the first time, and twice as long each time after that",
    )
    ejection_max: Span = Field(default=Nanos(5 * MINUTE), description="but no longer than this")
    ejected_share_max: _Share = Field(
        default=0.5, description="of all engines, at most; the last one that is up always stays"
    )


class RetriesConfig(Part):
    """Further tries of a step before any byte of its answer reached the client (`[retries]`)."""

    share: _Share = Field(default=0.2, description="of the requests, in the long run")
    burst: Annotated[int, Field(ge=0)] = Field(
        default=256, description="beyond that at once: what a crash of an engine leaves behind"
    )


class IdempotencyConfig(Part):
    """Requests that come twice: the same `Idempotency-Key`, or `x-request-id` and body."""

    is_on: bool = Field(default=True, description="whether the second joins the first")
    window: Span = Field(
        default=Nanos(MINUTE), description="for so long after its end an answer can be had again"
    )
    patience: Span = Field(
        default=Nanos(10 * SECOND),
        description="work goes on for so long though its client is gone, since it may come back",
    )
    bytes_max: int = Field(
        default=64 << 20,
        ge=1 << 16,
        description="of answers that are kept or still come; the oldest kept ones go",
    )
