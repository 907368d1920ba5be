"""The gate: every route, every scope; and no key of ours ever reaches an engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from agentsched.config import Config
from agentsched.proxy.app import build_app, build_gateway
from agentsched_bench.reference.operations import BASE, OPERATIONS

ADMIN = {"Authorization": "Bearer an-admin-key-of-some-length"}
OPEN = {"/healthz", "/readyz", "/agentsched/v1/session"}

#: What each scope opens, by (method, path): everything else is closed to it.
READ_OPENS = {
    ("GET", f"/agentsched/v1/{path}")
    for path in (
        "programs",
        "programs/none",
        "programs/none/story",
        "programs/none/graph",
        "programs/none/timeline",
        "overview",
        "engines",
        "engines/e0",
        "tenants",
        "statistics",
        "policies",
    )
}
DATA_OPENS = {
    *(
        ("POST", path)
        for path in (
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/responses/compact",
            "/v1/responses/input_tokens",
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/embeddings",
            "/v1/rerank",
            "/v1/audio/transcriptions",
            "/tokenize",
            "/detokenize",
            "/finish_session",
            "/agentsched/v1/tools",
            "/agentsched/v1/plan",
            "/agentsched/v1/plan/v1/messages",
            "/agentsched/v1/programs/none/release",
        )
    ),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m"),
    ("GET", "/v1/responses/none"),
    ("POST", "/v1/responses/none/cancel"),
    ("DELETE", "/v1/responses/none"),
}
ADMIN_OPENS = {
    ("POST", "/agentsched/v1/policies"),
    ("POST", "/agentsched/v1/engines"),
    ("POST", "/agentsched/v1/reload"),
    ("POST", "/agentsched/v1/engines/none/drain"),
    ("POST", "/agentsched/v1/engines/none/undrain"),
    ("DELETE", "/agentsched/v1/engines/none"),
    ("PUT", "/agentsched/v1/tenants/red"),
    ("GET", "/agentsched/v1/engines/none/kv"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("GET", "/v1/agentsched/state"),
    ("POST", "/v1/agentsched/pin"),
    ("POST", "/v1/agentsched/extend"),
    ("POST", "/v1/agentsched/release"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/chat/completions"),
    ("POST", "/v1/chat/completions/batch"),
}
METRICS_OPENS = {("GET", "/metrics")}
ALL = READ_OPENS | DATA_OPENS | ADMIN_OPENS | METRICS_OPENS
OWN = {
    ("POST", "/agentsched/v1/plan"),
    ("POST", "/agentsched/v1/plan/v1/messages"),
    ("POST", "/agentsched/v1/programs/none/release"),
}


def is_closed(status: int) -> bool:
    return status in (401, 403)


def routes() -> Iterator[tuple[str, str]]:
    """Every route of the real application, with its variables filled in."""
    app = build_app(build_gateway(Config.model_validate({"engines": [{"url": "http://e:1"}]})))
    for route in app.router.routes():
        resource = route.resource
        assert resource is not None
        path = resource.canonical
        for name in ("program", "engine", "tenant", "response", "verb", "tail", "name", "path"):
            path = path.replace(f"{{{name}}}", {"path": "", "name": "x.js"}.get(name, "x"))
        for method in ("GET", "POST", "DELETE") if route.method == "*" else (route.method,):
            yield method, path


class TestWithoutAKey:
    async def test_every_route_of_the_application_is_closed(self, keyed: Any) -> None:
        tried = 0
        for method, path in sorted(set(routes())):
            response = await keyed.client.request(method, path)
            is_page = path.startswith("/agentsched") and not path.startswith("/agentsched/v1")
            if path in OPEN or is_page:
                assert not is_closed(response.status_code), (method, path)
                continue
            tried += 1
            assert response.status_code == 401, (method, path)
            assert response.headers["WWW-Authenticate"] == "Bearer"
        assert tried > 30
        assert not keyed.scheduler.programs

    @pytest.mark.parametrize("path", ["/", "/nothing", "/agentsched/v1/nothing", "/v2/x", "/v1"])
    async def test_nobody_learns_which_paths_there_are(self, keyed: Any, path: str) -> None:
        for method in ("GET", "POST", "PATCH"):
            assert (await keyed.client.request(method, path)).status_code == 401

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic YTpi"},
            {"Authorization": "Bearer ask_aaaaaaaaaaaa_" + "b" * 43},
            {"x-api-key": "sk-something"},
            {"x-agentsched-key": "ask_"},
            {"Cookie": "agentsched_session=x.y"},
            {"x-agentsched-tenant": "red"},
            {"x-forwarded-for": "127.0.0.1"},
        ],
    )
    async def test_what_is_no_key(self, keyed: Any, headers: dict[str, str]) -> None:
        response = await keyed.chat(headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        looked = await keyed.client.get("/agentsched/v1/programs", headers=headers)
        assert looked.status_code == 401

    async def test_in_anthropics_shape(self, keyed: Any) -> None:
        response = await keyed.client.post("/v1/messages", content=b"{}")
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"

    async def test_before_the_body_is_read(self, keyed: Any) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n"
        said = await keyed.say(head + b"Connection: close\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 401")

    async def test_nobody_is_told_to_go_on(self, keyed: Any) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
        said = await keyed.say(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 401")

    async def test_refusals_are_counted(self, keyed: Any, keys: Any) -> None:
        await keyed.chat()
        await keyed.chat(headers=keys.red_read.headers)
        shown = (await keyed.client.get("/metrics", headers=keys.metrics.headers)).text
        assert 'agentsched_auth_refused_total{reason="unknown"} 1.0' in shown
        assert 'agentsched_auth_refused_total{reason="scope"} 1.0' in shown
        assert "agentsched_auth_keys 7.0" in shown


class TestScopes:
    @pytest.mark.parametrize(
        ("name", "opens"),
        [
            ("red_data", DATA_OPENS),
            ("red_read", READ_OPENS),
            ("admin", READ_OPENS | ADMIN_OPENS | METRICS_OPENS | OWN),
            ("metrics", METRICS_OPENS),
        ],
    )
    async def test_open_what_they_should(
        self, keyed: Any, keys: Any, name: str, opens: set[tuple[str, str]]
    ) -> None:
        headers = getattr(keys, name).headers
        for method, path in sorted(ALL):
            status = (await keyed.client.request(method, path, headers=headers)).status_code
            assert (status == 403) is ((method, path) not in opens), (method, path, status)
            assert status != 401

    async def test_are_those_that_the_reference_names(self, keyed: Any, keys: Any) -> None:
        headers = keys.red_read.headers
        for (method, path), operation in OPERATIONS.items():
            if operation.scope in ("read", "admin") and operation.media == "application/json":
                place = BASE + re.sub(r"{\w+}", "none", path)
                status = (await keyed.client.request(method, place, headers=headers)).status_code
                assert (status == 403) is (operation.scope == "admin"), (method, path, status)

    async def test_the_admin_key_is_an_admin(self, keyed: Any) -> None:
        response = await keyed.client.get("/agentsched/v1/statistics", headers=ADMIN)
        assert response.status_code == 200
        assert (await keyed.chat(headers=ADMIN)).status_code == 403

    @pytest.mark.parametrize("how", ["Authorization", "x-api-key", "x-agentsched-key", "bearer"])
    async def test_ways_to_send_a_key(self, keyed: Any, keys: Any, how: str) -> None:
        headers = {
            "Authorization": keys.red.headers,
            "x-api-key": {"x-api-key": keys.red.token},
            "x-agentsched-key": {"x-agentsched-key": keys.red.token},
            "bearer": {"authorization": f"bearer  {keys.red.token}"},
        }[how]
        assert (await keyed.chat(headers=headers)).status_code == 200
        assert list(keyed.scheduler.tenants) == ["red"]


class TestTenants:
    async def test_the_key_says_whose_it_is(self, keyed: Any, keys: Any) -> None:
        await keyed.chat(headers=keys.red.headers | {"x-agentsched-tenant": "blue"})
        assert list(keyed.scheduler.tenants) == ["red"]

    async def test_with_the_scope_the_header_says_so(self, keyed: Any, keys: Any) -> None:
        await keyed.chat(headers=keys.front.headers | {"x-agentsched-tenant": "blue"})
        await keyed.chat("other", headers=keys.front.headers)
        assert list(keyed.scheduler.tenants) == ["blue", "front"]


class TestForwarding:
    async def test_engines_never_see_our_keys(self, keyed: Any, keys: Any, upstream: Any) -> None:
        token = keys.red.token
        for headers in (
            keys.red.headers,
            {"x-api-key": token},
            {"x-agentsched-key": token},
            keys.red.headers | {"x-api-key": token, "x-my-own": f"key={token}", "Cookie": token},
        ):
            assert (await keyed.chat(headers=headers)).status_code == 200
            await keyed.client.post("/v1/embeddings", json={"model": "m"}, headers=headers)
        assert len(upstream.exchanges) == 8
        for exchange in upstream.exchanges:
            assert token not in str(exchange.pairs)
            assert not exchange.headers.keys() & {"authorization", "x-api-key"}

    async def test_not_even_with_work_that_is_shared(
        self, start_keyed: Any, keys: Any, upstream: Any
    ) -> None:
        """A key of no known form: an idempotent request runs as one of its own, and as whose."""
        async with start_keyed(upstream.url) as proxy:
            for key in (ADMIN, keys.red.headers, keys.red.headers, keys.blue.headers):
                headers = key | {"Idempotency-Key": "one", "x-other": "1"}
                answer = await proxy.chat(headers=headers)
                assert answer.status_code == (403 if key is ADMIN else 200)
            tenants = [p.tenant for p in proxy.scheduler.programs.values()]
            assert sorted(tenants) == ["blue", "red"]
        for exchange in upstream.exchanges:
            assert not exchange.headers.keys() & {"authorization", "x-api-key"}

    async def test_a_clients_key_for_the_engine_goes_on(
        self, keyed: Any, keys: Any, upstream: Any
    ) -> None:
        """Ours in its own header, the engine's where it belongs."""
        headers = {"x-agentsched-key": keys.red.token, "Authorization": "Bearer theirs"}
        await keyed.chat(headers=headers)
        assert upstream.exchanges[0].headers["authorization"] == "Bearer theirs"

    async def test_open_the_admin_key_stays_here(self, start: Any, upstream: Any) -> None:
        async with start(upstream.url, admin_key=ADMIN["Authorization"][7:]) as proxy:
            await proxy.chat(headers=ADMIN)
            await proxy.chat(headers={"Authorization": "Bearer theirs"})
        first, second = upstream.exchanges
        assert "authorization" not in first.headers
        assert second.headers["authorization"] == "Bearer theirs"

    async def test_nor_beside_another_key(
        self, start: Any, start_keyed: Any, keys: Any, upstream: Any
    ) -> None:
        """It has no form to be told by, wherever it stands."""
        key = ADMIN["Authorization"][7:]
        ours = {"x-agentsched-key": keys.red.token}
        theirs = {"Authorization": "Bearer theirs"}
        strays = [{"api-key": key}, {"x-api-key": key}, {"x-my-own": f"bearer {key}"}]
        async with start_keyed(upstream.url) as proxy:
            for headers in (ours | ADMIN, *(ours | theirs | stray for stray in strays)):
                assert (await proxy.chat(headers=headers)).status_code == 200
                await proxy.client.post("/v1/embeddings", json={"model": "m"}, headers=headers)
        async with start(upstream.url, admin_key=key) as proxy:
            for stray in strays:
                assert (await proxy.chat(headers=theirs | stray)).status_code == 200
        assert len(upstream.exchanges) == 11
        for exchange in upstream.exchanges:
            assert key not in str(exchange.pairs)
        for exchange in upstream.exchanges[2:]:
            assert exchange.headers["authorization"] == "Bearer theirs"

    async def test_the_engines_key_never_comes_back(self, start: Any, upstream: Any) -> None:
        secret = "sk-of-the-engine-0123456789"
        engine = {"url": upstream.url, "id": "e0", "kind": "openai", "api_key": secret}

        async def refuses(exchange: Any) -> None:
            assert exchange.headers["authorization"] == f"Bearer {secret}"
            body = {"error": {"message": f"Incorrect API key provided: {secret}"}}
            await exchange.json(body, status=401, www_authenticate=f"Bearer {secret}")

        upstream.script = refuses
        async with start(engines=[engine]) as proxy:
            answers = [
                await proxy.chat(headers={"Authorization": "Bearer mine"}),
                await proxy.client.post("/v1/embeddings", json={"model": "m"}),
            ]
            story = await proxy.client.get("/agentsched/v1/programs")
            for answer in answers:
                assert answer.status_code == 502
                assert answer.json()["error"]["code"] == "engine_credentials"
                assert secret not in answer.text + str(answer.headers)
            assert secret not in story.text

    async def test_a_cookie_of_an_engine_stays_between_us(self, proxy: Any, upstream: Any) -> None:
        async def sets(exchange: Any) -> None:
            await exchange.json({"choices": []}, set_cookie="upstream=secret", x_other="1")

        upstream.script = sets
        answer = await proxy.chat()
        assert "set-cookie" not in answer.headers
        assert answer.headers["x-other"] == "1"


