"""What a proxy answers while steps run and wait, and tenants' keys ask, is as it is described."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from proxy_rig import start_proxy
from proxy_upstream import Gate, chunk, running_upstream

from agentsched.proxy.access.keys import hash_key, new_key
from agentsched_bench.reference.__main__ import PACKAGED
from agentsched_bench.reference.operations import BASE

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
#: One step at a time: the next one waits.
DEPTH = {"admit": {"name": "depth", "params": {"depth": 1}}}
PLAN = "/plan/v1/chat/completions"


class Described:
    """The description that the proxy serves, and whether answers are as it says."""

    def __init__(self) -> None:
        self.whole: dict[str, Any] = json.loads(PACKAGED.read_text(encoding="utf-8"))

    def check(self, method: str, path: str, answer: Any) -> dict[str, Any]:
        """Validate an answer with its path's schema, which must name all its fields."""
        response = answer.request.method.lower(), str(answer.status_code)
        assert (method, response[1]) == (response[0], "200"), answer.text
        operation = self.whole["paths"][BASE + path][method]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        shown: dict[str, Any] = answer.json()
        jsonschema.validate(shown, schema | {"components": self.whole["components"]})
        assert not list(self._untold(shown, schema)), path
        return shown

    def _untold(self, shown: Any, schema: Any) -> Any:
        """Fields that the description does not name, at any depth."""
        one = self._one_of(shown, schema)
        if isinstance(shown, dict) and "properties" in one:
            yield from (key for key in shown if key not in one["properties"])
            for key in one["properties"].keys() & shown:
                yield from self._untold(shown[key], one["properties"][key])
        elif isinstance(shown, list) and isinstance(items := one.get("items"), dict):
            for value in shown:
                yield from self._untold(value, items)
        elif isinstance(shown, dict) and isinstance(more := one.get("additionalProperties"), dict):
            for value in shown.values():
                yield from self._untold(value, more)

    def _one_of(self, shown: Any, schema: Any) -> Any:
        while "$ref" in schema:
            schema = self.whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        for choice in schema.get("anyOf", ()):
            whole = choice | {"components": self.whole["components"]}
            if jsonschema.Draft202012Validator(whole).is_valid(shown):
                return self._one_of(shown, choice)
        return schema


@pytest.fixture(scope="module")
def described() -> Described:
    return Described()


async def test_while_a_step_runs_and_another_waits(described: Described) -> None:
    async with (
        running_upstream() as upstream,
        start_proxy(upstream.url, profile="fcfs", policies=DEPTH) as proxy,
    ):
        gate = upstream.script = Gate(chunk("hel"))
        asked: list[asyncio.Task[Any]] = []
        for name in "ab":
            headers = {"x-agentsched-program": name}
            asked.append(asyncio.create_task(proxy.chat(name, headers=headers, stream=True)))
            await proxy.turns.until(lambda: len(proxy.scheduler.steps) == len(asked))
        plans = [await proxy.client.post(BASE + PLAN, json=CHAT | {"model": m}) for m in "mx"]
        held, refused = (described.check("post", "/plan{path}", plan) for plan in plans)
        assert (held["verdict"], held["ahead"]) == ("hold", 1)
        assert (refused["verdict"], refused["reason"]) == ("reject", "unknown_model")
        for name, is_sent in (("a", True), ("b", False)):
            answer = await proxy.client.get(f"{BASE}/programs/{name}")
            shown = described.check("get", "/programs/{program}", answer)
            assert len(shown["live_steps"]) == 1
            [conversation] = shown["conversations"]
            assert (conversation["engine"] is not None) == is_sent
            expected = shown["forecast"]["conversations"][conversation["conversation"]]
            assert expected["returns"] is None
        for path in ("/programs", "/engines", "/statistics", "/tenants"):
            described.check("get", path, await proxy.client.get(BASE + path))
        gate.open.set()
        await asyncio.gather(*asked)
        sent = await proxy.client.post(BASE + PLAN, json=CHAT)
        assert described.check("post", "/plan{path}", sent)["verdict"] == "dispatch"
        await proxy.client.post(f"{BASE}/programs/a/release")
        over = await proxy.client.get(f"{BASE}/programs/a/story")
        assert described.check("get", "/programs/{program}/story", over)["entries"]


async def test_what_a_tenants_key_is_told(described: Described) -> None:
    key, token = new_key()
    scopes = ["data", "read"]
    hashed = f"sha256:{hash_key(token).hex()}"
    known = {"id": key, "hash": hashed, "tenant": "red", "scopes": scopes}
    headers = {"Authorization": f"Bearer {token}"}
    auth = {"mode": "keys", "keys": [known]}
    async with running_upstream() as upstream, start_proxy(upstream.url, auth=auth) as proxy:
        assert (await proxy.chat(headers=headers)).status_code == 200
        for path in ("/engines", "/statistics", "/programs", "/tenants", "/policies", "/overview"):
            described.check("get", path, await proxy.client.get(BASE + path, headers=headers))
        answer = await proxy.client.get(f"{BASE}/engines/e0", headers=headers)
        outline = described.check("get", "/engines/{engine}", answer)
        assert outline.keys() == {"engine", "is_up", "is_draining"}
        plan = await proxy.client.post(BASE + PLAN, json=CHAT, headers=headers)
        assert "engines" not in described.check("post", "/plan{path}", plan)


def test_whose_decisions_are_watched_may_be_said(described: Described) -> None:
    [only] = described.whole["paths"][f"{BASE}/decisions"]["get"]["parameters"]
    assert (only["name"], only["in"]) == ("program", "query")


def test_what_programs_do_has_its_words(described: Described) -> None:
    shown = described.whole["components"]["schemas"]
    words = {"running", "waiting", "pinned", "paused", "idle"}
    assert set(shown["ListedProgram"]["properties"]["state"]["enum"]) == words
    for verdict in ("dispatch", "hold", "reject"):
        fields = shown[f"Plan{verdict.title()}"]["properties"]
        assert fields["verdict"]["enum"] == [verdict]
