"""Logins of people to the dashboard: a signed cookie that says who, and until when.

The cookie is `HttpOnly` and `SameSite=Strict`; what changes anything needs a token beside it, which
only a page of ours can know. Nothing is kept here but sessions that were ended before their time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from typing import Final

import msgspec
from aiohttp import web

from agentsched.proxy.access.local import is_own_page

COOKIE: Final = "agentsched_session"
CSRF: Final = "x-agentsched-csrf"
#: Longer cookies are none of ours.
_COOKIE_CHARS_MAX: Final = 2_048
#: Sessions that were logged out of and have not expired; the oldest is forgotten.
_ENDED_MAX: Final = 10_000
_SAFE: Final = frozenset({"GET", "HEAD"})


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a cookie says. `key` is the API key's id, `mark` tells one admin key from the next."""

    id: str
    until: float
    name: str
    scopes: tuple[str, ...]
    tenant: str | None = None
    key: str = ""
    mark: str = ""


_DECODER: Final = msgspec.json.Decoder(Session)


class Sessions:
    """Makes cookies and reads them. `secret` is the replicas' in common, or this process's own."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"agentsched session 1", "sha256")
        self._ended: OrderedDict[str, None] = OrderedDict()

    def issue(self, session: Session) -> str:
        """The cookie of a session."""
        body = urlsafe_b64encode(msgspec.json.encode(session)).rstrip(b"=")
        return f"{body.decode()}.{self._signed(b'cookie ', body)}"

    def read(self, cookie: str, *, now: float) -> Session | None:
        """The session of a cookie; None: it is forged, over, or ended."""
        if len(cookie) > _COOKIE_CHARS_MAX or not cookie.isascii():
            return None
        body, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature, self._signed(b"cookie ", body.encode())):
            return None
        try:
            session = _DECODER.decode(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (msgspec.DecodeError, ValueError):
            return None  # of another version
        return None if now >= session.until or session.id in self._ended else session

    def csrf(self, session: Session) -> str:
        """What a page of ours sends with whatever changes anything."""
        return self._signed(b"csrf ", session.id.encode())

    def may_change(self, request: web.BaseRequest, session: Session) -> bool:
        """Whether a page of ours sent this, or it changes nothing."""
        if request.method in _SAFE:
            return True
        given = request.headers.get(CSRF, "").encode("utf-8", "surrogateescape")
        is_right = hmac.compare_digest(given, self.csrf(session).encode())
        return is_right and is_own_page(request)

    def end(self, session: Session) -> None:
        """Log out: the cookie counts no more, here at once, elsewhere when it is over."""
        self._ended[session.id] = None
        if len(self._ended) > _ENDED_MAX:
            self._ended.popitem(last=False)

    def mark(self, secret: str) -> str:
        """Tells a changed admin key from the one a session was opened with."""
        return self._signed(b"mark ", secret.encode())[:16]

    def _signed(self, purpose: bytes, body: bytes) -> str:
        return hmac.new(self._key, purpose + body, hashlib.sha256).hexdigest()


def new_id() -> str:
    """An id of a session that nobody guesses."""
    return secrets.token_hex(16)
