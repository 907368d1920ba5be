"""The operator's configuration: a TOML file, environment variables and options, parsed once.

Order of precedence, key by key: command-line options, `AGENTSCHED_*` environment variables (nested
names with `__`, as in `AGENTSCHED_HTTP__BODY_BYTES_MAX`), the file, the defaults below.
docs/configuration.md is drawn from the classes below.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from agentsched.compose import SchedulerConfig
from agentsched.config_access import AuthConfig, TlsConfig
from agentsched.config_base import (
    Count,
    HeaderName,
    Key,
    OurKey,
    Part,
    Secret,
    Span,
    TcpAddress,
)
from agentsched.config_limits import LimitsConfig, TenantConfig
from agentsched.config_reading import Environment, explain, over, read_file
from agentsched.config_telemetry import TelemetryConfig
from agentsched.config_trust import BreakerConfig, IdempotencyConfig, RetriesConfig
from agentsched.model import (
    MILLISECOND,
    MINUTE,
    SECOND,
    ConfigError,
    Nanos,
)
from agentsched.policy import Choice
from agentsched_graphs.workflow import Workflow, read_workflow

#: The questions that policies answer.
Point = Literal["order", "admit", "place", "pin", "prefetch", "share"]

#: The APIs that generate, as their section of the configuration is called.
DialectName = Literal["chat", "completions", "responses", "messages"]

#: The clients whose patience is known, and all others.
ClientName = Literal["claude-code", "codex", "opencode", "qwen", "cline", "openhands", "other"]


def _for_each_client(value: object) -> object:
    """One value for all clients, or a table of clients."""
    return value if isinstance(value, dict) else dict.fromkeys(get_args(ClientName), value)


_KeepAlive = Annotated[dict[ClientName, Span | Literal["auto"]], BeforeValidator(_for_each_client)]


def _plain_url(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("an engine's URL has no user, query or fragment")
    return url


class EngineConfig(Part):
    """One engine, as `[[engines]]` in the file or `--engine [NAME=]URL`."""

    url: Annotated[AnyHttpUrl, AfterValidator(_plain_url)] = Field(
        description="where it answers; a `/v1` at the end is left out"
    )
    id: str = Field(
        default="",
        max_length=64,
        pattern=r"^[A-Za-z0-9._:-]*$",
        description="its name in headers, metrics and the journal; else host and port",
    )
    kind: Literal["auto", "vllm", "sglang", "openai"] = Field(
        default="auto",
        description="what it is: `vllm`, `sglang`, any other with OpenAI's API (`openai`), or"
        " look and see",
    )
    api_key: Key | None = Field(
        default=None, description="sent to the engine in place of the client's keys"
    )
    models: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(),
        description="models that it takes beside those that its `/v1/models` lists: adapters that"
        " it loads when they are asked for, other names; `*` for any",
    )
    lmcache: Annotated[AnyHttpUrl, AfterValidator(_plain_url)] | None = Field(
        default=None, description="URL of the LMCache controller of an engine with tiers"
    )
    lmcache_instance: str = Field(
        default="", max_length=128, description="its `lmcache_instance_id` there; else its name"
    )
    kv_events: TcpAddress | None = Field(
        default=None, description="where a vLLM publishes its KV events, as `tcp://gpu-1:5557`"
    )

    @property
    def base_url(self) -> str:
        """The URL without a slash at its end, and without the `/v1` that clients write."""
        return str(self.url).rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def name(self) -> str:
        """The id, or host and port where none was given."""
        return self.id or f"{self.url.host}:{self.url.port}"


class HttpConfig(Part):
    """Limits of the HTTP surface. Each breach has an answer in the client's error shape."""

    body_bytes_max: int = Field(
        default=32 << 20, ge=1024, description="bytes of a request's body, decompressed; else 413"
    )
    bodies_bytes_max: int = Field(
        default=2 << 30,
        ge=1024,
        description="bytes of the bodies of all requests under way, as they arrive; else 429",
    )
    header_bytes_max: int = Field(
        default=16_384, ge=1024, description="bytes of one header line, or of the path; else 431"
    )
    headers_max: int = Field(default=128, ge=16, description="header lines; else 431")
    messages_max: Count = Field(
        default=20_000, description="messages or input items of one request; else 400"
    )
    header_timeout: Span = Field(
        default=Nanos(15 * SECOND),
        description="for a connection's first request line and headers; else it is closed",
    )
    body_timeout: Span = Field(
        default=Nanos(60 * SECOND), description="for the whole body to arrive; else 408"
    )
    write_timeout: Span = Field(
        default=Nanos(5 * MINUTE),
        description="a client that reads nothing of its answer for so long is cut off",
    )
    keepalive_timeout: Span = Field(
        default=Nanos(75 * SECOND), description="idle connections are closed then"
    )
    keep_alive: _KeepAlive = Field(
        default={},
        description="a stream that has not begun after so long is opened early and kept alive:"
        ' one time for all clients, or a table such as `{qwen = "90s"}`; `auto` is three quarters'
        " of what the client bears (docs/clients.md). Off where nothing is set",
    )
    drain_notice: Span = Field(
        default=Nanos(SECOND),
        description="after SIGTERM the port stays open for at least so long, so that load balancers"
        " see `/readyz` say no before connections are refused",
    )
    drain_timeout: Span = Field(
        default=Nanos(30 * SECOND),
        description="running requests may take so long after SIGTERM; then they end in an error",
    )

    @model_validator(mode="after")
    def _one_fits(self) -> HttpConfig:
        if self.bodies_bytes_max < self.body_bytes_max:
            raise ValueError("http.bodies_bytes_max is less than a single body may have")
        return self


