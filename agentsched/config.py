"""The operator's configuration: a TOML file, environment variables and options, parsed once.

Order of precedence: command-line options, `AGENTSCHED_*` environment variables (nested names with
`__`, as in `AGENTSCHED_HTTP__BODY_BYTES_MAX`), the file, the defaults below.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentsched.compose import SchedulerConfig
from agentsched.model import (
    MINUTE,
    SECOND,
    ConfigError,
    Limits,
    Nanos,
    in_seconds,
    parse_span,
    seconds,
)
from agentsched.policy import Choice


def _read_span(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_span(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    if isinstance(value, float):
        return seconds(value)
    return value


#: A length of time: `15s` or `250ms` in files, seconds where it is a number with a point.
Span = Annotated[
    Nanos,
    BeforeValidator(_read_span),
    PlainSerializer(lambda span: f"{in_seconds(span):g}s", return_type=str),
]


def _plain_url(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("an engine's URL has no user, query or fragment")
    return url


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineConfig(_Part):
    """One engine. `id` is its name in headers, metrics and the journal."""

    url: Annotated[AnyHttpUrl, AfterValidator(_plain_url)]
    id: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")
    kind: Literal["auto", "vllm", "openai"] = "auto"
    api_key: SecretStr | None = Field(
        default=None, description="sent to the engine in place of the client's Authorization"
    )

    @property
    def base_url(self) -> str:
        """The URL without a slash at its end, and without the `/v1` that clients write."""
        return str(self.url).rstrip("/").removesuffix("/v1")

    @property
    def name(self) -> str:
        """The id, or host and port where none was given."""
        return self.id or f"{self.url.host}:{self.url.port}"


class HttpConfig(_Part):
    """Limits of the HTTP surface. Each breach has an answer in the client's error shape."""

    body_bytes_max: int = Field(default=32 << 20, ge=1024)
    header_bytes_max: int = Field(default=16_384, ge=1024, description="of one header line")
    headers_max: int = Field(default=128, ge=16)
    messages_max: int = Field(default=20_000, ge=1)
    header_timeout: Span = Nanos(15 * SECOND)
    body_timeout: Span = Nanos(60 * SECOND)
    write_timeout: Span = Nanos(5 * MINUTE)
    drain_timeout: Span = Nanos(30 * SECOND)


class UpstreamConfig(_Part):
    """How long engines may be silent, and how often they are looked at."""

    connect_timeout: Span = Nanos(5 * SECOND)
    first_byte_timeout: Span = Nanos(30 * MINUTE)
    idle_timeout: Span = Nanos(5 * MINUTE)
    probe_interval: Span = Nanos(2 * SECOND)
    probe_timeout: Span = Nanos(5 * SECOND)
    failures_until_lost: int = Field(default=2, ge=1)
    forward_authorization: bool = True


class IdentityConfig(_Part):
    """How programs are recognised."""

    is_inferring: bool = Field(default=True, description="recognise programs without ids")
    extra_headers: tuple[str, ...] = Field(
        default=(), description="further headers that name a program, first match wins"
    )
    tenant_header: str = Field(
        default="x-agentsched-tenant", description="who pays; else a hash of the API key"
    )
    secret: SecretStr | None = Field(
        default=None,
        description="keys the hashes of prompts; replicas share it",
    )
    programs_max: int = Field(default=20_000, ge=1)
    idle_max: Span = Nanos(60 * MINUTE)


class PolicyChoice(_Part):
    """A policy by name, with its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class LimitsConfig(_Part):
    """The ceilings of the scheduler; those that are not set keep their defaults."""

    programs_max: int | None = None
    program_idle_max: Span | None = None
    conversations_per_program_max: int | None = None
    ready_steps_max: int | None = None
    running_steps_per_engine_max: int | None = None
    engine_wait_max: Span | None = None
    max_wait: Span | None = Field(default=None, description="no held step waits longer")
    max_bypass: int | None = Field(default=None, description="no held step is overtaken more often")
    pins_per_engine_max: int | None = None
    pinned_tokens_per_engine_max: int | None = None
    pin_ttl_max: Span | None = None
    retries_max: int | None = None

    def to_limits(self) -> Limits:
        """The scheduler's limits. Raises `ConfigError` where one makes no sense."""
        names = {
            "program_idle_max": "program_idle_ns_max",
            "engine_wait_max": "engine_wait_ns_max",
            "max_wait": "wait_ns_max",
            "max_bypass": "bypasses_max",
            "pin_ttl_max": "pin_ttl_ns_max",
        }
        given = {
            k: getattr(self, k) for k in type(self).model_fields if getattr(self, k) is not None
        }
        return Limits(**{names.get(key, key): value for key, value in given.items()})


class Config(BaseSettings):
    """The whole configuration of `agentsched serve`."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTSCHED_", env_nested_delimiter="__", extra="ignore", frozen=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8900, ge=0, le=65535)
    engines: tuple[EngineConfig, ...] = ()
    profile: str = "fcfs"
    policies: dict[Literal["order", "admit", "place", "pin", "prefetch"], PolicyChoice] = Field(
        default_factory=dict
    )
    limits: LimitsConfig = LimitsConfig()
    http: HttpConfig = HttpConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    identity: IdentityConfig = IdentityConfig()
    admin_key: SecretStr | None = Field(
        default=None, description="bearer token of the control plane; needed off loopback"
    )
    journal: Path | None = Field(default=None, description="file that gets the journal")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _engines_have_different_names(self) -> Config:
        names = [engine.name for engine in self.engines]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two engines are called {', '.join(twice)}: give each its own id")
        return self

    def scheduler(self) -> SchedulerConfig:
        """What makes the scheduler."""
        return SchedulerConfig(
            profile=self.profile,
            choices={p: Choice(name=c.name, params=c.params) for p, c in self.policies.items()},
            limits=self.limits.to_limits(),
        )


def load_config(path: Path | None = None, options: Mapping[str, Any] | None = None) -> Config:
    """Read the file, the environment and the options; later ones win, key by key.

    Raises:
        ConfigError: the file cannot be read, or a value is wrong; the text names the key.
    """
    values: dict[str, Any] = _read_file(path) if path is not None else {}
    known = set(Config.model_fields)
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"{path}: unknown key {unknown[0]!r} (there are: {', '.join(sorted(known))})"
        )
    given = {k: v for k, v in (options or {}).items() if v is not None}
    # What BaseSettings is passed beats the environment; a file must not.
    environment = {k for k in known if _is_in_environment(k)}
    merged = {k: v for k, v in values.items() if k not in environment} | given
    try:
        return Config(**merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error


def _is_in_environment(key: str) -> bool:
    name = f"AGENTSCHED_{key}".upper()
    return any(k.upper() == name or k.upper().startswith(f"{name}__") for k in os.environ)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _explain(error: ValidationError, path: Path | None) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f"{path}: " if path else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{source}{where or 'configuration'}: {first['msg']}{more}"
