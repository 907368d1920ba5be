"""Logins to the dashboard: the cookie, the token beside it, and what browsers are told."""

from __future__ import annotations

import asyncio
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agentsched.config_access import OidcConfig
from agentsched.proxy.access.sessions import COOKIE, CSRF, Session, Sessions, new_id
from agentsched.proxy.access.tokens import TokenVerifier

URL = "/agentsched/v1/session"
ADMIN_KEY = "an-admin-key-of-some-length"
NOW = 1_800_000_000.0


async def login(proxy: Any, key: str, **headers: str) -> httpx.Response:
    proxy.client.cookies.clear()
    answer: httpx.Response = await proxy.client.post(URL, json={"key": key}, headers=headers)
    return answer


def cookie_of(answer: httpx.Response) -> Any:
    return SimpleCookie(answer.headers["set-cookie"])[COOKIE]


class TestLogin:
    async def test_the_cookie_is_strict(self, keyed: Any) -> None:
        answer = await login(keyed, ADMIN_KEY)
        assert answer.status_code == 200
        cookie = cookie_of(answer)
        assert cookie["httponly"] is True
        assert cookie["samesite"] == "Strict"
        assert cookie["path"] == "/agentsched/"
        assert 0 < int(cookie["max-age"]) <= 8 * 3600
        assert ADMIN_KEY not in answer.headers["set-cookie"]
        behind = await login(keyed, ADMIN_KEY, **{"X-Forwarded-Proto": "https"})
        assert cookie_of(behind)["secure"] is True

    async def test_an_empty_key_opens_nothing(self, keyed: Any) -> None:
        """Not even where the admin key is empty, which the configuration refuses."""
        gateway = keyed.gateway
        gateway.follow(gateway.config.model_copy(update={"admin_key": SecretStr("")}))
        for key in ("", " "):
            assert (await login(keyed, key)).status_code == 401

    async def test_bytes_that_are_no_text_are_no_login(self, keyed: Any) -> None:
        for body in (b'{"key": "\xff"}', b"\xd8", b"{"):
            answer = await keyed.client.post(URL, content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_login")

    async def test_it_opens_the_control_plane_and_nothing_else(self, keyed: Any) -> None:
        csrf = (await login(keyed, ADMIN_KEY)).json()["csrf"]
        assert (await keyed.client.get("/agentsched/v1/statistics")).status_code == 200
        assert (await keyed.client.get("/agentsched/v1/feed/..%2f")).status_code in (400, 404)
        assert (await keyed.chat(headers={CSRF: csrf})).status_code == 401
        cookie = {"Cookie": f"{COOKIE}={keyed.client.cookies[COOKIE]}"}
        assert (await keyed.chat(headers=cookie)).status_code == 401

    async def test_an_admin_key_that_looks_like_another(
        self, keyed: Any, new: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as one that `agentsched keys create` made; or one in three parts, as tokens are."""
        gateway = keyed.gateway
        config = OidcConfig.model_validate({"issuer": "https://id.example", "audience": "a"})
        monkeypatch.setattr(gateway.gate, "tokens", TokenVerifier(config))
        for key in (new("ops").token, "one.of-three.parts"):
            update = {"admin_key": SecretStr(key)}
            gateway.follow(gateway.config.model_copy(update=update))
            opened = await login(keyed, key)
            assert opened.status_code == 200
            shown = await keyed.client.get("/agentsched/v1/statistics")
            assert "scheduler" in shown.json(), key
            drain = "/agentsched/v1/engines/e0/drain"
            headers = {CSRF: opened.json()["csrf"]}
            assert (await keyed.client.post(drain, headers=headers)).status_code == 200

    async def test_changes_need_the_token(self, keyed: Any) -> None:
        csrf = (await login(keyed, ADMIN_KEY)).json()["csrf"]
        drain = "/agentsched/v1/engines/e0/drain"
        for headers in ({}, {CSRF: ""}, {CSRF: "0" * 64}, {CSRF: csrf[:-1]}):
            refused = await keyed.client.post(drain, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "csrf")
        for headers in (
            {CSRF: csrf, "Origin": "http://evil.example"},
            {CSRF: csrf, "Sec-Fetch-Site": "cross-site"},
            {CSRF: csrf, "Sec-Fetch-Site": "same-site"},
        ):
            assert (await keyed.client.post(drain, headers=headers)).status_code == 403
        own = {CSRF: csrf, "Origin": keyed.url, "Sec-Fetch-Site": "same-origin"}
        assert (await keyed.client.post(drain, headers=own)).status_code == 200

    async def test_a_proxy_that_puts_its_own_host_is_no_other_site(self, keyed: Any) -> None:
        # nginx does unless it is told otherwise; the browser saw one site all the same.
        seen = {"Origin": "https://agents.example", "Sec-Fetch-Site": "same-origin"}
        opened = await login(keyed, ADMIN_KEY, **seen)
        assert opened.status_code == 200
        headers = seen | {CSRF: opened.json()["csrf"]}
        drain = await keyed.client.post("/agentsched/v1/engines/e0/drain", headers=headers)
        assert drain.status_code == 200
        other = seen | {"Sec-Fetch-Site": "same-site"}
        assert (await login(keyed, ADMIN_KEY, **other)).status_code == 403

    async def test_a_token_is_its_own_sessions(self, keyed: Any) -> None:
        first = (await login(keyed, ADMIN_KEY)).json()["csrf"]
        second = (await login(keyed, ADMIN_KEY)).json()["csrf"]
        assert first != second
        drain = "/agentsched/v1/engines/e0/drain"
        assert (await keyed.client.post(drain, headers={CSRF: first})).status_code == 403

    async def test_who_am_i(self, keyed: Any, keys: Any) -> None:
        assert (await keyed.client.get(URL)).json()["is_open"] is False
        opened = (await login(keyed, keys.red_read.token)).json()
        shown = (await keyed.client.get(URL)).json()
        assert shown == opened
        assert (shown["tenant"], shown["scopes"]) == ("red", ["read"])
        programs = await keyed.client.get("/agentsched/v1/programs")
        assert programs.status_code == 200
        refused = await keyed.client.post("/agentsched/v1/reload", headers={CSRF: shown["csrf"]})
        assert refused.status_code == 403

    async def test_out_again(self, keyed: Any) -> None:
        csrf = (await login(keyed, ADMIN_KEY)).json()["csrf"]
        cookie = {"Cookie": f"{COOKIE}={keyed.client.cookies[COOKIE]}"}
        assert (await keyed.client.delete(URL)).status_code == 403
        assert (await keyed.client.delete(URL, headers={CSRF: csrf})).status_code == 200
        keyed.client.cookies.clear()
        # A copy of the cookie is worth nothing any more.
        stolen = await keyed.client.get("/agentsched/v1/programs", headers=cookie)
        assert stolen.status_code == 401

    @pytest.mark.parametrize("key", ["", "wrong", "an-admin-key-of-some-lengtH", "é" * 30])
    async def test_wrong_keys(self, keyed: Any, key: str) -> None:
        answer = await login(keyed, key)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers

    async def test_keys_that_may_not_look(self, keyed: Any, keys: Any) -> None:
        for key in (keys.red_data, keys.front, keys.metrics):
            assert (await login(keyed, key.token)).status_code == 401

    @pytest.mark.parametrize(
        ("body", "status"),
        [(b"", 400), (b"{}", 400), (b'{"key": 1}', 400), (b"[" * 9000, 400), (b"x" * 20_000, 413)],
    )
    async def test_bodies(self, keyed: Any, body: bytes, status: int) -> None:
        assert (await keyed.client.post(URL, content=body)).status_code == status

    async def test_other_sites_cannot_log_a_browser_in(self, keyed: Any) -> None:
        answer = await login(keyed, ADMIN_KEY, Origin="http://evil.example")
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    async def test_here_and_open_no_login_is_needed(self, proxy: Any) -> None:
        assert (await proxy.client.get(URL)).json()["is_open"] is True
        far = await proxy.client.get(URL, headers={"Host": "proxy.example"})
        assert far.json()["is_open"] is False


class TestEnds:
    async def test_with_its_key(self, start_keyed: Any, keys: Any, upstream: Any) -> None:
        async with start_keyed(upstream.url) as proxy:
            await login(proxy, keys.red_read.token)
            looked = await proxy.client.get("/agentsched/v1/programs")
            assert looked.status_code == 200
            left = [k for k in proxy.gateway.config.auth.keys if k.id != keys.red_read.id]
            auth = proxy.gateway.config.auth.model_copy(update={"keys": tuple(left)})
            proxy.gateway.config = proxy.gateway.config.model_copy(update={"auth": auth})
            looked = await proxy.client.get("/agentsched/v1/programs")
            assert looked.status_code == 401

    async def test_with_the_admin_key(self, keyed: Any) -> None:
        await login(keyed, ADMIN_KEY)
        config = keyed.gateway.config
        changed = type(config)(admin_key="another-admin-key", port=0, engines=config.engines)
        update = {"admin_key": changed.admin_key}
        keyed.gateway.config = config.model_copy(update=update)
        assert (await keyed.client.get("/agentsched/v1/programs")).status_code == 401

    async def test_in_time(self, start_keyed: Any, upstream: Any) -> None:
        async with start_keyed(upstream.url, auth={"session_timeout": "1s"}) as proxy:
            answer = await login(proxy, ADMIN_KEY)
            assert cookie_of(answer)["max-age"] == "1"
            cookie = {"Cookie": f"{COOKIE}={proxy.client.cookies[COOKIE]}"}
            real = proxy.gateway.gate._now
            proxy.gateway.gate._now = lambda: real() + 1.1
            shown = await proxy.client.get("/agentsched/v1/programs", headers=cookie)
            assert shown.status_code == 401


class TestCookies:
    def session(self, **more: Any) -> Session:
        return Session(id=new_id(), until=NOW + 60, name="n", scopes=("read",), **more)

    def test_come_back(self) -> None:
        sessions, session = Sessions(b"secret"), self.session(tenant="red")
        assert sessions.read(sessions.issue(session), now=NOW) == session

    def test_no_sign_of_them_can_be_changed(self) -> None:
        sessions = Sessions(b"secret")
        cookie = sessions.issue(self.session(tenant="red"))
        for at in range(len(cookie)):
            other = "A" if cookie[at] != "A" else "B"
            assert sessions.read(cookie[:at] + other + cookie[at + 1 :], now=NOW) is None
        for wrong in ("", ".", cookie + "0", cookie[1:], cookie.split(".")[0], "é." + cookie):
            assert sessions.read(wrong, now=NOW) is None
        assert sessions.read("A" * 100_000, now=NOW) is None

    def test_of_another_secret(self) -> None:
        cookie = Sessions(b"one").issue(self.session())
        assert Sessions(b"two").read(cookie, now=NOW) is None
        assert Sessions(b"one").read(cookie, now=NOW) is not None  # another replica, one secret

    def test_end_on_time(self) -> None:
        sessions = Sessions(b"secret")
        cookie = sessions.issue(self.session())
        assert sessions.read(cookie, now=NOW + 59.9) is not None
        assert sessions.read(cookie, now=NOW + 60) is None

    def test_ended_ones_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agentsched.proxy.access.sessions._ENDED_MAX", 2)
        sessions, made = Sessions(b"secret"), [self.session() for _ in range(3)]
        for session in made:
            sessions.end(session)
        read = [sessions.read(sessions.issue(s), now=NOW) for s in made]
        assert read == [made[0], None, None]


class TestHeaders:
    @pytest.mark.parametrize(
        "path", ["/agentsched/", "/agentsched/v1/programs", "/agentsched/v1/none", "/agentsched/no"]
    )
    async def test_pages_are_kept_to_themselves(self, proxy: Any, path: str) -> None:
        headers = (await proxy.client.get(path)).headers
        policy = dict(
            part.strip().partition(" ")[::2]
            for part in headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"

    async def test_views_are_not_cached(self, proxy: Any) -> None:
        shown = await proxy.client.get("/agentsched/v1/programs")
        assert shown.headers["Cache-Control"] == "no-store"

    async def test_llm_answers_are_left_alone(self, proxy: Any) -> None:
        answer = await proxy.chat()
        assert "Content-Security-Policy" not in answer.headers

    async def test_nobody_is_let_in_from_elsewhere(self, proxy: Any) -> None:
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        for path in ("/v1/chat/completions", "/agentsched/v1/programs"):
            answer = await proxy.client.options(path, headers=asked)
            assert not any(n.startswith("access-control") for n in answer.headers)


async def test_a_slow_login_is_cut_off(start: Any, upstream: Any) -> None:
    async with start(upstream.url, http={"body_timeout": "100ms"}) as proxy:
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
        async with asyncio.timeout(60):
            reader, writer = await proxy.raw(head % URL.encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()
