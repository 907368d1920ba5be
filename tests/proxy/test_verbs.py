"""What an operator may ask of a running proxy, and change in it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import eventually
from proxy_upstream import Gate, Upstream, chunk, running_upstream

from agentsched.config import load_config
from agentsched.model import EngineLost, Reconfigured

BASE = "/agentsched/v1"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


async def post(proxy: Any, path: str, body: Any, status: int = 200) -> Any:
    response = await proxy.client.post(BASE + path, json=body)
    assert response.status_code == status, response.text
    return response.json()


class TestPlan:
    async def test_says_where_a_request_would_go_and_remembers_nothing(self, proxy: Any) -> None:
        before = await proxy.client.get(f"{BASE}/statistics")
        shown = await post(proxy, "/plan/v1/chat/completions", CHAT)
        assert shown["verdict"] == "dispatch"
        assert shown["engine"] == "e0"
        assert shown["class"] == "step"
        assert [e["engine"] for e in shown["engines"]] == ["e0"]
        assert shown["engines"][0]["missing_tokens"] > 0
        after = await proxy.client.get(f"{BASE}/statistics")
        assert after.json()["scheduler"]["programs"] == 0
        for count in ("programs", "conversations", "turns", "identified"):
            assert after.json()["identity"][count] == before.json()["identity"][count]
        assert await post(proxy, "/plan", CHAT | {"agentsched": {"program": "p"}})

    async def test_a_program_is_recognised(self, proxy: Any) -> None:
        answered = await proxy.chat("hello")
        said = answered.json()["choices"][0]["message"]
        more = {"role": "user", "content": "go on"}
        body = {"model": "m", "messages": [*CHAT["messages"], said, more]}
        shown = await post(proxy, "/plan/v1/chat/completions", body)
        assert shown["program"] == answered.headers["x-agentsched-program"]
        assert shown["place"] == "stay"
        assert shown["lineage"] == "extends"

    async def test_a_step_that_would_wait(self, upstream: Upstream, start: Any) -> None:
        gate = upstream.script = Gate(chunk("hel"))
        policies = {"admit": {"name": "depth", "params": {"depth": 1}}}
        async with start(upstream.url, profile="fcfs", policies=policies) as proxy:
            running = asyncio.create_task(proxy.chat("one", stream=True))
            await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].running_steps == 1)
            shown = await post(proxy, "/plan/v1/messages", CHAT | {"max_tokens": 5})
            assert shown["verdict"] == "hold"
            assert shown["reason"]
            assert shown["ahead"] == 0
            assert 0 < shown["due_in_s"] <= 120
            gate.open.set()
            await running

    async def test_a_path_or_body_that_is_none(self, proxy: Any) -> None:
        refused = await post(proxy, "/plan/v1/embeddings", CHAT, 404)
        assert refused["error"]["code"] == "unknown_path"
        response = await proxy.client.post(f"{BASE}/plan/v1/chat/completions", content=b"{")
        assert response.status_code == 400


class TestPolicies:
    async def test_another_profile_lets_go_what_was_held(
        self, upstream: Upstream, start: Any
    ) -> None:
        gate = upstream.script = Gate(chunk("hel"))
        policies = {"admit": {"name": "depth", "params": {"depth": 1}}}
        async with start(upstream.url, profile="fcfs", policies=policies) as proxy:
            running = [asyncio.create_task(proxy.chat(str(n), stream=True)) for n in range(3)]
            await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 2)
            shown = await post(proxy, "/policies", {"profile": "passthrough"})
            assert shown["profile"] == "passthrough"
            assert shown["active"]["admit"] == "open"
            assert proxy.scheduler.statistics().waiting_steps == 0
            gate.open.set()
            answers = await asyncio.gather(*running)
            assert [a.status_code for a in answers] == [200, 200, 200]
            assert len(proxy.turns.events(Reconfigured)) == 1

    async def test_one_policy_and_a_bound(self, proxy: Any) -> None:
        wanted = {"policies": {"order": {"name": "fcfs"}}, "max_wait": "7s", "max_bypass": 3}
        shown = await post(proxy, "/policies", wanted)
        assert shown["active"]["order"] == "fcfs"
        assert shown["active"]["admit"] == "working-set"
        assert proxy.scheduler.limits.wait_ns_max == 7_000_000_000
        assert proxy.scheduler.limits.bypasses_max == 3

    @pytest.mark.parametrize(
        "wanted",
        [
            {"profile": "nonsense"},
            {"policies": {"order": {"name": "nonsense"}}},
            {"policies": {"colour": {"name": "fcfs"}}},
            {"policies": {"order": {"name": "fcfs", "params": {"x": 1}}}},
            {"max_wait": "soon"},
            {"max_bypass": -1},
            {"unknown": 1},
            [],
        ],
    )
    async def test_what_is_wrong_changes_nothing(self, proxy: Any, wanted: Any) -> None:
        before = proxy.scheduler.policies, proxy.scheduler.limits
        refused = await post(proxy, "/policies", wanted, 400)
        assert refused["error"]["code"] == "bad_policies"
        assert refused["error"]["message"]
        assert (proxy.scheduler.policies, proxy.scheduler.limits) == before


class TestEngines:
    async def test_come_and_go_under_load(
        self, upstream: Upstream, second: Upstream, start: Any
    ) -> None:
        async with start(upstream.url) as proxy:
            new = {"id": "e1", "url": second.url, "kind": "openai"}
            await post(proxy, "/engines", new, 202)
            assert (await post(proxy, "/engines", new, 409))["error"]["code"] == "engine_exists"
            await proxy.turns.until(lambda: "e1" in proxy.scheduler.engines)
            gate = upstream.script = Gate(chunk("hel"))
            await proxy.client.post(f"{BASE}/engines/e1/drain")
            running = asyncio.create_task(proxy.chat("on e0", stream=True))
            await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].running_steps == 1)
            await proxy.client.post(f"{BASE}/engines/e1/undrain")
            gone = await proxy.client.delete(f"{BASE}/engines/e0")
            assert gone.status_code == 202
            assert (await proxy.chat("elsewhere")).headers["x-agentsched-engine"] == "e1"
            assert "e0" in proxy.gateway.fleet.members  # its step still runs
            gate.open.set()
            assert (await running).status_code == 200
            await eventually(lambda: "e0" not in proxy.gateway.fleet.members)
            assert proxy.turns.events(EngineLost)[-1].reason == "removed"
            last = await proxy.client.delete(f"{BASE}/engines/e1")
            assert last.json()["error"]["code"] == "last_engine"
            # It may come back under its old name.
            await post(proxy, "/engines", {"id": "e0", "url": upstream.url, "kind": "openai"}, 202)
            await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].is_up)

    async def test_unknown_and_wrong_ones(self, proxy: Any) -> None:
        assert (await proxy.client.delete(f"{BASE}/engines/e9")).status_code == 404
        refused = await post(proxy, "/engines", {"url": "nowhere"}, 400)
        assert refused["error"]["code"] == "bad_engine"
        assert "url" in refused["error"]["message"]


class TestReload:
    async def test_without_a_file(self, proxy: Any) -> None:
        refused = await post(proxy, "/reload", None, 400)
        assert "without a configuration file" in refused["error"]["message"]

    @pytest.mark.slow
    async def test_a_reread_file_counts_and_a_wrong_one_does_not(self, tmp_path: Path) -> None:
        from agentsched.proxy.serve import running

        file = tmp_path / "config.toml"
        async with running_upstream() as first, running_upstream() as other:

            def write(text: str) -> None:
                file.write_text(
                    f'port = 0\n{text}\n[[engines]]\nurl = "{first.url}"\nid = "e0"\n'
                    'kind = "openai"\n[upstream]\nprobe_interval = "50ms"\n'
                )

            write('profile = "fcfs"')
            reread = lambda: load_config(file)  # noqa: E731
            async with (
                running(reread(), reread=reread) as (gateway, url),
                httpx.AsyncClient(base_url=url, timeout=60) as client,
            ):
                write('profile = "passthrough"\njournal = "j.ndjson"')
                body = (await client.post(f"{BASE}/reload")).json()
                assert body == {"changed": ["profile"], "needs_restart": ["journal"]}
                assert gateway.host.scheduler.policies.profile == "passthrough"
                assert gateway.config.journal is None
                # What waits for a restart is said each time, not once.
                body = (await client.post(f"{BASE}/reload")).json()
                assert body == {"changed": [], "needs_restart": ["journal"]}
                write('profile = "nonsense"')
                refused = await client.post(f"{BASE}/reload")
                assert refused.status_code == 400
                assert "nonsense" in refused.json()["error"]["message"]
                assert gateway.host.scheduler.policies.profile == "passthrough"
                assert gateway.config.profile == "passthrough"
                file.write_text("profile = ")
                assert (await client.post(f"{BASE}/reload")).status_code == 400
                # Engines: one more, then another address for the first.
                write(f'[[engines]]\nurl = "{other.url}"\nid = "e1"\nkind = "openai"')
                os.kill(os.getpid(), signal.SIGHUP)
                await eventually(lambda: "e1" in gateway.host.scheduler.engines)
                assert gateway.host.scheduler.policies.profile == "agentsched"
                answer = await client.post("/v1/chat/completions", content=json.dumps(CHAT))
                assert answer.status_code == 200
