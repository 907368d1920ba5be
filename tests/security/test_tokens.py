"""Tokens of an identity provider: real keys, a real issuer on this machine, and forgeries."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from agentsched.config import Config
from agentsched.config_access import OidcConfig
from agentsched.proxy.access import tokens as module
from agentsched.proxy.access.tokens import TokenVerifier

AUDIENCE = "agentsched"


class Issuer:
    """Signs tokens and serves the keys that they are checked with."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: dict[str, Any] = {}
        self.algorithms: dict[str, str] = {}
        #: Keys that are listed without the algorithm that they are for.
        self.unsaid: set[str] = set()
        self.more_keys: list[dict[str, Any]] = []
        self.claimed_issuer = ""
        self.fetches = 0
        self.fetched = asyncio.Event()
        self.is_broken = False

    def add(self, kid: str, algorithm: str = "RS256") -> None:
        is_rsa = algorithm.startswith(("RS", "PS"))
        self.keys[kid] = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if is_rsa
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.algorithms[kid] = algorithm

    def claims(self, **more: Any) -> dict[str, Any]:
        now = int(time.time())
        base = {"iss": self.url, "aud": AUDIENCE, "sub": "someone", "exp": now + 600, "nbf": now}
        claims = base | {"tenant": "red", "scope": "openid agentsched:data"} | more
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, kid: str, **claims: Any) -> str:
        headers = {"kid": kid}
        return jwt.encode(
            self.claims(**claims), self.keys[kid], self.algorithms[kid], headers=headers
        )

    def public(self, kid: str) -> bytes:
        pem: bytes = (
            self.keys[kid]
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        return pem

    def jwks(self) -> dict[str, Any]:
        listed = []
        for kid, key in self.keys.items():
            algorithm = jwt.get_algorithm_by_name(self.algorithms[kid])
            jwk = json.loads(algorithm.to_jwk(key.public_key()))
            said = {} if kid in self.unsaid else {"alg": self.algorithms[kid]}
            listed.append(jwk | {"kid": kid, "use": "sig"} | said)
        return {"keys": listed + self.more_keys}

    async def serve_keys(self, request: web.Request) -> web.Response:
        self.fetches += 1
        self.fetched.set()
        if self.is_broken:
            return web.Response(status=500)
        return web.json_response(self.jwks())

    async def serve_discovery(self, request: web.Request) -> web.Response:
        issuer = self.claimed_issuer or self.url
        return web.json_response({"issuer": issuer, "jwks_uri": f"{self.url}/keys"})


@contextlib.asynccontextmanager
async def running_issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    issuer.add("rsa", "RS256")
    issuer.add("ec", "ES256")
    app = web.Application()
    app.router.add_get("/keys", issuer.serve_keys)
    app.router.add_get("/.well-known/openid-configuration", issuer.serve_discovery)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield issuer
    finally:
        await runner.cleanup()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with running_issuer() as running:
        yield running


@contextlib.asynccontextmanager
async def verifying(issuer: Issuer, **settings: Any) -> AsyncIterator[TokenVerifier]:
    verifier = TokenVerifier(
        OidcConfig.model_validate({"issuer": issuer.url, "audience": AUDIENCE} | settings)
    )
    task = asyncio.create_task(verifier.keep_keys())
    try:
        async with asyncio.timeout(60):
            await verifier.fetched.wait()
        yield verifier
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def oidc(issuer: Issuer, **more: Any) -> dict[str, Any]:
    return {"mode": "keys", "oidc": {"issuer": issuer.url, "audience": AUDIENCE} | more}


class TestThroughTheProxy:
    @pytest.mark.parametrize("kid", ["rsa", "ec"])
    async def test_a_good_token(self, start: Any, upstream: Any, issuer: Issuer, kid: str) -> None:
        async with start(upstream.url, auth=oidc(issuer)) as proxy:
            headers = {"Authorization": f"Bearer {issuer.token(kid)}"}
            for _ in range(2):  # the second is known already
                assert (await proxy.chat(headers=headers)).status_code == 200
            assert list(proxy.scheduler.tenants) == ["red"]
            assert all("authorization" not in e.headers for e in upstream.exchanges)
            assert (await proxy.chat()).status_code == 401
            looked = await proxy.client.get("/agentsched/v1/programs", headers=headers)
            assert looked.status_code == 403

    async def test_a_token_stays_here_where_work_is_shared(
        self, start: Any, upstream: Any, issuer: Issuer
    ) -> None:
        async with start(upstream.url, auth=oidc(issuer)) as proxy:
            token = issuer.token("rsa")
            for headers in ({}, {"Idempotency-Key": "a"}, {"x-request-id": "b"}):
                headers = headers | {"Authorization": f"Bearer {token}"}
                assert (await proxy.chat(headers=headers)).status_code == 200
            assert list(proxy.scheduler.tenants) == ["red"]
        assert upstream.exchanges
        assert all(token not in str(e.pairs) for e in upstream.exchanges)

    async def test_claims_become_tenant_and_scopes(
        self, start: Any, upstream: Any, issuer: Issuer
    ) -> None:
        rules = {
            "tenant_claim": "org.name",
            "scopes_claim": "roles",
            "scopes": {"ops": "admin", "dev": "data"},
        }
        async with start(upstream.url, auth=oidc(issuer, **rules)) as proxy:
            claims = {"org": {"name": "blue"}, "roles": ["dev", "ops", "else", 7]}
            headers = {"Authorization": f"Bearer {issuer.token('ec', **claims)}"}
            assert (await proxy.chat(headers=headers)).status_code == 200
            shown = await proxy.client.get("/agentsched/v1/statistics", headers=headers)
            assert "scheduler" in shown.json()
            assert list(proxy.scheduler.tenants) == ["blue"]
            for wrong in ({"org": "blue"}, {"org": {"name": 7}}, {"org": {"name": "a\nb"}}):
                token = issuer.token("ec", roles=["dev"], **wrong)
                answer = await proxy.chat(headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 401

    async def test_a_login_ends_with_its_token(
        self, start: Any, upstream: Any, issuer: Issuer
    ) -> None:
        async with start(upstream.url, auth=oidc(issuer)) as proxy:
            ends = int(time.time()) + 60
            token = issuer.token("rsa", exp=ends, scope="agentsched:read")
            answer = await proxy.client.post("/agentsched/v1/session", json={"key": token})
            assert answer.status_code == 200
            assert int(answer.headers["set-cookie"].split("Max-Age=")[1].split(";")[0]) <= 90
            assert (await proxy.client.get("/agentsched/v1/programs")).status_code == 200

    async def test_a_stream_ends_with_the_key_of_its_token(
        self, start: Any, upstream: Any, issuer: Issuer
    ) -> None:
        """The provider withdraws it: what it signed counts no more, also where it is in use."""
        async with start(upstream.url, auth=oidc(issuer, refresh_interval="10ms")) as proxy:
            headers = {"Authorization": f"Bearer {issuer.token('rsa', scope='agentsched:read')}"}
            feed = proxy.client.stream("GET", "/agentsched/v1/feed", headers=headers)
            async with feed as response, asyncio.timeout(60):
                lines = response.aiter_lines()
                assert await anext(lines) == "event: frame"
                del issuer.keys["rsa"]
                async for _ in lines:
                    pass


def unsigned(claims: dict[str, Any], header: dict[str, Any]) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(claims)}."


class TestForgeries:
    @pytest.mark.parametrize(
        "claims",
        [
            {"iss": "https://evil.example"},
            {"iss": None},
            {"aud": "another"},
            {"aud": None},
            {"exp": 1},
            {"exp": None},
            {"exp": "never"},
            {"exp": math.inf},
            {"nbf": math.inf},
            {"nbf": 4_000_000_000},
            {"tenant": None},
            {"tenant": ""},
            {"tenant": "x" * 65},
        ],
    )
    async def test_claims(self, issuer: Issuer, claims: dict[str, Any]) -> None:
        async with verifying(issuer) as verifier:
            assert verifier.verify(issuer.token("rsa"), now=time.time()) is not None
            token = (
                issuer.token("rsa", **claims)
                if claims != {"exp": "never"}
                else unsigned(issuer.claims(**claims), {"alg": "RS256", "kid": "rsa"})
            )
            assert verifier.verify(token, now=time.time()) is None

    async def test_algorithms(self, issuer: Issuer) -> None:
        claims = issuer.claims()
        secret = issuer.public("rsa")
        confused = _hmac_token(claims, secret, kid="rsa")
        async with verifying(issuer) as verifier:
            for token in (
                unsigned(claims, {"alg": "none", "kid": "rsa"}),
                unsigned(claims, {"alg": "None", "kid": "rsa"}),
                unsigned(claims, {"alg": "RS256", "kid": "rsa"}),
                confused,
                jwt.encode(claims, issuer.keys["rsa"], "RS512", headers={"kid": "rsa"}),
                jwt.encode(claims, issuer.keys["ec"], "ES256", headers={"kid": "rsa"}),
                jwt.encode(claims, issuer.keys["rsa"], "RS256", headers={"kid": "ec"}),
            ):
                assert verifier.verify(token, now=time.time()) is None, token

    async def test_keys_of_the_forgers_own(self, issuer: Issuer) -> None:
        mine = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwk = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(mine.public_key()))
        fetches = issuer.fetches
        async with verifying(issuer) as verifier:
            for headers in (
                {"kid": "rsa"},
                {"kid": "rsa", "jwk": jwk},
                {"kid": "rsa", "jku": f"{issuer.url}/evil"},
                {"kid": "../../etc/passwd"},
                {"kid": ""},
                {},
            ):
                token = jwt.encode(issuer.claims(), mine, "RS256", headers=headers)
                assert verifier.verify(token, now=time.time()) is None
            assert issuer.fetches == fetches + 1  # no header makes us ask anybody

    @pytest.mark.parametrize(
        "token",
        [
            "..",
            "a.b.c",
            "é.é.é",
            "." * 3,
            "e30.e30.",
            "x" * 20_000 + "..",
            "eyJhbGciOiJSUzI1NiJ9..",
        ],
    )
    async def test_noise(self, issuer: Issuer, token: str) -> None:
        async with verifying(issuer) as verifier:
            assert verifier.verify(token, now=time.time()) is None

    async def test_deep_nesting(self, issuer: Issuer) -> None:
        header = base64.urlsafe_b64encode(b"[" * 9_000).rstrip(b"=").decode()
        async with verifying(issuer) as verifier:
            assert verifier.verify(f"{header}.e30.x", now=time.time()) is None

    async def test_one_that_is_known_still_ends(self, issuer: Issuer) -> None:
        async with verifying(issuer, leeway="1s") as verifier:
            ends = int(time.time()) + 60
            token = issuer.token("rsa", exp=ends)
            assert verifier.verify(token, now=time.time()) is not None
            assert verifier.verify(token, now=ends + 0.9) is not None
            assert verifier.ends_at(token) == ends + 1
            verifier._keys = {}
            assert verifier.verify(token, now=ends + 1.0) is None

    async def test_known_ones_are_bounded(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_KNOWN_MAX", 2)
        async with verifying(issuer) as verifier:
            for number in range(4):
                verifier.verify(issuer.token("ec", jti=str(number)), now=time.time())
            assert len(verifier._known) == 2


def _hmac_token(claims: dict[str, Any], secret: bytes, *, kid: str) -> str:
    """HS256 with the public key as its secret; PyJWT would not make it."""
    import hashlib
    import hmac

    head = unsigned(claims, {"alg": "HS256", "kid": kid, "typ": "JWT"})[:-1]
    signature = hmac.new(secret, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


class TestKeys:
    async def test_rotation(self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_HURRY_S", 0.01)
        async with verifying(issuer, refresh_interval="1h") as verifier:
            old = issuer.token("rsa")
            assert verifier.verify(old, now=time.time()) is not None
            del issuer.keys["rsa"]
            issuer.add("next", "RS256")
            new = issuer.token("next")
            deadline = time.monotonic() + 60
            while verifier.verify(new, now=time.time()) is None:  # asking is what fetches it
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            # Its key was withdrawn, so what it signed counts no more, known or not.
            assert verifier.verify(old, now=time.time()) is None

    async def test_a_key_replaced_under_its_own_name(self, issuer: Issuer) -> None:
        async with verifying(issuer, refresh_interval="10ms") as verifier:
            old = issuer.token("rsa")
            assert verifier.verify(old, now=time.time()) is not None
            issuer.add("rsa", "RS256")
            new = issuer.token("rsa", jti="new")
            deadline = time.monotonic() + 60
            while verifier.verify(new, now=time.time()) is None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert verifier.verify(old, now=time.time()) is None

    async def test_one_replaced_under_its_own_name_is_asked_for(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a token of the new one: nobody waits until the next regular look."""
        monkeypatch.setattr(module, "_HURRY_S", 0.01)
        async with verifying(issuer, refresh_interval="1h") as verifier:
            issuer.add("rsa", "RS256")
            new = issuer.token("rsa")
            deadline = time.monotonic() + 60
            while verifier.verify(new, now=time.time()) is None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    @pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
    async def test_one_that_does_not_say_what_it_is_for(
        self, issuer: Issuer, algorithm: str
    ) -> None:
        """As many providers list theirs: it is for what the configuration takes, of its kind."""
        issuer.add("plain", algorithm)
        issuer.unsaid = {"plain", "ec"}
        claims, key = issuer.claims(), issuer.keys["plain"]
        async with verifying(issuer, algorithms=["RS256", "ES256", algorithm]) as verifier:
            assert verifier.verify(issuer.token("ec"), now=time.time()) is not None
            for name in ("RS256", algorithm):
                token = jwt.encode(claims, key, name, headers={"kid": "plain"})
                assert verifier.verify(token, now=time.time()) is not None, name
            for name in {"RS384", "RS512", "PS256", "PS384", "PS512"} - {algorithm}:
                token = jwt.encode(claims, key, name, headers={"kid": "plain"})
                assert verifier.verify(token, now=time.time()) is None, name
            for token in (
                _hmac_token(claims, issuer.public("plain"), kid="plain"),
                unsigned(claims, {"alg": "none", "kid": "plain"}),
                unsigned(claims, {"alg": [algorithm], "kid": "plain"}),
                # This one says that it is for RS256.
                jwt.encode(claims, issuer.keys["rsa"], algorithm, headers={"kid": "rsa"}),
            ):
                assert verifier.verify(token, now=time.time()) is None

    async def test_two_of_different_kinds_under_one_name(self, issuer: Issuer) -> None:
        """RFC 7517, 4.5, allows it; a provider without names has but this one."""
        issuer.add("", "RS256")
        del issuer.keys["rsa"]
        [second] = (k for k in issuer.jwks()["keys"] if k["kid"] == "ec")
        issuer.more_keys = [second | {"kid": ""}]
        async with verifying(issuer) as verifier:
            assert verifier.verify(issuer.token(""), now=time.time()) is not None
            other = jwt.encode(issuer.claims(), issuer.keys["ec"], "ES256", headers={"kid": ""})
            assert verifier.verify(other, now=time.time()) is not None

    async def test_a_token_need_not_name_its_key(self, issuer: Issuer) -> None:
        """RFC 7515, 4.1.4: it is optional, and some providers with one key leave it out."""
        mine = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        async with verifying(issuer) as verifier:
            for kid, algorithm in issuer.algorithms.items():
                key = issuer.keys[kid]
                for headers in ({}, {"kid": ""}):
                    token = jwt.encode(issuer.claims(), key, algorithm, headers=headers)
                    found = verifier.verify(token, now=time.time())
                    assert found is not None, (kid, headers)
                    assert found.tenant == "red"
            claims = issuer.claims()
            for token in (
                jwt.encode(claims, mine, "RS256"),
                jwt.encode(claims, issuer.keys["rsa"], "RS512"),
                jwt.encode(issuer.claims(exp=1), issuer.keys["rsa"], "RS256"),
                jwt.encode(issuer.claims(aud="another"), issuer.keys["rsa"], "RS256"),
                unsigned(claims, {"alg": "none"}),
                unsigned(claims, {"alg": "RS256"}),
                # A name that is not listed is not no name.
                jwt.encode(claims, issuer.keys["rsa"], "RS256", headers={"kid": "other"}),
            ):
                assert verifier.verify(token, now=time.time()) is None, token

    @pytest.mark.parametrize("is_named", [True, False], ids=["listed by name", "without names"])
    async def test_a_rotation_without_names(self, issuer: Issuer, is_named: bool) -> None:
        """The key before and the key after it are listed together; tokens of both are out."""
        issuer.add("next", "RS256")
        if not is_named:
            listed = issuer.jwks()["keys"]
            issuer.more_keys = [{n: v for n, v in k.items() if n != "kid"} for k in listed]
        old, new = (jwt.encode(issuer.claims(), issuer.keys[k], "RS256") for k in ("rsa", "next"))
        if not is_named:
            issuer.keys.clear()
        async with verifying(issuer, refresh_interval="10ms") as verifier:
            assert verifier.verify(old, now=time.time()) is not None
            assert verifier.verify(new, now=time.time()) is not None
            issuer.keys.pop("rsa", None)
            issuer.more_keys = issuer.more_keys[1:]
            for _ in range(2):  # one may be under way
                verifier.fetched.clear()
                async with asyncio.timeout(60):
                    await verifier.fetched.wait()
            assert verifier.verify(old, now=time.time()) is None
            assert verifier.verify(new, now=time.time()) is not None

    async def test_too_many_keys_for_a_token_without_a_name(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each signature costs; whoever runs the provider can have it name its keys."""
        for number in range(4):
            issuer.keys[str(number)], issuer.algorithms[str(number)] = issuer.keys["ec"], "ES256"
        async with verifying(issuer) as verifier:
            token = jwt.encode(issuer.claims(), issuer.keys["ec"], "ES256")
            for _ in range(2):
                assert verifier.verify(token, now=time.time()) is None
            assert verifier.verify(issuer.token("ec"), now=time.time()) is not None
            assert verifier.verify(jwt.encode(issuer.claims(), issuer.keys["rsa"], "RS256"), now=1)
        assert caplog.text.count("name no key (kid) and 5 keys fit") == 1

    async def test_a_defect_in_a_fetch_is_not_the_last_of_them(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(TokenVerifier):
            fetches = 0

            async def _fetch(self) -> Any:
                self.fetches += 1
                if self.fetches == 1:
                    raise RuntimeError("nobody thought of it")
                return await super()._fetch()

        said = {"issuer": issuer.url, "audience": AUDIENCE, "refresh_interval": "10ms"}
        verifier = Broken(OidcConfig.model_validate(said))
        task = asyncio.create_task(verifier.keep_keys())
        fetched = asyncio.ensure_future(verifier.fetched.wait())
        await asyncio.wait((task, fetched), timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert not task.done()
        task.cancel()
        assert verifier.verify(issuer.token("rsa"), now=time.time()) is not None
        assert "a defect while fetching" in caplog.text

    async def test_unknown_keys_do_not_make_us_ask_at_once(self, issuer: Issuer) -> None:
        async with verifying(issuer) as verifier:
            stranger = Issuer()
            stranger.url = issuer.url
            for number in range(50):
                stranger.keys, stranger.algorithms = {str(number): issuer.keys["ec"]}, {}
                stranger.algorithms[str(number)] = "ES256"
                assert verifier.verify(stranger.token(str(number)), now=time.time()) is None
                await asyncio.sleep(0)
            assert issuer.fetches == 1

    async def test_a_provider_that_is_away_changes_nothing(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with verifying(issuer, refresh_interval="10ms") as verifier:
            issuer.is_broken = True
            issuer.fetched.clear()
            await issuer.fetched.wait()
            issuer.fetched.clear()
            await issuer.fetched.wait()
            assert verifier.verify(issuer.token("rsa"), now=time.time()) is not None

    async def test_what_is_no_key_of_ours(self, issuer: Issuer) -> None:
        secret = base64.urlsafe_b64encode(b"secret").decode()
        issuer.more_keys = [
            {"kty": "oct", "kid": "oct", "k": secret, "alg": "HS256"},
            {"kty": "RSA", "kid": "broken", "n": "?", "e": "?"},
            {"kty": "RSA", "kid": "enc", "use": "enc"},
            {"kty": "RSA", "kid": "unsigned", "alg": "none", "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "hmac", "alg": "HS256", "k": secret},
            {"kty": "EC", "kid": "odd", "crv": ["P-256"], "alg": {}},
            {"kty": ["RSA"], "kid": "listed"},
            "nothing",  # type: ignore[list-item]
        ]
        async with verifying(issuer) as verifier:
            assert set(verifier._keys) == {"rsa", "ec"}
            token = jwt.encode(issuer.claims(), b"secret" * 8, "HS256", headers={"kid": "oct"})
            assert verifier.verify(token, now=time.time()) is None

    async def test_a_discovery_document_of_another(self, issuer: Issuer) -> None:
        issuer.claimed_issuer = "https://evil.example"
        verifier = TokenVerifier(
            OidcConfig.model_validate({"issuer": issuer.url, "audience": AUDIENCE})
        )
        with pytest.raises(module.ProviderError, match=r"evil\.example"):
            await verifier._fetch()


class TestConfiguration:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"issuer": "http://id.example"},
            {"issuer": "file:///etc/passwd"},
            {"jwks_url": "http://id.example/keys"},
            {"algorithms": ["none"]},
            {"algorithms": ["HS256"]},
            {"algorithms": []},
            {"audience": ""},
        ],
    )
    def test_what_is_refused(self, wrong: dict[str, Any]) -> None:
        good: dict[str, Any] = {"issuer": "https://id.example", "audience": "a"}
        OidcConfig.model_validate(good)
        with pytest.raises(ValidationError):
            OidcConfig.model_validate(good | wrong)

    def test_needs_keys_to_be_asked_for(self) -> None:
        oidc = {"issuer": "https://id.example", "audience": "a"}
        with pytest.raises(ValidationError, match="mode"):
            Config.model_validate({"auth": {"oidc": oidc}})
