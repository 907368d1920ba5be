"""The control plane: routes, paging, who may, and what operators' verbs do."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest
from proxy_upstream import Gate, Upstream
from shorthand import reported

from agentsched.model import Dispatch

BASE = "/agentsched/v1"


async def get(proxy: Any, path: str, **headers: str) -> Any:
    response = await proxy.client.get(BASE + path, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def open_programs(proxy: Any, *names: str, **headers: str) -> list[str]:
    ids = []
    for name in names:
        response = await proxy.chat(headers={"x-agentsched-program": name, **headers})
        assert response.status_code == 200
        ids.append(response.headers["x-agentsched-program"])
    return ids


class TestPrograms:
    async def test_newest_first_in_pages(self, proxy: Any) -> None:
        await open_programs(proxy, "a", "b", "c")
        listed = await get(proxy, "/programs?limit=2")
        assert [p["program"] for p in listed["programs"]] == ["c", "b"]
        assert (listed["total"], listed["offset"]) == (3, 0)
        rest = await get(proxy, "/programs?limit=2&offset=2")
        assert [p["program"] for p in rest["programs"]] == ["a"]
        assert (await get(proxy, "/programs?offset=9"))["programs"] == []

    @pytest.mark.parametrize("query", ["limit=x", "limit=0", "offset=-1", "limit="])
    async def test_bad_pages(self, proxy: Any, query: str) -> None:
        response = await proxy.client.get(f"{BASE}/programs?{query}")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "bad_page"

    async def test_of_one_tenant(self, proxy: Any) -> None:
        await open_programs(proxy, "a", **{"x-agentsched-tenant": "red"})
        await open_programs(proxy, "a", **{"x-agentsched-tenant": "blue"})
        listed = await get(proxy, "/programs?tenant=red")
        assert [p["tenant"] for p in listed["programs"]] == ["red"]
        tenants = await get(proxy, "/tenants")
        assert {t["tenant"]: t["steps"] for t in tenants["tenants"]} == {"red": 1, "blue": 1}

    async def test_one_of_them(self, proxy: Any) -> None:
        [key] = await open_programs(proxy, "a")
        shown = await get(proxy, f"/programs/{key}")
        assert shown["steps_done"] == 1
        assert (shown["prompt_tokens"], shown["output_tokens"]) == (7, 2)
        [conversation] = shown["conversations"]
        assert conversation["engine"] == "e0"
        assert conversation["paused_s"] >= 0
        assert shown["live_steps"] == []

    async def test_while_a_step_runs(self, proxy: Any, upstream: Upstream) -> None:
        gate = upstream.script = Gate()
        asked = asyncio.create_task(proxy.chat(headers={"x-agentsched-program": "a"}))
        await upstream.exchange()
        [step] = (await get(proxy, "/programs/a"))["live_steps"]
        assert (step["state"], step["engine"], step["attempts"]) == ("dispatched", "e0", 1)
        story = await get(proxy, f"/programs/{step['step']}/story")
        assert story["entries"][-1]["event"][0] == "StepArrived"
        gate.open.set()
        await asked

    @pytest.mark.parametrize("name", ["a/b", "a#b?c", "a b%20", "ü/%2F", "x/story", "..", "a/../b"])
    async def test_odd_ids(self, proxy: Any, name: str) -> None:
        headers = {"x-agentsched-tenant": "t/1"}
        response = await proxy.chat(agentsched={"program": name}, headers=headers)
        [key] = proxy.scheduler.programs
        assert response.status_code == 200
        for path in ("", "/story"):
            shown = await get(proxy, f"/programs/{quote(key, safe='')}{path}")
            assert shown["program"] == key
        released = await proxy.client.post(f"{BASE}/programs/{quote(key, safe='')}/release")
        assert released.json() == {"program": key, "released": True}
        assert not proxy.scheduler.programs

    async def test_slashes_may_stay(self, proxy: Any) -> None:
        [key] = await open_programs(proxy, "a", **{"x-agentsched-tenant": "t"})
        assert key == "t/a"
        assert (await get(proxy, "/programs/t/a"))["program"] == key
        assert (await get(proxy, "/programs/t/a/story"))["program"] == key

    async def test_its_story(self, proxy: Any) -> None:
        await open_programs(proxy, "a", "b", "a")
        entries = (await get(proxy, "/programs/a/story"))["entries"]
        kinds = [entry["event"][0] for entry in entries]
        assert kinds == ["StepArrived", "StepFinished"] * 2
        assert entries[0]["commands"][0][0] == "Dispatch"
        assert json.dumps(entries).count('"b"') == 0

    async def test_released(self, proxy: Any) -> None:
        await open_programs(proxy, "a")
        response = await proxy.client.post(f"{BASE}/programs/a/release")
        assert response.json() == {"program": "a", "released": True}
        assert not proxy.scheduler.programs
        assert "a" not in proxy.gateway.index
        assert (await proxy.client.post(f"{BASE}/programs/a/release")).status_code == 404

    async def test_what_each_does(self, start: Any, upstream: Upstream) -> None:
        gate = upstream.script = Gate()
        policies = {"admit": {"name": "depth", "params": {"depth": 1}}}
        async with start(upstream.url, profile="fcfs", policies=policies) as proxy:
            asked = []
            for name in "ab":
                names = {"x-agentsched-program": name, "x-agentsched-agent": f"kind-{name}"}
                asked.append(asyncio.create_task(proxy.chat(name, headers=names)))
                await proxy.turns.until(lambda: len(proxy.scheduler.steps) == len(asked))
            rows = {p["program"]: p for p in (await get(proxy, "/programs"))["programs"]}
            assert {name: row["state"] for name, row in rows.items()} == {
                "a": "running",
                "b": "waiting",
            }
            shown = await get(proxy, "/programs/b")
            assert (shown["state"], shown["held_for"]) == ("waiting", rows["b"]["held_for"])
            for query, names in (
                ("state=waiting", ["b"]),
                ("state=running", ["a"]),
                ("state=pinned", []),
                ("agent=kind-a", ["a"]),
                ("agent=kind-a&state=waiting", []),
            ):
                listed = await get(proxy, f"/programs?{query}")
                assert [p["program"] for p in listed["programs"]] == names, query
                assert listed["total"] == len(names)
            gate.open.set()
            await asyncio.gather(*asked)

    async def test_no_such_state(self, proxy: Any) -> None:
        response = await proxy.client.get(f"{BASE}/programs?state=asleep")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "bad_state"
        assert "waiting" in response.json()["error"]["message"]

    async def test_the_story_of_one_that_is_over(self, proxy: Any) -> None:
        await open_programs(proxy, "a", **{"x-agentsched-final": "true"})
        await open_programs(proxy, "b")
        await proxy.client.post(f"{BASE}/programs/b/release")
        assert not proxy.scheduler.programs
        last = {"a": ["StepArrived", "StepFinished"]}
        last["b"] = [*last["a"], "ProgramClosed"]
        for name, told in last.items():
            story = await get(proxy, f"/programs/{name}/story")
            assert story["program"] == name
            assert [entry["event"][0] for entry in story["entries"]] == told
            assert story["closed_s"] >= 0
            assert (await proxy.client.get(f"{BASE}/programs/{name}")).status_code == 404
        await open_programs(proxy, "a")
        assert (await get(proxy, "/programs/a/story"))["closed_s"] is None

    async def test_what_is_no_more_kept_is_in_the_journal(self, proxy: Any) -> None:
        response = await proxy.client.get(f"{BASE}/programs/none/story")
        message = response.json()["error"]["message"]
        assert "agentsched report FILE --program" in message
        assert "agentsched db export" in message

    @pytest.mark.parametrize("path", ["/programs/none", "/programs/none/story", "/engines/e9"])
    async def test_not_found(self, proxy: Any, path: str) -> None:
        response = await proxy.client.get(BASE + path)
        assert response.status_code == 404
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


class TestEngines:
    async def test_shown(self, start: Any, upstream: Upstream) -> None:
        async with start(upstream.url, "http://127.0.0.1:1") as proxy:
            up, down = (await get(proxy, "/engines"))["engines"]
        assert up["is_up"]
        assert up["capabilities"]["models"] == ["m"]
        assert up["running_steps"] == 0
        assert not down["is_up"]
        assert down["last_error"]

    async def test_drained_and_back(self, start: Any, upstream: Upstream, second: Upstream) -> None:
        async with start(upstream.url, second.url) as proxy:
            drained = await proxy.client.post(f"{BASE}/engines/e0/drain")
            assert drained.json() == {"engine": "e0", "is_draining": True}
            await open_programs(proxy, *"abcd")
            assert {d.engine for d in proxy.turns.commands(Dispatch)} == {"e1"}
            assert (await get(proxy, "/engines"))["engines"][0]["is_draining"]
            await proxy.client.post(f"{BASE}/engines/e0/undrain")
            await open_programs(proxy, *"efgh")
            assert {d.engine for d in proxy.turns.commands(Dispatch)} == {"e0", "e1"}

    async def test_one_that_never_answered_is_drained_before_it_comes(self, start: Any) -> None:
        async with start("http://127.0.0.1:9") as proxy:
            drained = await proxy.client.post(f"{BASE}/engines/e0/drain")
            assert drained.json() == {"engine": "e0", "is_draining": True}
            [shown] = (await get(proxy, "/engines"))["engines"]
            assert (shown["is_draining"], shown["is_up"]) == (True, False)
            assert "capabilities" not in shown  # nobody knows what it can do
            proxy.gateway.host.feed(reported("e0"))
            [shown] = (await get(proxy, "/engines"))["engines"]
            assert (shown["is_draining"], shown["is_up"]) == (True, False)
            assert "capabilities" in shown

    async def test_unknown(self, proxy: Any) -> None:
        response = await proxy.client.post(f"{BASE}/engines/none/drain")
        assert response.json()["error"]["code"] == "unknown_engine"


async def test_statistics_and_policies(proxy: Any) -> None:
    await open_programs(proxy, "a")
    statistics = await get(proxy, "/statistics")
    assert statistics["scheduler"]["steps_total"] == 1
    assert statistics["identity"]["programs"] == 1
    assert statistics["profile"] == "agentsched"
    assert statistics["limits"]["engine_wait_ns_max"] == 20_000_000_000
    policies = await get(proxy, "/policies")
    assert policies["active"]["order"] == "remaining-work"
    assert "passthrough" in policies["profiles"]
    assert "fcfs" in policies["available"]["order"]


class TestWhoMay:
    async def test_with_a_key(self, start: Any, upstream: Upstream) -> None:
        async with start(upstream.url, admin_key="s3cret") as proxy:
            for given in ("", "Bearer wrong", "Bearer s3cre", b"Bearer \xff\xfe"):
                response = await proxy.client.get(
                    f"{BASE}/engines", headers=[(b"authorization", given)] if given else None
                )
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
            assert await get(proxy, "/engines", authorization="Bearer s3cret")
            # With the key it does not matter where one comes from.
            await get(
                proxy, "/engines", authorization="Bearer s3cret", **{"x-forwarded-for": "9.9.9.9"}
            )
            # The data plane needs no key of ours.
            assert (await proxy.chat()).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"x-forwarded-for": "127.0.0.1"},
            {"forwarded": "for=127.0.0.1"},
            {"via": "1.1 proxy"},
            {"host": "rebound.example"},
            {"host": "127.0.0.1.rebound.example"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"sec-fetch-site": "cross-site"},
        ],
    )
    async def test_without_a_key_not_for_others(self, proxy: Any, headers: dict[str, str]) -> None:
        for method, path in (("GET", "/engines"), ("POST", "/engines/e0/drain")):
            response = await proxy.client.request(method, BASE + path, headers=headers)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "forbidden"

    @pytest.mark.parametrize("host", ["localhost:8900", "127.0.0.1", "[::1]:80"])
    async def test_without_a_key_on_this_machine(self, proxy: Any, host: str) -> None:
        await get(proxy, "/engines", host=host)
        await get(proxy, "/engines", host=host, origin=f"http://{host}")


class TestTenants:
    async def test_a_tenant_is_configured(self, proxy: Any) -> None:
        url = f"{BASE}/tenants/team-a"
        put = await proxy.client.put(url, json={"weight": 3, "programs_max": 5, "deadline": "2m"})
        assert put.status_code == 200
        [shown] = [t for t in (await get(proxy, "/tenants"))["tenants"] if t["tenant"] == "team-a"]
        assert shown == put.json()
        assert (shown["weight"], shown["limits"]["programs_max"]) == (3.0, 5)
        assert shown["limits"]["deadline_ns"] == 120 * 10**9

    @pytest.mark.parametrize(
        "body",
        [
            *(b"[]", b"{", b'{"weight":0}', b'{"heavy":1}', b'{"priority_min":9,"priority_max":1}'),
            b'{"deadline":1800000}',  # nanoseconds, milliseconds, seconds?
        ],
    )
    async def test_what_is_wrong_changes_nothing(self, proxy: Any, body: bytes) -> None:
        put = await proxy.client.put(f"{BASE}/tenants/team-a", content=body)
        assert put.status_code == 400
        assert put.json()["error"]["code"] == "bad_tenant"
        assert (await get(proxy, "/tenants"))["tenants"] == []

    async def test_the_wait_bound_is_shown(self, proxy: Any) -> None:
        bound = (await get(proxy, "/statistics"))["wait_bound"]
        assert bound == {"max_wait_s": 120.0, "sensible_s": None, "is_too_tight": False}
