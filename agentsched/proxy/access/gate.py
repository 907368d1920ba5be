"""The gate: says of every request who sent it and whether it may, before its handler runs.

What a request needs is read off the route that the router chose, so that no spelling of a path can
need less than another. A route that nobody thought of needs a key like any other.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from aiohttp import web

from agentsched.config import Config
from agentsched.config_access import AuthConfig
from agentsched.model import TenantId, WireError
from agentsched.proxy.access import principal
from agentsched.proxy.access.keys import KeyRing, from_config, id_of
from agentsched.proxy.access.local import is_local
from agentsched.proxy.access.principal import (
    ANYBODY,
    ANYBODY_WITH_OUR_KEY,
    OPERATOR,
    PRINCIPAL,
    READ,
    Principal,
)
from agentsched.proxy.access.sessions import COOKIE, Session, Sessions, new_id

if TYPE_CHECKING:
    from agentsched.proxy.access.tokens import TokenVerifier

log = logging.getLogger(__name__)

#: Carries a key of ours where `Authorization` is for the engine. Never forwarded.
OWN_HEADER: Final = "x-agentsched-key"
CONTROL: Final = "/agentsched/v1/"
SESSION_PATH: Final = "/agentsched/v1/session"
#: What shows a tenant its own part only, and may be shown to it. All else is the operators'.
_OWN_VIEWS: Final = (
    "programs",
    "programs/{program}",
    "programs/{program}/story",
    "programs/{program}/graph",
    "programs/{program}/timeline",
    "overview",
    "feed",
    "engines",
    "engines/{engine}",
    "tenants",
    "statistics",
    "policies",
    "decisions",
)
#: Paths of the data plane by which engines are changed.
_ENGINE_VERBS: Final = frozenset({"v1/load_lora_adapter", "v1/unload_lora_adapter"})
#: Below it lie the control endpoints of our plugin, at which an engine would take us for whoever
#: asks: the adapter adds the key of the engine.
_PLUGIN: Final = "v1/agentsched"
#: What engines answer out of the request alone.
_STATELESS: Final = frozenset(
    f"v1/{name}"
    for name in (
        "audio/speech",
        "audio/transcriptions",
        "audio/translations",
        "chat/completions/render",
        "classify",
        "completions/render",
        "images/edits",
        "images/generations",
        "moderations",
        "pooling",
        "rerank",
        "score",
    )
)
_LOOKS: Final = frozenset({"GET", "HEAD"})
_ASKS: Final = frozenset({"GET", "HEAD", "POST"})


class Need(Enum):
    """What a request must be allowed to; one of the scopes is enough."""

    NOTHING = frozenset[str]()
    DATA = frozenset({principal.DATA})
    #: What becomes of requests of one's own.
    OWN = frozenset({principal.DATA, principal.ADMIN})
    READ = frozenset({principal.READ})
    ADMIN = frozenset({principal.ADMIN})
    METRICS = frozenset({principal.METRICS})
    #: Any key: nobody else learns which paths there are.
    KNOWN = frozenset({"known"})

    @property
    def is_control(self) -> bool:
        """Whether it is the control plane's, which is never open to other machines."""
        return self in (Need.OWN, Need.READ, Need.ADMIN)


_EXACT: Final = {
    "/healthz": Need.NOTHING,
    "/readyz": Need.NOTHING,
    "/metrics": Need.METRICS,
    SESSION_PATH: Need.NOTHING,  # it looks for itself
    **dict.fromkeys((CONTROL + path for path in _OWN_VIEWS), Need.READ),
    CONTROL + "tools": Need.DATA,
    CONTROL + "plan{path}": Need.OWN,
    CONTROL + "programs/{program}/release": Need.OWN,
}


def need_of(request: web.Request, *, is_open: bool) -> Need:
    """What a request needs, by the route that was chosen for it."""
    resource = request.match_info.route.resource
    if resource is None:
        return Need.KNOWN
    path = resource.canonical
    exact = _EXACT.get(path)
    if exact is not None and (exact is not Need.READ or request.method in _LOOKS):
        return exact
    if path.startswith(CONTROL):
        return Need.ADMIN
    if path.startswith("/agentsched"):
        # Pages and what they are made of: no secrets, and nothing that changes anything.
        return Need.NOTHING if request.method in _LOOKS else Need.ADMIN
    if path == "/v1/{tail}":
        return _need_of_relay(request, is_open=is_open)
    return Need.DATA


