"""API keys: `ask_<id>_<secret>`. We keep the id and a hash; the secret is the client's alone.

The secret has 256 random bits, so one round of SHA-256 is as good as a slow hash: there is nothing
to guess, and a check takes microseconds. Old and new keys of a tenant are valid side by side.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agentsched.config_access import KeyConfig
from agentsched.model import TenantId
from agentsched.proxy.access.principal import Principal, scopes_of

PREFIX: Final = "ask_"
_ID_SIGNS: Final = string.ascii_lowercase + "234567"
_ID_LENGTH: Final = 12
_SECRET_SIGNS: Final = string.ascii_letters + string.digits
#: 43 signs of 62: 256 bits.
_SECRET_LENGTH: Final = 43
_LENGTH: Final = len(PREFIX) + _ID_LENGTH + 1 + _SECRET_LENGTH

#: A key of ours, wherever it stands.
KEY: Final = re.compile(r"ask_[a-z2-7]{12}_[0-9A-Za-z]{43}")
#: Compared with where an id is unknown, so that this takes as long.
_NOBODYS: Final = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as we know it. Times are seconds since 1970."""

    id: str
    hash: bytes
    tenant: str
    scopes: tuple[str, ...]
    name: str = ""
    expires_at: float | None = None

    def principal(self) -> Principal:
        """Whom it stands for."""
        return Principal(
            name=f"key {self.id}",
            scopes=scopes_of(self.scopes),
            tenant=TenantId(self.tenant),
            uses_header=True,
            key=self.id,
        )


@dataclass(frozen=True, slots=True)
class _Held:
    hash: bytes
    expires_at: float | None
    principal: Principal


def new_key() -> tuple[str, str]:
    """A new key's id, and the key."""
    key = "".join(secrets.choice(_ID_SIGNS) for _ in range(_ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_SIGNS) for _ in range(_SECRET_LENGTH))
    return key, f"{PREFIX}{key}_{secret}"


def hash_key(token: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def id_of(token: str) -> str | None:
    """The id in a key; None: this is no key of ours."""
    if len(token) != _LENGTH or not token.startswith(PREFIX) or token[16] != "_":
        return None
    return token[4:16]


def from_config(keys: Iterable[KeyConfig]) -> dict[str, KeyRecord]:
    """The keys of the configuration by id."""
    return {
        key.id: KeyRecord(
            id=key.id,
            hash=bytes.fromhex(key.hash.removeprefix("sha256:")),
            tenant=key.tenant,
            scopes=key.scopes,
            name=key.name,
            expires_at=None if key.expires_at is None else key.expires_at.timestamp(),
        )
        for key in keys
    }


class KeyRing:
    """The keys that are valid, by id: those of the configuration, and those of the store."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._configured: dict[str, _Held] = {}
        self._stored: dict[str, _Held] = {}
        #: Ids of stored keys that were used since somebody last asked; at most as many as keys.
        self._used: set[str] = set()
        #: Is told of keys that were taken away, before anything else happens.
        self.on_revoked: Callable[[frozenset[str]], None] = lambda ids: None

    def __len__(self) -> int:
        return len(self._configured.keys() | self._stored.keys())

    def configure(self, records: Mapping[str, KeyRecord]) -> None:
        """Take over the configuration's keys."""
        before = self._all()
        self._configured = _held(records)
        self._tell(before)

    def store(self, records: Mapping[str, KeyRecord]) -> None:
        """Take over the store's keys; a configured one of the same id goes before."""
        before = self._all()
        self._stored = _held(records)
        self._tell(before)

    def find(self, token: str, *, now: float) -> Principal | None:
        """Whom a key stands for; None for one that is unknown, wrong, expired or revoked.

        Says nothing of which of these by how long it takes.
        """
        key = id_of(token)
        if key is None:
            return None
        held = self._configured.get(key) or self._stored.get(key)
        is_right = hmac.compare_digest(hash_key(token), held.hash if held else _NOBODYS)
        if held is None or not is_right or _is_over(held, now):
            return None
        if key in self._stored:
            self._used.add(key)
        return held.principal

    def by_id(self, key: str, *, now: float) -> Principal | None:
        """Whom a key stands for now, for a session that was opened with it."""
        held = self._configured.get(key) or self._stored.get(key)
        return None if held is None or _is_over(held, now) else held.principal

    def still_lets_in(self, principal: Principal, *, now: float) -> bool:
        """Whether the key by which somebody came in would let it in now, to all that it could."""
        if not principal.key:
            return True
        found = self.by_id(principal.key, now=now)
        return found is not None and _is_no_less(found, principal)

    def take_used(self) -> frozenset[str]:
        """Stored keys that were used since this was last asked."""
        used, self._used = frozenset(self._used), set()
        return used

    def _all(self) -> dict[str, _Held]:
        return {**self._stored, **self._configured}

    def _tell(self, before: Mapping[str, _Held]) -> None:
        """Say which keys were taken away. Not those that are over in time, as after a rotation:
        what was begun while they counted may end.
        """
        after, now = self._all(), self._now()
        revoked = frozenset(
            key
            for key, old in before.items()
            if not _is_over(old, now) and _is_taken_away(old, after.get(key))
        )
        if revoked:
            self.on_revoked(revoked)


def _is_taken_away(old: _Held, new: _Held | None) -> bool:
    if new is None or new.hash != old.hash:
        return True
    return not _is_no_less(new.principal, old.principal)


def _is_no_less(now: Principal, before: Principal) -> bool:
    """Whether a key that was changed is the same tenant's, and for all that it was for."""
    return now.tenant == before.tenant and now.scopes >= before.scopes


def _is_over(held: _Held, now: float) -> bool:
    return held.expires_at is not None and now >= held.expires_at


def _held(records: Mapping[str, KeyRecord]) -> dict[str, _Held]:
    return {
        key: _Held(record.hash, record.expires_at, record.principal())
        for key, record in records.items()
    }
