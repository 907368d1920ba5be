"""Who may do what (`[auth]`), and how connections are protected (`[tls]`)."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from agentsched.config_base import Part, Span
from agentsched.model import MINUTE, SECOND, Nanos

#: `data`: LLM calls and reports of tools. `read`: the control plane's views of the own tenant.
#: `admin`: all of the control plane, all tenants. `tenants`: LLM calls in any tenant's name.
#: `metrics`: `/metrics`.
Scope = Literal["data", "read", "admin", "tenants", "metrics"]

#: Signatures that cannot be made with a public key, whatever a token says of itself.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]

TENANT_PATTERN: Final = r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"
Tenant = Annotated[str, Field(min_length=1, max_length=64, pattern=TENANT_PATTERN)]


def _safe_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return url
    raise ValueError("an https:// URL (plain http only on this machine)")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _place(text: str) -> str:
    # What is no network is a pattern of names, and no name has a slash.
    if "/" in text:
        ipaddress.ip_network(text, strict=False)
    return text


class KeyConfig(Part):
    """One API key, as `[[auth.keys]]`: what `agentsched keys create` prints. Never the key."""

    id: str = Field(pattern=r"^[a-z2-7]{12}$", description="the part of the key that is no secret")
    hash: str = Field(
        pattern=r"^sha256:[0-9a-f]{64}$", description="`sha256:` and the SHA-256 of the whole key"
    )
    tenant: Tenant = Field(default="default", description="whose requests these are")
    scopes: tuple[Scope, ...] = Field(
        default=("data",), min_length=1, description="`data`, `read`, `admin`, `tenants`, `metrics`"
    )
    name: str = Field(default="", max_length=128, description="for people")
    expires_at: AwareDatetime | None = Field(
        default=None, description="as 2027-01-31T00:00:00Z; refused from then on"
    )


class OidcConfig(Part):
    """Tokens of an identity provider (`[auth.oidc]`), beside API keys. Needs the extra `auth`."""

    issuer: Annotated[str, AfterValidator(_safe_url)] = Field(
        description="exactly as it stands in `iss`"
    )
    audience: str = Field(min_length=1, description="ours, in `aud`")
    jwks_url: Annotated[str, AfterValidator(_safe_url)] | None = Field(
        default=None, description="its public keys; else what its discovery document names"
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "ES256"), min_length=1, description="signatures that are taken"
    )
    tenant_claim: str = Field(
        default="tenant", min_length=1, description="names the tenant; `a.b` is b inside a"
    )
    scopes_claim: str = Field(
        default="scope", min_length=1, description="words with spaces between, or a list"
    )
    scopes: dict[str, Scope] = Field(
        default={f"agentsched:{scope}": scope for scope in ("data", "read", "admin")},
        description="what the provider's words mean here",
    )
    leeway: Span = Field(default=Nanos(30 * SECOND), description="between its clock and ours")
    refresh_interval: Span = Field(
        default=Nanos(5 * MINUTE), description="between two fetches of its public keys"
    )
    timeout: Span = Field(default=Nanos(5 * SECOND), description="for one fetch")


class AuthConfig(Part):
    """Who may do what (docs/security.md)."""

    mode: Literal["open", "keys"] = Field(
        default="open",
        description="`keys`: every request needs one. `open`: LLM calls need none, and the control"
        " plane is for this machine, `admin_key`, and keys with the scope",
    )
    keys: tuple[KeyConfig, ...] = Field(default=(), description="API keys, as hashes")
    oidc: OidcConfig | None = Field(default=None, description="tokens of an identity provider")
    refresh_interval: Span = Field(
        default=Nanos(5 * SECOND),
        description="between two looks into the store for new and revoked keys",
    )
    session_timeout: Span = Field(
        default=Nanos(8 * 60 * MINUTE), description="a login to the dashboard lasts so long"
    )
    reports_per_s: Annotated[int, Field(ge=1)] = Field(
        default=1_000, description="reports of tools that one tenant may send; else 429"
    )
    engine_hosts: tuple[Annotated[str, AfterValidator(_place)], ...] = Field(
        default=(),
        description="hosts (`gpu-*.internal`) and networks (`10.0.0.0/8`) that engines added at"
        " run time may be on; any but link-local and metadata addresses where none is named",
    )

    @model_validator(mode="after")
    def _is_sound(self) -> AuthConfig:
        ids = [key.id for key in self.keys]
        if len(set(ids)) < len(ids):
            raise ValueError("two keys have the same id")
        if self.oidc is not None and self.mode != "keys":
            raise ValueError('oidc needs mode = "keys"')
        return self


class TlsConfig(Part):
    """TLS on our own port (`[tls]`). Off where no certificate is named; SIGHUP reads them again."""

    certificate: Path | None = Field(default=None, description="file of our certificate's chain")
    key: Path | None = Field(default=None, description="file of its key; else it is in the former")
    client_ca: Path | None = Field(
        default=None, description="file of authorities; clients then need a certificate of theirs"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> TlsConfig:
        if self.certificate is None and (self.key is not None or self.client_ca is not None):
            raise ValueError("key and client_ca need a certificate")
        return self
