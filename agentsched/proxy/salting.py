"""A prefix cache of its own for each tenant, where the operator wants that: vLLM's `cache_salt`.

Two tenants with one beginning then share no KV, and none can find out by timing what another has
asked. What it costs: every shared prefix is computed and kept once for each tenant. The salt is an
HMAC of the tenant with a secret key, so that nobody can make another's; a salt of the client's own
goes into it and divides the tenant's cache further, as it was meant to.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

from msgspec import Raw

from agentsched.config import Config
from agentsched.model import Prefix, PrefixId, StepArrived, TenantId


def cache_salt(config: Config, tenant: TenantId, *, own: Raw | None = None) -> dict[str, str]:
    """The body field that isolates a tenant; nothing where the operator set no key."""
    key = config.identity.cache_salt_key
    if key is None:
        return {}
    said = b"" if own is None else b"\0" + bytes(own)
    secret = key.get_secret_value().encode()
    mixed = hmac.new(secret, tenant.encode() + said, hashlib.sha256)
    return {"cache_salt": mixed.hexdigest()}


def isolated(config: Config, arrived: StepArrived) -> StepArrived:
    """The step as the scheduler may count it: prefixes of two tenants are not the same KV then."""
    if config.identity.cache_salt_key is None:
        return arrived
    prefixes = tuple(
        Prefix(prefix=PrefixId(f"{arrived.tenant}/{p.prefix}"), tokens=p.tokens)
        for p in arrived.prefixes
    )
    return replace(arrived, prefixes=prefixes)
