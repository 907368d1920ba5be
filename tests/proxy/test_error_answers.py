"""Noes that clients seldom meet: each has its status, its code and its shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from proxy_upstream import Upstream

from agentsched.model import WireError
from agentsched.proxy import workflows

BASE = "/agentsched/v1"


class TestGraphs:
    @pytest.mark.parametrize(
        ("path", "status", "code"),
        [
            ("programs/p/graph?format=png", 400, "bad_format"),
            ("programs/nobody/graph", 404, "unknown_program"),
        ],
    )
    async def test_noes(self, proxy: Any, path: str, status: int, code: str) -> None:
        await proxy.chat(agentsched={"program": "p"})
        answer = await proxy.client.get(f"{BASE}/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    @pytest.mark.parametrize(
        ("form", "kind", "has"),
        [
            ("json", "application/json", '"nodes"'),
            ("mermaid", "text/", "flowchart"),
            ("dot", "text/vnd.graphviz", "digraph"),
        ],
    )
    async def test_forms(self, proxy: Any, form: str, kind: str, has: str) -> None:
        await proxy.chat(agentsched={"program": "p"})
        answer = await proxy.client.get(f"{BASE}/programs/p/graph?format={form}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert has in answer.text


class TestWorkflows:
    async def test_one_that_is_too_long(self, proxy: Any) -> None:
        answer = await proxy.client.post(f"{BASE}/workflows", content=b" " * (1 << 19))
        assert answer.status_code == 413

    async def test_one_that_is_none(self, proxy: Any) -> None:
        answer = await proxy.client.post(f"{BASE}/workflows", content=b"steps: 7")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_workflow")

    async def test_no_more_than_are_kept(self, proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workflows, "WORKFLOWS_MAX", 0)
        text = "name: w\nagent: a\nstart: look\nsteps:\n  look: {tools: [grep]}\n"
        answer = await proxy.client.post(f"{BASE}/workflows", content=text.encode())
        code = "too_many_workflows"
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, code), answer.text
        assert (await proxy.client.get(f"{BASE}/workflows")).json() == {"workflows": []}


def nested(before: str, *, after: str = "") -> bytes:
    return (before + "[" * 100_000 + "]" * 100_000 + after).encode()


class TestValuesOutOfAllProportion:
    """Found by a sweep of all routes: each was a 500."""

    @pytest.mark.parametrize(
        ("route", "body"),
        [
            ("PUT tenants/red", nested('{"weight":', after="}")),
            ("PUT tenants/red", b'{"deadline":1e300}'),
            ("PUT tenants/red", b'{"deadline":-1e300}'),
            ("PUT tenants/red", b'{"deadline":"9999999999999999999h"}'),
            (
                "POST policies",
                nested('{"policies":{"order":{"name":"fcfs","params":{"a":', after="}}}}"),
            ),
            ("POST policies", b'{"max_wait":"9999999999999999999h"}'),
            ("POST policies", b'{"max_wait":"%ss"}' % (b"9" * 5_000)),
            ("POST workflows", nested("")),
            ("POST workflows", b'{"name":%s}' % (b"9" * 5_000)),
            ("POST tools", nested('{"a":', after="}")),
            ("POST tools", nested('{"events":')),
            ("POST session", b'{"key":"k","a":' + b"[" * 2_000 + b"]" * 2_000 + b"}"),
            ("POST engines", nested('{"url":')),
            ("POST engines", b'{"url":"http://127.0.0.1:1","api_key":"a\\r\\nX: 1"}'),
            ("POST engines", b'{"url":"http://127.0.0.1:1","api_key":"a\\n"}'),
            ("POST engines", '{"url":"http://127.0.0.1:1","api_key":"ä"}'.encode()),
        ],
    )
    async def test_are_bad_requests(self, proxy: Any, route: str, body: bytes) -> None:
        method, _, path = route.partition(" ")
        answer = await proxy.client.request(method, f"{BASE}/{path}", content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert list(proxy.gateway.fleet.members) == ["e0"]

    async def test_of_a_response_that_is_gone_on_from(self, proxy: Any) -> None:
        for depth in (100, 400, 800, 900, 950, 1_000, 2_000):
            value = "[" * depth + "]" * depth
            body = f'{{"model":"m","input":"x","previous_response_id":{value}}}'
            answer = await proxy.client.post("/v1/responses", content=body.encode())
            assert answer.status_code in (200, 400), (depth, answer.text)


class TestBytesThatAreNoText:
    """JSON is UTF-8: what is not is a bad request, whoever reads it, and never a defect."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", "tenants/red"),
            ("POST", "policies"),
            ("POST", "engines"),
            ("POST", "workflows"),
            ("POST", "plan/v1/chat/completions"),
            ("POST", "tools"),
        ],
    )
    async def test_are_refused(self, proxy: Any, method: str, path: str) -> None:
        for body in (b'{"a": "\xff"}', b'{"\xc3": 1}', b"\xd8", b'"\xed\xa0\x80"'):
            answer = await proxy.client.request(method, f"{BASE}/{path}", content=body)
            assert answer.status_code == 400, (body, answer.text)
            assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "line", ["POST /policies", "POST /engines", "PUT /tenants/red", "POST /tools"]
)
async def test_a_body_that_never_comes(start: Any, upstream: Upstream, line: str) -> None:
    method, _, path = line.partition(" ")
    async with start(upstream.url, http={"body_timeout": "50ms"}) as proxy:
        head = f"{method} {BASE}{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{"
        reader, writer = await proxy.raw(head.encode())
        async with asyncio.timeout(60):
            said = await reader.readuntil(b"}}")
        writer.close()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in said


class TestPlans:
    async def test_what_would_be_refused(self, proxy: Any) -> None:
        body = {"model": "another", "messages": [{"role": "user", "content": "hi"}]}
        answer = await proxy.client.post(f"{BASE}/plan/v1/chat/completions", json=body)
        shown = answer.json()
        assert (shown["verdict"], shown["reason"]) == ("reject", "unknown_model")
        assert shown["detail"] == "another"

    async def test_a_bypass_bound_alone(self, proxy: Any) -> None:
        before = proxy.scheduler.limits
        answer = await proxy.client.post(f"{BASE}/policies", json={"max_bypass": 5})
        assert answer.status_code == 200
        after = proxy.scheduler.limits
        assert (after.bypasses_max, after.wait_ns_max) == (5, before.wait_ns_max)


async def test_the_control_planes_description_is_had_once(proxy: Any) -> None:
    first = await proxy.client.get(f"{BASE}/openapi.json")
    assert first.status_code == 200
    assert json.loads(first.content)["openapi"].startswith("3.1")
    tag = first.headers["etag"]
    again = await proxy.client.get(f"{BASE}/openapi.json", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    other = await proxy.client.get(f"{BASE}/openapi.json", headers={"If-None-Match": '"x"'})
    assert other.status_code == 200


async def test_nobody_pays_where_keys_are_asked_for_and_nobody_looked(
    start: Any, upstream: Upstream
) -> None:
    """A handler that forgot the gate serves nobody."""
    async with start(upstream.url) as proxy:
        gateway = proxy.gateway
        auth = gateway.config.auth.model_copy(update={"mode": "keys"})
        gateway.config = gateway.config.model_copy(update={"auth": auth})
        with pytest.raises(WireError) as refused:
            gateway.tenant({"x-agentsched-tenant": "red"})
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
        (engine,) = gateway.fleet.members
        assert not gateway.forwards_credentials(engine)