class UpstreamConfig(Part):
    """How long engines may be silent, and how often they are looked at."""

    connect_timeout: Span = Field(
        default=Nanos(5 * SECOND), description="for a connection to an engine"
    )
    first_byte_timeout: Span = Field(
        default=Nanos(30 * MINUTE),
        description="for an answer's status; one that is not streamed brings it at its end",
    )
    idle_timeout: Span = Field(
        default=Nanos(5 * MINUTE), description="of silence inside an answer; then the step fails"
    )
    idle_timeouts: dict[DialectName, Span] = Field(
        default_factory=dict,
        description='the same for single APIs: `{chat = "90s", responses = "10m"}`',
    )
    probe_interval: Span = Field(
        default=Nanos(2 * SECOND), description="between two looks at an engine's health"
    )
    probe_timeout: Span = Field(default=Nanos(5 * SECOND), description="for one look")
    trial_timeout: Span = Field(
        default=Nanos(30 * SECOND),
        description="for the tiny requests that find out what a new engine can do",
    )
    failures_until_lost: Count = Field(
        default=2, description="failed looks in a row; a refused connection counts at once"
    )
    forward_authorization: bool = Field(
        default=True, description="whether engines get the clients' `Authorization`, `x-api-key`"
    )


class IdentityConfig(Part):
    """How programs are recognised."""

    extra_headers: tuple[HeaderName, ...] = Field(
        default=(), description="further headers that name a program, first match wins"
    )
    tenant_header: HeaderName = Field(
        default="x-agentsched-tenant", description="who pays; else a hash of the API key"
    )
    tenant_headers: tuple[HeaderName, ...] = Field(
        default=(),
        description="further headers that say who pays, first match wins: those of gateways that"
        " let no client write them, such as `x-smg-tenant-id` or `x-llm-d-inference-fairness-id`",
    )
    secret: Secret | None = Field(
        default=None, description="keys the hashes of prompts; replicas share it"
    )
    cache_salt_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="a secret; with it each tenant gets a prefix cache of its own in vLLM, by"
        " `cache_salt`. Beginnings that tenants share are then computed and kept once for each",
    )
    programs_max: Count = Field(
        default=20_000, description="programs remembered; the idlest is forgotten"
    )
    idle_max: Span = Field(
        default=Nanos(60 * MINUTE), description="a program that is silent for so long is forgotten"
    )
    unique_call_ids: bool = Field(
        default=False,
        description="for engines that number the tool calls of each answer anew (`call_1`): ids"
        " get a suffix on their way to the client, which is cut off on their way back",
    )


def _broker_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
        # What cannot be a port or a name is found out by reading it.
        is_good = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.scheme not in ("mqtt", "mqtts") or parts.path.strip("/"):
        raise ValueError("write mqtt://HOST:PORT or mqtts://USER:PASSWORD@HOST:PORT")
    if parts.query or parts.fragment:
        # Of a password that was written as it is, the rest would be lost without a word.
        raise ValueError("write ? and # in a user name or a password as %3F and %23")
    if parts.password and not parts.username:
        raise ValueError("a password wants a user name: write mqtts://USER:PASSWORD@HOST:PORT")
    return url


