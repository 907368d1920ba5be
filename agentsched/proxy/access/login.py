"""`/agentsched/v1/session`: log in with a key, see who one is, log out. For the dashboard.

`POST` with `{"key": "..."}` sets the cookie; `GET` tells who asks and the token that goes with
changes (`x-agentsched-csrf`); `DELETE` ends the session. On this machine, without an admin key, no
login is needed and `GET` says so.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec
from aiohttp import web

from agentsched.model import WireError, in_seconds
from agentsched.proxy.access.gate import CONTROL, SESSION_PATH, Gate
from agentsched.proxy.access.local import is_local, is_own_page
from agentsched.proxy.access.principal import OPERATOR, READ, Principal
from agentsched.proxy.access.sessions import COOKIE, Session
from agentsched.proxy.gateway import Gateway

_BODY_BYTES_MAX: Final = 16_384


class _Login(msgspec.Struct, forbid_unknown_fields=True):
    key: str


class SessionVerbs:
    """Handlers of logins."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._gate: Gate = gateway.gate

    def routes(self) -> list[web.RouteDef]:
        """The table of routes."""
        return [
            web.get(SESSION_PATH, self._show),
            web.post(SESSION_PATH, self._open),
            web.delete(SESSION_PATH, self._close),
        ]

    async def _open(self, request: web.Request) -> web.Response:
        # Otherwise another site could log a browser in under a name of its own.
        if not is_own_page(request):
            raise WireError("Logins come from our own pages.", status=403, code="csrf")
        body = await _read(request, in_seconds(self._gateway.config.http.body_timeout))
        try:
            given = msgspec.json.decode(body, type=_Login)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"not a login: {error}", code="bad_login") from None
        opened = self._gate.open_session(given.key.strip(), self._gateway.config)
        if opened is None:
            self._gate.refused["login"] += 1
            text = "This key does not open the dashboard: it is wrong, over, or may not read."
            raise WireError(text, status=401, code="unauthorized")
        session, cookie = opened
        response = _json(self._shown_session(session))
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=max(1, int(session.until - time.time())),
            path=CONTROL.removesuffix("v1/"),
            httponly=True,
            samesite="Strict",
            secure=_is_secure(request),
        )
        return response

    async def _show(self, request: web.Request) -> web.Response:
        config = self._gateway.config
        session = self._gate.session(request)
        principal = self._gate.known(request, config)
        if principal is None and config.auth.mode == "open" and config.admin_key is None:
            principal = OPERATOR if is_local(request) else None
        if principal is None or READ not in principal.scopes:
            # Not a failure: a page asks this to know whether it must show its form.
            return _json({"is_open": False, "name": "", "scopes": [], "tenant": None, "csrf": ""})
        shown = _shown(principal)
        if session is not None:
            shown["csrf"] = self._gate.sessions.csrf(session)
        return _json(shown)

    async def _close(self, request: web.Request) -> web.Response:
        session = self._gate.session(request)
        if session is not None:
            if not self._gate.sessions.may_change(request, session):
                raise WireError("The session's token is missing.", status=403, code="csrf")
            self._gate.sessions.end(session)
        response = _json({"is_open": False})
        response.del_cookie(COOKIE, path=CONTROL.removesuffix("v1/"))
        return response

    def _shown_session(self, session: Session) -> dict[str, Any]:
        return {
            "is_open": True,
            "name": session.name,
            "scopes": list(session.scopes),
            "tenant": session.tenant,
            "csrf": self._gate.sessions.csrf(session),
        }


def _shown(principal: Principal) -> dict[str, Any]:
    return {
        "is_open": True,
        "name": principal.name,
        "scopes": sorted(principal.scopes),
        "tenant": principal.tenant,
        "csrf": "",
    }


async def _read(request: web.Request, timeout_s: float) -> bytes:
    """A small body; nobody has shown a key yet."""
    body = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.content.iter_chunked(_BODY_BYTES_MAX):
                body += chunk
                if len(body) > _BODY_BYTES_MAX:
                    raise WireError("too large for a login", status=413, code="body_too_large")
    except TimeoutError:
        raise WireError("the body did not arrive", status=408, code="body_timeout") from None
    except web.RequestPayloadError:
        raise WireError("the body cannot be read", code="unreadable_body") from None
    return body


def _is_secure(request: web.Request) -> bool:
    """Whether the browser speaks TLS, with us or with the proxy before us."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
