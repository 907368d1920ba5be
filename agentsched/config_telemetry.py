"""What is told to those who watch (`[telemetry]`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, AnyHttpUrl, Field

from agentsched.config_base import HeaderName, HeaderValue, Part, Span
from agentsched.model import SECOND, Nanos


def _base(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("no user, query or fragment; put keys into otlp_headers")
    return url


class TelemetryConfig(Part):
    """Traces and metrics over OTLP, and the log (`[telemetry]`). OTLP needs the extra `otel`."""

    otlp_endpoint: Annotated[AnyHttpUrl, AfterValidator(_base)] | None = Field(
        default=None,
        description="base URL of an OTLP/HTTP receiver, as `http://collector:4318`; off where it is"
        " not set",
    )
    otlp_headers: dict[HeaderName, HeaderValue] = Field(
        default_factory=dict, description="sent with each export, such as a key"
    )
    otlp_timeout: Span = Field(
        default=Nanos(10 * SECOND), description="for one export, further tries included"
    )
    service_name: str = Field(
        default="agentsched", min_length=1, max_length=255, description="`service.name`"
    )
    provider: str = Field(
        default="vllm", min_length=1, max_length=64, description="`gen_ai.provider.name`"
    )
    sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of programs that are traced; a client's own decision comes first",
    )
    spans_max: int = Field(
        default=20_000, ge=1, description="spans that wait; more are dropped and counted"
    )
    flush_interval: Span = Field(default=Nanos(SECOND), description="between two exports of spans")
    metrics_interval: Span | Literal["off"] = Field(
        default=Nanos(60 * SECOND), description="between two exports of metrics, or `off`"
    )
    shutdown_timeout: Span = Field(
        default=Nanos(5 * SECOND), description="for the last spans to go out at the end"
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="of the log: lines for people, or one JSON object a line"
    )
    log_steps: bool = Field(
        default=False, description="whether each step that ended gets a line in the log"
    )

    @property
    def base_url(self) -> str:
        """The receiver without a slash at its end; empty where there is none."""
        return str(self.otlp_endpoint).rstrip("/") if self.otlp_endpoint is not None else ""