class TestOpen:
    async def test_the_data_plane_needs_no_key(self, proxy: Any) -> None:
        assert (await proxy.chat()).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "proxy.example"},
            {"X-Forwarded-For": "10.0.0.1"},
            {"Origin": "http://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-origin", "Origin": "https://agents.example"},
        ],
    )
    async def test_the_control_plane_is_for_this_machine(
        self, proxy: Any, headers: dict[str, str]
    ) -> None:
        for method, path in sorted(READ_OPENS | ADMIN_OPENS):
            if "agentsched" in path or "lora" in path:
                response = await proxy.client.request(method, path, headers=headers)
                assert response.status_code == 403, (method, path)

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/agentsched/state"),
            ("GET", "/v1/agentsched/state?brief=1"),
            ("GET", "/v1/%61gentsched/state"),
            ("POST", "/v1/agentsched/pin"),
            ("POST", "/v1/AgentSched/extend"),
            ("POST", "/v1/agentsched/release/"),
            ("PUT", "/v1/agentsched"),
        ],
    )
    async def test_what_the_plugin_obeys_is_for_operators(
        self, start: Any, upstream: Any, method: str, path: str
    ) -> None:
        """The key of the engine guards nothing here: its adapter adds it to what is relayed."""
        engine = {"url": upstream.url, "id": "e0", "kind": "openai", "api_key": "the-engines-own"}
        far = {"Host": "proxy.example", "Authorization": "Bearer mine"}
        for more, refused in (({}, 403), ({"admin_key": ADMIN["Authorization"][7:]}, 401)):
            async with start(engines=[engine], **more) as proxy:
                answer = await proxy.client.request(
                    method, path, headers=far, json={"everything": True}
                )
                assert answer.status_code == refused
                assert not upstream.exchanges
                near = ADMIN if more else None
                assert not is_closed(
                    (await proxy.client.request(method, path, headers=near)).status_code
                )
            upstream.exchanges.clear()

    async def test_this_machine_needs_a_key_only_where_there_is_an_admin_key(
        self, start: Any, upstream: Any, keys: Any
    ) -> None:
        auth = {"mode": "open", "keys": keys.config["keys"]}
        for more, wanted in (({}, 200), ({"admin_key": ADMIN["Authorization"][7:]}, 401)):
            async with start(upstream.url, auth=auth, **more) as proxy:
                shown = await proxy.client.get("/agentsched/v1/programs")
                assert shown.status_code == wanted

    async def test_keys_open_the_control_plane(self, start: Any, upstream: Any, keys: Any) -> None:
        far = {"Host": "proxy.example"}
        auth = {"mode": "open", "keys": keys.config["keys"]}
        async with start(upstream.url, auth=auth) as proxy:
            shown = await proxy.client.get("/agentsched/v1/programs", headers=far)
            assert shown.status_code == 401
            for key, wanted in ((keys.admin, 200), (keys.red_read, 200), (keys.red_data, 403)):
                shown = await proxy.client.get("/agentsched/v1/programs", headers=far | key.headers)
                assert shown.status_code == wanted


def test_a_route_that_nobody_thought_of_needs_a_key() -> None:
    from agentsched.proxy.access.gate import Need, need_of

    class Chosen:
        def __init__(self, path: str, method: str) -> None:
            self.method, self.path = method, path
            self.match_info = self
            self.route = self
            self.resource = web.PlainResource(path)

    for path in ("/new", "/v2/new", "/sleep"):
        for method in ("GET", "POST"):
            assert need_of(Chosen(path, method), is_open=False) is Need.DATA  # type: ignore[arg-type]
    for path in ("/agentsched/v1/new", "/agentsched/v1/programs/x/new"):
        for method in ("GET", "POST"):
            assert need_of(Chosen(path, method), is_open=False) is Need.ADMIN  # type: ignore[arg-type]
    assert need_of(Chosen("/agentsched/new", "POST"), is_open=False) is Need.ADMIN  # type: ignore[arg-type]
