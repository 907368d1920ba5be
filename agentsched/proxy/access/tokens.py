"""Tokens of an identity provider (JWT): checked with public keys that are fetched beside the path.

What is pinned, whatever a token says of itself: the algorithms, the issuer, the audience, and that
it expires. The header's `jku`, `jwk` and `x5u` are never looked at. A request never waits for
the provider: a token under an unknown key is refused, and its key is looked for meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import aiohttp
import jwt
import msgspec

from agentsched.config_access import OidcConfig
from agentsched.model import AgentschedError, TenantId, in_seconds
from agentsched.proxy.access.principal import Principal, scopes_of

log = logging.getLogger(__name__)

_TOKEN_CHARS_MAX: Final = 16_384
#: Tokens that were found good, each by its hash; the least used is forgotten.
_KNOWN_MAX: Final = 4_096
_KEYS_MAX: Final = 64
#: Of keys that fit a token which does not say its key's name (RFC 7515, 4.1.4: it need not): the
#: one in use, and those beside it in a rotation. Each costs a signature for who sends us noise.
_FITTING_MAX: Final = 4
_DOCUMENT_BYTES_MAX: Final = 1 << 20
#: Between two fetches for tokens under unknown keys, which anybody may make up.
_HURRY_S: Final = 10.0
_TENANT_CHARS_MAX: Final = 64
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
#: What a key may be used for, by its kind and curve, as far as it does not say itself for which one
#: it is. A secret key has no place here, so no token is ever checked with one.
_FITTING: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}

#: The public keys of one name, by the algorithm that they are used with. Mostly it is one key.
_Keys = dict[str, tuple[jwt.PyJWK, ...]]


class ProviderError(AgentschedError):
    """The identity provider cannot be asked, or what it says is not what it should."""


class TokenVerifier:
    """Checks tokens of one provider; `keep_keys` runs beside it."""

    def __init__(self, config: OidcConfig) -> None:
        self.config = config
        self._keys: dict[str, _Keys] = {}
        #: Whether it was said that too many keys fit tokens without a key's name.
        self._is_told = False
        #: When a token that was found good is over, and whom it stands for.
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._wanted = asyncio.Event()
        self.fetched_total = 0
        #: Set with each fetch that brought keys.
        self.fetched = asyncio.Event()

    def verify(self, token: str, *, now: float) -> Principal | None:
        """Whom a token stands for; None: it is not good, or its key is not known yet."""
        if len(token) > _TOKEN_CHARS_MAX or not token.isascii():
            return None
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None:
            if now < known[0]:
                self._known.move_to_end(digest)
                return known[1]
            del self._known[digest]
        claims = self._claims(token)
        if claims is None:
            return None
        principal = self._principal(claims)
        if principal is not None:
            self._known[digest] = float(claims["exp"]) + self._leeway_s, principal
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        return principal

    def ends_at(self, token: str) -> float:
        """When a token that was found good is over; 0 where it was not."""
        known = self._known.get(hashlib.sha256(token.encode()).digest())
        return 0.0 if known is None else known[0]

    @property
    def _leeway_s(self) -> float:
        return in_seconds(self.config.leeway)

    def _claims(self, token: str) -> dict[str, Any] | None:
        try:
            header = jwt.get_unverified_header(token)
            algorithm = str(header.get("alg"))
            name = str(header.get("kid", ""))
            for key in self._fitting(name, algorithm):
                try:
                    return self._signed_claims(token, key, algorithm)
                except jwt.InvalidSignatureError:
                    # A forger's; or the provider has another key under this name by now.
                    self._wanted.set()
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            log.debug("a token is refused: %s", type(error).__name__)
        return None

    def _fitting(self, name: str, algorithm: str) -> tuple[jwt.PyJWK, ...]:
        """Keys that a token may be signed with: of this name, or of any where it says none."""
        if algorithm not in self.config.algorithms:
            return ()
        fitting = self._keys.get(name, {}).get(algorithm, ())
        if not name and not fitting:
            fitting = tuple(_all_for(self._keys, algorithm))
        if not fitting and (not name or name not in self._keys):
            self._wanted.set()
        if len(fitting) <= _FITTING_MAX:
            return fitting
        if not self._is_told:
            self._is_told = True
            text = "%s: its tokens name no key (kid) and %d keys fit: they are refused"
            log.warning(text, self.config.issuer, len(fitting))
        return ()

    def _signed_claims(self, token: str, key: jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key=key,
            algorithms=[algorithm],
            audience=self.config.audience,
            issuer=self.config.issuer,
            leeway=self._leeway_s,
            options={"require": ["exp", "iss", "aud"]},
        )
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> Principal | None:
        tenant = _inside(claims, self.config.tenant_claim)
        if not isinstance(tenant, str) or not 0 < len(tenant) <= _TENANT_CHARS_MAX:
            return None
        if not tenant.isascii() or not tenant.isprintable() or tenant.strip() != tenant:
            return None
        said = _inside(claims, self.config.scopes_claim)
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        mapped = self.config.scopes
        granted: list[str] = [mapped[w] for w in words if isinstance(w, str) and w in mapped]
        name = str(claims.get("sub", ""))[:64]
        return Principal(
            name=f"token of {name!r}",
            scopes=scopes_of(granted),
            tenant=TenantId(tenant),
            uses_header=True,
        )

    async def keep_keys(self) -> None:
        """Fetch the provider's keys now, regularly, and soon after one was missing. For ever."""
        while True:
            self._wanted.clear()
            try:
                self._take(await self._fetch())
            except (ProviderError, aiohttp.ClientError, TimeoutError, OSError) as error:
                # Those that we know stay in force: the provider may be away for a while.
                log.warning("%s: its keys cannot be fetched: %s", self.config.issuer, error)
            except Exception:
                # Who fetches no more refuses everybody from the provider's next key on.
                log.exception("a defect while fetching the keys of %s", self.config.issuer)
            await asyncio.sleep(min(_HURRY_S, in_seconds(self.config.refresh_interval)))
            rest = in_seconds(self.config.refresh_interval) - _HURRY_S
            if rest > 0 and self._keys:
                try:
                    await asyncio.wait_for(self._wanted.wait(), rest)
                except TimeoutError:
                    continue

    def _take(self, keys: dict[str, _Keys]) -> None:
        if not all(_has(keys, name, held) for name, held in self._keys.items()):
            # A key is withdrawn for a reason: what it signed is looked at again.
            self._known.clear()
        self._keys = keys
        self.fetched_total += 1
        self.fetched.set()

    async def _fetch(self) -> dict[str, _Keys]:
        timeout = aiohttp.ClientTimeout(total=in_seconds(self.config.timeout))
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
            url = self.config.jwks_url or await self._discover(session)
            return _usable(await _get(session, url), self.config)

    async def _discover(self, session: aiohttp.ClientSession) -> str:
        issuer = self.config.issuer
        found = await _get(session, issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise ProviderError(f"its discovery document is of {found.get('issuer')!r}")
        url = found.get("jwks_uri")
        if not isinstance(url, str) or not url.startswith(("https://", issuer)):
            raise ProviderError("its discovery document names no keys over https")
        return url


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ProviderError(f"{url} answers {response.status}")
        body = b""
        async for chunk in response.content.iter_chunked(65_536):
            body += chunk
            if len(body) > _DOCUMENT_BYTES_MAX:
                raise ProviderError(f"{url} is larger than {_DOCUMENT_BYTES_MAX} bytes")
    try:
        found: dict[str, Any] = msgspec.json.decode(body, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderError(f"{url} is not JSON: {error}") from error
    return found


def _usable(document: Mapping[str, Any], config: OidcConfig) -> dict[str, _Keys]:
    """Keys for signatures, of kinds that are taken, by id."""
    listed = document.get("keys")
    found: dict[str, _Keys] = {}
    count = 0
    for entry in listed if isinstance(listed, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        made = _made(entry, config) if count < _KEYS_MAX else {}
        if made:
            count += 1
            name = str(entry.get("kid", ""))
            # Of two under one name the later counts; keys without a name are all counted.
            held = found.setdefault(name, {})
            for algorithm, key in made.items():
                before = () if name else held.get(algorithm, ())
                held[algorithm] = (*before, key)
    if not found:
        raise ProviderError("it has no key that can be used")
    return found


def _made(entry: dict[str, Any], config: OidcConfig) -> dict[str, jwt.PyJWK]:
    """A key for those of the configured algorithms that it may be used with.

    One that says for which it is, is for that one. Left to itself the library takes an RSA key for
    RS256 alone, which is not what a provider that signs otherwise and does not say so means.
    """
    kind, said = str(entry.get("kty")), entry.get("alg") or ""
    fitting = _FITTING.get((kind, "" if kind == "RSA" else str(entry.get("crv"))), ())
    try:
        return {
            name: jwt.PyJWK(entry, name)
            for name in fitting
            if name in config.algorithms and said in ("", name)
        }
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        log.warning("%s: a key cannot be used: %s", config.issuer, type(error).__name__)
        return {}


def _all_for(keys: Mapping[str, _Keys], algorithm: str) -> Iterator[jwt.PyJWK]:
    for held in keys.values():
        yield from held.get(algorithm, ())


def _has(keys: Mapping[str, _Keys], name: str, held: _Keys) -> bool:
    """Whether all of these are still there under their name, each for what it was for.

    Providers that name no ids replace a key under the same one.
    """
    now = keys.get(name, {})
    return all(
        any(key.key == other.key for other in now.get(algorithm, ()))
        for algorithm, held_keys in held.items()
        for key in held_keys
    )


def _inside(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of this name; else what lies at `a.b.c`."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