def _need_of_relay(request: web.Request, *, is_open: bool) -> Need:
    """What a path needs that we relay without knowing it.

    Engines keep files, batches and the like for all alike: with keys, a tenant gets no further than
    to what leaves nothing behind.
    """
    path = request.path.strip("/").lower()
    if path in _ENGINE_VERBS or path.startswith(_PLUGIN):
        return Need.ADMIN
    is_known = path in _STATELESS if request.method == "POST" else path.startswith("v1/models/")
    return Need.DATA if is_open or (is_known and request.method in _ASKS) else Need.ADMIN


class Gate:
    """Knows the keys, tokens and sessions of one proxy."""

    def __init__(self, config: Callable[[], Config], *, now: Callable[[], float] = time.time):
        self._config = config
        self._now = now
        self._auth: AuthConfig | None = None
        self.ring = KeyRing(now=now)
        self.tokens: TokenVerifier | None = None
        given = config().identity.secret
        shared = given.get_secret_value().encode() if given else secrets.token_bytes(32)
        self.sessions = Sessions(shared)
        #: Requests that were turned away, by why.
        self.refused: Counter[str] = Counter()

    def enter(self, request: web.Request) -> None:
        """Note who sent the request.

        Raises:
            WireError: 401, nobody known; or 403, somebody who may not.
        """
        config = self.follow()
        need = need_of(request, is_open=config.auth.mode == "open")
        if need is Need.NOTHING:
            return
        found = request[PRINCIPAL] = self._admit(request, need, config)
        if need is Need.ADMIN or (need is Need.OWN and found.is_admin):
            log.info("%s %s by %s", request.method, request.raw_path[:256], found.name)

    def follow(self) -> Config:
        """The configuration that is in force; its keys count from now on."""
        config = self._config()
        if config.auth is not self._auth:
            self._auth = config.auth
            self.ring.configure(from_config(config.auth.keys))
        return config

    def check(self, principal: Principal) -> None:
        """See whether somebody who was let in still may: a long body may come for minutes.

        Raises:
            WireError: 401.
        """
        if not self.ring.still_lets_in(principal, now=self._now()):
            self.refused["unknown"] += 1
            raise _no_key()

    def _admit(self, request: web.Request, need: Need, config: Config) -> Principal:
        is_open = config.auth.mode == "open"
        if is_open and not need.is_control and not _is_engine_verb(need, request):
            return self._anybody(request, config)
        found = self.known(request, config)
        if found is None and is_open and config.admin_key is None and is_local(request):
            # Known by its address: whatever key came with the request is not for us.
            found = replace(OPERATOR, uses_header=False)
        if found is None:
            raise self._unknown(request, need, config)
        if need is not Need.KNOWN and not need.value & found.scopes:
            self.refused["scope"] += 1
            raise WireError(
                f"This key may not do that; it needs the scope {' or '.join(sorted(need.value))}.",
                status=403,
                code="forbidden",
            )
        return found

    def _anybody(self, request: web.Request, config: Config) -> Principal:
        """Whoever it is; but a key of ours in the header is not for engines."""
        if config.admin_key is not None or len(self.ring):
            token, is_theirs = _credential(request.headers)
            if is_theirs and (_is_admin_key(token, config) or id_of(token) is not None):
                return ANYBODY_WITH_OUR_KEY
        return ANYBODY

    def known(self, request: web.Request, config: Config) -> Principal | None:
        """Whose key, token or session came with a request; None: nobody's that counts."""
        token, uses_header = _credential(request.headers)
        if token:
            found = self.of_token(token, config)
            if found is None or uses_header:
                return found
            return replace(found, uses_header=False)
        if not request.path.startswith("/agentsched/"):
            return None
        session = self.session(request)
        return self._of_session(session, request, config) if session is not None else None

    def of_token(self, token: str, config: Config) -> Principal | None:
        """Whom a key or token stands for."""
        now = self._now()
        found = self.ring.find(token, now=now)
        if found is None and self.tokens is not None and token.count(".") == 2:
            found = self.tokens.verify(token, now=now)
        if found is None and _is_admin_key(token, config):
            found = OPERATOR
        return found

    def of_client(self, request: web.Request, config: Config) -> Principal | None:
        """Whose key came with a request beside one in our own header; None: nobody's."""
        token = _clients_credential(request.headers)
        return self.of_token(token, config) if token else None

    # -- sessions --------------------------------------------------------------------------------

    def open_session(self, token: str, config: Config) -> tuple[Session, str] | None:
        """Log in with a key or token; the session and its cookie, or None."""
        opener = self.of_token(token, config)
        if opener is None or READ not in opener.scopes:
            return None
        until = self._now() + config.auth.session_timeout / 1e9
        # An admin key may look like a key or a token, and is neither.
        is_admin_key = opener is OPERATOR
        if self.tokens is not None and token.count(".") == 2 and not is_admin_key:
            until = min(until, self.tokens.ends_at(token))
        session = Session(
            id=new_id(),
            until=until,
            name=opener.name,
            scopes=tuple(sorted(opener.scopes)),
            tenant=opener.tenant,
            key="" if is_admin_key else id_of(token) or "",
            mark=self.sessions.mark(token) if is_admin_key else "",
        )
        return session, self.sessions.issue(session)

    def session(self, request: web.Request) -> Session | None:
        """The session whose cookie came with a request."""
        cookie = request.cookies.get(COOKIE)
        return self.sessions.read(cookie, now=self._now()) if cookie else None

    def _of_session(
        self, session: Session, request: web.Request, config: Config
    ) -> Principal | None:
        """Whom a session stands for, while what it was opened with still counts."""
        if not self.sessions.may_change(request, session):
            self.refused["csrf"] += 1
            raise WireError(
                "A page that changes anything sends its session's token.", status=403, code="csrf"
            )
        if session.key:
            return self.ring.by_id(session.key, now=self._now())
        if session.mark:
            key = config.admin_key
            is_same = key is not None and session.mark == self.sessions.mark(key.get_secret_value())
            return OPERATOR if is_same else None
        if self.tokens is None or session.tenant is None:
            return None
        return Principal(
            name=session.name, scopes=frozenset(session.scopes), tenant=TenantId(session.tenant)
        )

    def _unknown(self, request: web.Request, need: Need, config: Config) -> WireError:
        self.refused["unknown"] += 1
        if not need.is_control:
            return _no_key()
        if config.auth.mode == "open" and config.admin_key is None and not len(self.ring):
            text = "Without an admin key the control plane is for clients on this machine only."
            return WireError(text, status=403, code="forbidden")
        return WireError(
            "The control plane needs the admin key, or an API key, as a bearer token.",
            status=401,
            code="unauthorized",
        )


def _no_key() -> WireError:
    return WireError(
        "The API key is missing, wrong, expired or revoked.", status=401, code="invalid_api_key"
    )


def _is_engine_verb(need: Need, request: web.Request) -> bool:
    return need is Need.ADMIN and not request.path.startswith("/agentsched")


def _credential(headers: Mapping[str, str]) -> tuple[str, bool]:
    """The key or token of a request, and whether it came in a header that engines have, too."""
    own = headers.get(OWN_HEADER)
    if own:
        return own.strip(), False
    return _clients_credential(headers), True


def _clients_credential(headers: Mapping[str, str]) -> str:
    said = headers.get("Authorization")
    if said and said[:7].lower() == "bearer ":
        return said[7:].strip()
    return headers.get("x-api-key", "").strip()


def _is_admin_key(token: str, config: Config) -> bool:
    # No key is nobody's: an empty one must not match, whatever the configuration says.
    if config.admin_key is None or not token:
        return False
    wanted = config.admin_key.get_secret_value().encode()
    return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), wanted)
