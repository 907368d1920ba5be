"""A prefix cache for each tenant, by a salt that nobody can guess."""

from __future__ import annotations

from msgspec import Raw
from pydantic import SecretStr
from shorthand import arrived, prefix

from agentsched.config import Config, IdentityConfig
from agentsched.model import StepArrived, TenantId
from agentsched.proxy.salting import cache_salt, isolated

A, B = TenantId("a"), TenantId("b")
SALTED = Config(identity=IdentityConfig(cache_salt_key=SecretStr("0123456789abcdef")))


def test_off_unless_there_is_a_key() -> None:
    assert cache_salt(Config(), A) == {}


def test_a_tenant_has_one_salt_and_no_other_tenants() -> None:
    salt = cache_salt(SALTED, A)
    assert salt == cache_salt(SALTED, A)
    assert salt != cache_salt(SALTED, B)
    assert 1 <= len(salt["cache_salt"]) <= 1024


def test_a_clients_own_salt_divides_further() -> None:
    own = cache_salt(SALTED, A, own=Raw(b'"mine"'))
    assert len({own["cache_salt"], cache_salt(SALTED, A)["cache_salt"]}) == 2
    assert own != cache_salt(SALTED, B, own=Raw(b'"mine"'))


def asked(tenant: TenantId) -> StepArrived:
    return arrived("s", tenant=tenant, prefixes=(prefix("x", 9),))


def test_what_is_not_shared_is_not_counted_as_shared() -> None:
    assert isolated(Config(), asked(A)) == asked(A)
    one, two = isolated(SALTED, asked(A)), isolated(SALTED, asked(B))
    assert one.prefixes != two.prefixes
    assert one.prefixes[0].tokens == 9