class BusConfig(Part):
    """An MQTT broker for tool events and for several replicas (`[bus]`); none is needed for one."""

    url: Annotated[SecretStr, AfterValidator(_broker_url)] | None = Field(
        default=None, description="`mqtt://[USER:PASSWORD@]HOST[:1883]`, `mqtts://` for TLS"
    )
    cluster: str = Field(
        default="default",
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="replicas of one cluster hear each other: `agentsched/CLUSTER/...`",
    )
    replica: str = Field(
        default="",
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="this proxy's name on the bus; else the host's and the port",
    )
    tls_ca: Path | None = Field(default=None, description="file of authorities, for `mqtts://`")
    tls_certificate: Path | None = Field(default=None, description="file of our own certificate")
    tls_key: Path | None = Field(default=None, description="file of its key")
    settle: Span = Field(
        default=Nanos(50 * MILLISECOND),
        description="a request that goes on from something unknown waits so long for another"
        " replica's word of it",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> BusConfig:
        is_plain = self.url is not None and urlsplit(self.url.get_secret_value()).scheme == "mqtt"
        if is_plain and (self.tls_ca or self.tls_certificate or self.tls_key):
            # Whoever names them believes that passwords and tools are encrypted on their way.
            raise ValueError("tls_ca, tls_certificate and tls_key are for mqtts://")
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key needs a tls_certificate")
        return self


class StoreConfig(Part):
    """Where the journal, programs, graphs and what was learnt outlive the process (`[store]`)."""

    url: SecretStr | None = Field(
        default=None,
        description="`sqlite:///FILE`, or `postgresql://USER:PASSWORD@HOST/DATABASE` for several"
        " replicas; nothing outlives the process where it is not set",
    )
    replica: str = Field(
        default="",
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="this proxy's name in the database, the same after a restart; else the host's",
    )
    spool: Path | None = Field(
        default=None,
        description="folder for what waits while the database is away; else beside an SQLite file,"
        " or `agentsched-spool-USERID` in the folder for temporary files",
    )
    spool_bytes_max: int = Field(
        default=256 << 20, ge=1 << 16, description="bytes of the spool; more is dropped and counted"
    )
    backlog_max: Count = Field(
        default=100_000, description="records in memory; more are dropped and counted"
    )
    flush_interval: Span = Field(
        default=Nanos(100 * MILLISECOND),
        description="between two transactions: what a crash of this process may lose",
    )
    journal_retention: Span = Field(
        default=Nanos(7 * 24 * 60 * MINUTE), description="journal, programs and graphs are kept"
    )
    image_interval: Span = Field(
        default=Nanos(5 * MINUTE),
        description="between two images of the scheduler, from which a restart begins; each is made"
        " by a process of its own",
    )
    restore_timeout: Span = Field(
        default=Nanos(30 * SECOND), description="for a start to bring back what was"
    )
    restore_events_max: Count = Field(
        default=200_000, description="journal entries that a start replays; older ones are left out"
    )
    shutdown_timeout: Span = Field(
        default=Nanos(5 * SECOND), description="for the last records to be written at the end"
    )

    @property
    def has_replicas(self) -> bool:
        """Whether other replicas may write to the same database: SQLite is one process's own."""
        return self.url is not None and self.url.get_secret_value().startswith("postgres")


class PolicyChoice(Part):
    """A policy by name, with its parameters, as `[policies.order]` and so on."""

    name: str = Field(description="see `/agentsched/v1/policies`")
    params: dict[str, Any] = Field(default_factory=dict, description="the policy's own")


_TenantName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x20-\x7e]+$")]


class Config(BaseSettings):
    """The whole configuration of `agentsched serve`."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTSCHED_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8900, ge=0, le=65535, description="0 picks a free one")
    engines: tuple[EngineConfig, ...] = Field(default=(), description="at least one")
    profile: str = Field(
        default="agentsched", description="a named set of policies; see `/agentsched/v1/policies`"
    )
    policies: dict[Point, PolicyChoice] = Field(
        default_factory=dict, description="policies in place of the profile's"
    )
    limits: LimitsConfig = LimitsConfig()
    tenants: dict[_TenantName, TenantConfig] = Field(
        default_factory=dict, description="shares and ceilings of tenants"
    )
    http: HttpConfig = HttpConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    breaker: BreakerConfig = BreakerConfig()
    retries: RetriesConfig = RetriesConfig()
    idempotency: IdempotencyConfig = IdempotencyConfig()
    identity: IdentityConfig = IdentityConfig()
    store: StoreConfig = StoreConfig()
    bus: BusConfig = BusConfig()
    auth: AuthConfig = AuthConfig()
    tls: TlsConfig = TlsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    admin_key: OurKey | None = Field(
        default=None,
        description="bearer token of the control plane; from other machines it wants this or a key"
        " (docs/security.md)",
    )
    journal: Path | None = Field(
        default=None,
        description="file that gets the journal, and must not be there yet; `.gz` is compressed",
    )
    workflows: tuple[Path, ...] = Field(
        default=(), description="files of declared workflows, YAML or JSON (docs/graphs.md)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="of the log on standard error"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **others: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given, then the environment."""
        return init_settings, Environment(settings_cls)

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
            workflows=self.declared,
        )

    @cached_property
    def declared(self) -> tuple[Workflow, ...]:
        """The workflows, read once, so that scheduler and journal know the same.

        Raises:
            ConfigError: a file cannot be read, or is no workflow; the text names it.
        """
        return tuple(_read_workflow(path) for path in self.workflows)


def _read_workflow(path: Path) -> Workflow:
    try:
        return read_workflow(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"workflow {path}: {error.strerror or error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_config(path: Path | None = None, options: Mapping[str, Any] | None = None) -> Config:
    """Read the file, the environment and the options; later ones win, key by key.

    Raises:
        ConfigError: the file cannot be read, or a value is wrong; the text names the key.
    """
    values: dict[str, Any] = read_file(path) if path is not None else {}
    known = set(Config.model_fields)
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"{path}: unknown key {unknown[0]!r} (there are: {', '.join(sorted(known))})"
        )
    given = {k: v for k, v in (options or {}).items() if v is not None}
    try:
        environment = Environment(Config)()
        above = over(environment, given)
        return Config(**over(values, above))
    except ValidationError as error:
        raise ConfigError(explain(error, path, above, environment)) from error
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from error
