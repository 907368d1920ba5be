"""Two tenants on one proxy: whatever one does, it neither sees nor moves what is the other's."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentsched.model import StepArrived, ToolFinished, ToolStarted
from agentsched.proxy import verbs

BASE = "/agentsched/v1"
ADMIN_KEY = "an-admin-key-of-some-length"
#: Red's program, in a word that nothing of blue's ever holds.
SECRET = "crimsonword"


async def work(proxy: Any, key: Any, program: str, text: str = "hi") -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    headers = key.headers | {"x-agentsched-program": program}
    answer: httpx.Response = await proxy.client.post(
        "/v1/chat/completions", json=body, headers=headers
    )
    assert answer.status_code == 200, answer.text
    return answer


async def looked_at(proxy: Any, key: Any, path: str) -> httpx.Response:
    answer: httpx.Response = await proxy.client.get(BASE + path, headers=key.headers)
    return answer


def calling(tool: str) -> Callable[[Any], Awaitable[None]]:
    """An engine whose answers call this tool."""
    function = {"name": tool, "arguments": "{}"}
    call = {"id": f"call-of-{len(tool)}", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

    async def answer(exchange: Any) -> None:
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await exchange.json(
            {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
        )

    return answer


def names(program: str) -> list[str]:
    """Ways to write another's program."""
    bare = program.rpartition("/")[2]
    return [
        program,
        bare,
        program.replace("/", "%2F"),
        f"/{program}",
        f"{program}/",
        program + "#0",
    ]


class TestViews:
    async def test_others_programs_do_not_exist(self, keyed: Any, keys: Any) -> None:
        await work(keyed, keys.red, SECRET)
        await work(keyed, keys.blue, "own")
        [red, blue] = list(keyed.scheduler.programs)
        assert (red, blue) == (f"red/{SECRET}", "blue/own")
        for tail in ("", "/story", "/graph", "/graph?format=dot", "/timeline"):
            none = await looked_at(keyed, keys.blue, f"/programs/none{tail}")
            theirs = await looked_at(keyed, keys.blue, f"/programs/{red}{tail}")
            own = await looked_at(keyed, keys.blue, f"/programs/{blue}{tail}")
            assert (theirs.status_code, theirs.content) == (404, none.content), tail
            assert own.status_code == 200
            assert SECRET not in own.text
            assert (await looked_at(keyed, keys.red, f"/programs/{red}{tail}")).status_code == 200
            assert (await looked_at(keyed, keys.admin, f"/programs/{red}{tail}")).status_code == 200

    async def test_nor_do_their_tools_in_what_is_forecast(
        self, keyed: Any, keys: Any, upstream: Any
    ) -> None:
        """Forecasts are learnt from all programs; the names of tools are their callers' own."""
        upstream.script = calling(SECRET)
        await work(keyed, keys.red, "theirs")
        upstream.script = calling("grep")
        await work(keyed, keys.blue, "own")
        for key, told in ((keys.blue, {"grep"}), (keys.admin, {"grep", SECRET})):
            shown = await looked_at(keyed, key, "/programs/blue/own")
            [conversation] = shown.json()["forecast"]["conversations"].values()
            assert conversation["next_tools"].keys() == told
            assert (SECRET in shown.text) is (key is keys.admin)

    async def test_nor_do_those_that_are_over(self, keyed: Any, keys: Any) -> None:
        await work(keyed, keys.red, SECRET)
        await work(keyed, keys.blue, "own")
        [red, blue] = list(keyed.scheduler.programs)
        for key, program in ((keys.red, red), (keys.blue, blue)):
            url = f"{BASE}/programs/{program}/release"
            assert (await keyed.client.post(url, headers=key.headers)).status_code == 200
        assert not keyed.scheduler.programs
        none = await looked_at(keyed, keys.blue, "/programs/none/story")
        for name in names(red):
            theirs = await looked_at(keyed, keys.blue, f"/programs/{quote(name, safe='/%')}/story")
            assert (theirs.status_code, theirs.content) == (404, none.content), name
        own = await looked_at(keyed, keys.blue, f"/programs/{blue}/story")
        assert own.status_code == 200
        assert SECRET not in own.text
        for key in (keys.red, keys.red_read, keys.admin):
            assert (await looked_at(keyed, key, f"/programs/{red}/story")).status_code == 200

    async def test_lists_hold_ones_own(self, keyed: Any, keys: Any) -> None:
        await work(keyed, keys.red, SECRET)
        await work(keyed, keys.blue, "own")
        listed = (await looked_at(keyed, keys.blue, "/programs")).json()
        assert [p["program"] for p in listed["programs"]] == ["blue/own"]
        assert listed["total"] == 1
        asked = (await looked_at(keyed, keys.blue, "/programs?tenant=red")).json()
        assert asked == {"programs": [], "total": 0, "offset": 0}
        tenants = (await looked_at(keyed, keys.blue, "/tenants")).json()["tenants"]
        assert [t["tenant"] for t in tenants] == ["blue"]
        everything = (await looked_at(keyed, keys.admin, "/tenants")).json()["tenants"]
        assert {t["tenant"] for t in everything} == {"red", "blue"}

    async def test_engines_are_an_outline(self, keyed: Any, keys: Any, upstream: Any) -> None:
        for path in ("/engines", "/engines/e0", "/statistics", "/overview"):
            shown = await looked_at(keyed, keys.blue, path)
            assert shown.status_code == 200
            assert str(upstream.port) not in shown.text
        assert str(upstream.port) in (await looked_at(keyed, keys.admin, "/engines")).text

    async def test_a_turn_about_two_tenants_is_cut(
        self, start_keyed: Any, keys: Any, upstream: Any
    ) -> None:
        """Blue's step waits for red's: the turn that ends one begins the other."""
        gate = asyncio.Event()

        async def waits(exchange: Any) -> None:
            await gate.wait()
            await exchange.json({"id": "x", "choices": [{"message": {"content": "a"}}]})

        upstream.script = waits
        limits = {"running_steps_per_engine_max": 1}
        async with start_keyed(upstream.url, limits=limits) as proxy:
            red = asyncio.create_task(work(proxy, keys.red, SECRET))
            await upstream.exchange(0)
            blue = asyncio.create_task(work(proxy, keys.blue, "own"))
            await proxy.turns.until(lambda: len(proxy.scheduler.steps) == 2)
            steps = {s.tenant: s.step for s in proxy.scheduler.steps.values()}
            theirs = await looked_at(proxy, keys.blue, f"/programs/{steps['red']}/story")
            assert theirs.status_code == 404
            gate.set()
            await asyncio.gather(red, blue)
            mixed = [
                e
                for e in proxy.turns.entries
                if SECRET in str(e) + str(steps["red"]) and "own" in str(e)
            ]
            whole = (await looked_at(proxy, keys.admin, "/programs/blue/own/story")).text
            shown = (await looked_at(proxy, keys.blue, "/programs/blue/own/story")).text
            assert steps["red"] in whole, mixed
            assert steps["red"] not in shown
            assert SECRET not in shown
            kinds = [e["event"][0] for e in json.loads(shown)["entries"]]
            assert kinds[0] == "StepArrived"
            assert "TimerFired" in kinds  # what began it is none of blue's business
            assert kinds[-1] == "StepFinished"
            release = f"{BASE}/programs/blue/own/release"
            await proxy.client.post(release, headers=keys.blue.headers)
            assert "blue/own" not in proxy.scheduler.programs
            whole = (await looked_at(proxy, keys.admin, "/programs/blue/own/story")).text
            shown = (await looked_at(proxy, keys.blue, "/programs/blue/own/story")).text
            assert steps["red"] in whole
            assert steps["red"] not in shown
            assert SECRET not in shown
            assert json.loads(shown)["entries"][-1]["event"][0] == "ProgramClosed"

    async def test_decisions_are_ones_own(self, keyed: Any, keys: Any) -> None:
        seen: list[str] = []
        begun = asyncio.Event()

        async def watch() -> None:
            url = f"{BASE}/decisions"
            async with keyed.client.stream("GET", url, headers=keys.blue.headers) as answer:
                async for line in answer.aiter_lines():
                    begun.set()
                    seen.append(line)
                    if "blue/last" in line:
                        return

        watching = asyncio.create_task(watch())
        await begun.wait()
        await work(keyed, keys.red, SECRET)
        await work(keyed, keys.blue, "own")
        await work(keyed, keys.red, SECRET + "2")
        await work(keyed, keys.blue, "last")
        async with asyncio.timeout(60):
            await watching
        text = "\n".join(seen)
        assert "blue/own" in text
        assert SECRET not in text
        assert '"red"' not in text


class TestChanges:
    async def test_others_programs_cannot_be_ended(self, keyed: Any, keys: Any) -> None:
        await work(keyed, keys.red, SECRET)
        [red] = keyed.scheduler.programs
        missing = await keyed.client.post(
            f"{BASE}/programs/none/release", headers=keys.blue.headers
        )
        for name in names(red):
            url = f"{BASE}/programs/{name.replace('#', '%23')}/release"
            said = await keyed.client.post(url, headers=keys.blue.headers)
            assert said.status_code == 404
            assert said.content == missing.content
            report = {"event": "closed", "program": name}
            told = await keyed.client.post(f"{BASE}/tools", json=report, headers=keys.blue.headers)
            assert told.json() == {"accepted": 0, "ignored": {"unknown_program": 1}}
        assert list(keyed.scheduler.programs) == [red]
        own = await keyed.client.post(f"{BASE}/programs/{red}/release", headers=keys.red.headers)
        assert own.status_code == 200
        assert not keyed.scheduler.programs

    async def test_others_tools_cannot_be_reported(self, keyed: Any, keys: Any) -> None:
        await work(keyed, keys.red, SECRET)
        [red] = keyed.scheduler.programs
        for name in names(red):
            for event in ("started", "progress", "finished"):
                report = {"event": event, "program": name, "tool": "bash", "call_id": "c1"}
                await keyed.client.post(f"{BASE}/tools", json=report, headers=keys.blue.headers)
        assert not keyed.turns.events(ToolStarted) + keyed.turns.events(ToolFinished)

    async def test_hints_have_a_quota_for_each_tenant(
        self, start_keyed: Any, keys: Any, upstream: Any
    ) -> None:
        batch = [{"event": "closed", "program": "x"}] * 10
        async with start_keyed(upstream.url, auth={"reports_per_s": 1}) as proxy:
            post = proxy.client.post
            first = await post(f"{BASE}/tools", json=batch, headers=keys.red.headers)
            second = await post(f"{BASE}/tools", json=batch, headers=keys.red.headers)
            other = await post(f"{BASE}/tools", json=batch, headers=keys.blue.headers)
        assert (first.status_code, second.status_code, other.status_code) == (202, 429, 202)
        assert 1 <= int(second.headers["retry-after"]) <= 10
        assert second.json()["error"]["code"] == "report_quota"

    async def test_dry_runs_have_a_quota_for_each_tenant(
        self, keyed: Any, keys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each goes through all programs, and everybody waits."""
        monkeypatch.setattr(verbs, "_PLANNED_PER_S", 20)  # two of the smallest at once
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

        async def plan(key: Any) -> httpx.Response:
            url = f"{BASE}/plan/v1/chat/completions"
            answer: httpx.Response = await keyed.client.post(url, json=body, headers=key.headers)
            return answer

        assert [(await plan(keys.red)).status_code for _ in range(2)] == [200, 200]
        refused = await plan(keys.red)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "plan_quota")
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        assert (await plan(keys.blue)).status_code == 200
        assert {(await plan(keys.admin)).status_code for _ in range(4)} == {200}


#: How a client may name the program, conversation or answer that it goes on from.
CLAIMS: tuple[Callable[[str], tuple[dict[str, str], dict[str, Any]]], ...] = (
    lambda name: ({"x-agentsched-program": name}, {}),
    lambda name: ({}, {"agentsched": {"program": name}}),
    lambda name: ({"x-session-id": name}, {}),
    lambda name: ({"session_id": name}, {}),
    lambda name: ({}, {"session_id": name}),
    lambda name: ({}, {"prompt_cache_key": name}),
    lambda name: ({}, {"program_id": name}),
    lambda name: ({}, {"vllm_xargs": {"agentic_context": json.dumps({"program_id": name})}}),
    lambda name: ({"x-agentsched-program": "own", "x-agentsched-parent": name}, {}),
    lambda name: ({"x-claude-code-session-id": name}, {}),
    lambda name: ({"x-codex-turn-state": name}, {}),
    lambda name: ({"idempotency-key": name}, {}),
    lambda name: ({"x-request-id": name}, {}),
)


class TestGuessing:
    @pytest.mark.parametrize("claim", CLAIMS)
    async def test_ids(self, keyed: Any, keys: Any, claim: Any) -> None:
        """The very same request, from two tenants: two programs, and red's does not change."""
        headers, fields = claim("one-name")
        for key in (keys.red, keys.blue, keys.blue):
            answer = await keyed.chat(SECRET, headers=key.headers | headers, **fields)
            assert answer.status_code == 200
        by_tenant = {p.tenant: p for p in keyed.scheduler.programs.values()}
        assert set(by_tenant) == {"red", "blue"}
        assert by_tenant["red"].steps_done == 1
        for program in keyed.scheduler.programs:
            assert program.startswith(("red/", "blue/"))
        before = dict(keyed.scheduler.programs)["red/" + by_tenant["red"].program[4:]].steps_done
        for name in names(by_tenant["red"].program):
            headers, fields = claim(name)
            if all(v.isascii() for v in headers.values()):
                await keyed.chat(headers=keys.blue.headers | headers, **fields)
        assert keyed.scheduler.programs[by_tenant["red"].program].steps_done == before

    async def test_an_answer_of_anothers(self, keyed: Any, keys: Any) -> None:
        """Blue sends red's whole conversation, its answer and call ids included."""
        first = await keyed.chat(SECRET, headers=keys.red.headers)
        said = first.json()["choices"][0]["message"]
        messages = [{"role": "user", "content": SECRET}, said, {"role": "user", "content": "on"}]
        theirs = await keyed.chat(headers=keys.blue.headers, messages=messages)
        own = await keyed.chat(headers=keys.red.headers, messages=messages)
        assert theirs.headers["x-agentsched-program"].startswith("blue/")
        assert "as=none" in theirs.headers["x-agentsched-decision"]
        assert own.headers["x-agentsched-program"] == first.headers["x-agentsched-program"]

    async def test_codex_cookies(self, keyed: Any, keys: Any) -> None:
        codex = {"User-Agent": "codex_cli_rs/1.0"}
        first = await keyed.chat(headers=keys.red.headers | codex)
        cookie = {"x-codex-turn-state": first.headers["x-codex-turn-state"]}
        theirs = await keyed.chat("b", headers=keys.blue.headers | codex | cookie)
        own = await keyed.chat("c", headers=keys.red.headers | codex | cookie)
        assert theirs.headers["x-agentsched-program"].startswith("blue/")
        assert own.headers["x-agentsched-program"] == first.headers["x-agentsched-program"]

    async def test_stored_responses(self, keyed: Any, keys: Any, upstream: Any) -> None:
        async def responds(exchange: Any) -> None:
            output = [{"type": "message", "content": [{"type": "output_text", "text": "hello"}]}]
            await exchange.json({"id": "resp_1", "status": "completed", "output": output})

        upstream.script = responds
        made = await keyed.client.post(
            "/v1/responses", json={"model": "m", "input": SECRET}, headers=keys.red.headers
        )
        assert made.status_code == 200
        seen = len(upstream.exchanges)
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/input_items"),
        ):
            answers = [
                await keyed.client.request(
                    method, f"/v1/responses/{response}{path}", headers=keys.blue.headers
                )
                for response in ("resp_1", "resp_2")
            ]
            assert [a.status_code for a in answers] == [404, 404]
            texts = [a.text.replace("resp_2", "resp_1") for a in answers]
            assert texts[0] == texts[1]
        for previous in ("resp_1", "resp_2"):
            body = {"model": "m", "input": "on", "previous_response_id": previous}
            refused = await keyed.client.post("/v1/responses", json=body, headers=keys.blue.headers)
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "previous_response_not_found"
        assert len(upstream.exchanges) == seen, "an engine was asked"
        own = await keyed.client.get("/v1/responses/resp_1", headers=keys.red.headers)
        assert own.status_code == 200
        body = {"model": "m", "input": "on", "previous_response_id": "resp_1"}
        again = await keyed.client.post("/v1/responses", json=body, headers=keys.red.headers)
        assert again.headers["x-agentsched-program"] == made.headers["x-agentsched-program"]

    async def test_nobody_names_its_response_as_anothers_is_named(
        self, keyed: Any, keys: Any, upstream: Any
    ) -> None:
        numbers = itertools.count(1)

        async def responds(exchange: Any) -> None:
            # As vLLM: the caller's `request_id` is the response's id.
            fields = json.loads(exchange.body) if exchange.body else {}
            name = fields.get("request_id") or f"resp_{next(numbers)}"
            await exchange.json({"id": name, "status": "completed", "output": []})

        upstream.script = responds
        body = {"model": "m", "input": SECRET}
        await keyed.client.post("/v1/responses", json=body, headers=keys.red.headers)
        claim = {"model": "m", "input": "x", "store": False, "request_id": "resp_1"}
        made = await keyed.client.post("/v1/responses", json=claim, headers=keys.blue.headers)
        assert made.json()["id"] == "resp_2"
        theirs = await keyed.client.get("/v1/responses/resp_1", headers=keys.blue.headers)
        assert theirs.status_code == 404
        own = await keyed.client.get("/v1/responses/resp_1", headers=keys.red.headers)
        assert own.status_code == 200

    async def test_what_names_no_response_by_a_string_gets_none(
        self, keyed: Any, keys: Any, upstream: Any
    ) -> None:
        async def responds(exchange: Any) -> None:
            await exchange.json({"id": "resp_1", "status": "completed", "output": []})

        upstream.script = responds
        body = {"model": "m", "input": SECRET}
        await keyed.client.post("/v1/responses", json=body, headers=keys.red.headers)
        seen = len(upstream.exchanges)
        for previous in (["resp_1"], {"id": "resp_1"}, 5, True):
            wrong = body | {"previous_response_id": previous}
            refused = await keyed.client.post(
                "/v1/responses", json=wrong, headers=keys.blue.headers
            )
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "bad_field"
        assert len(upstream.exchanges) == seen, "an engine was asked"
        none = body | {"previous_response_id": None}
        fresh = await keyed.client.post("/v1/responses", json=none, headers=keys.blue.headers)
        assert fresh.status_code == 200

    @pytest.mark.parametrize("path", ["compact", "input_tokens"])
    async def test_what_stands_where_ids_of_responses_do(
        self, keyed: Any, keys: Any, upstream: Any, path: str
    ) -> None:
        """It is no stored response, but may go on from one."""

        async def responds(exchange: Any) -> None:
            await exchange.json({"id": "resp_1", "status": "completed", "output": []})

        upstream.script = responds
        body = {"model": "m", "input": SECRET}
        await keyed.client.post("/v1/responses", json=body, headers=keys.red.headers)
        url, seen = f"/v1/responses/{path}", len(upstream.exchanges)
        going_on = b'{"model": "m", "previous_response_id": "resp_1"}'
        twice = going_on[:-1] + b', "previous_response_id": null}'
        wide = going_on.decode().encode("utf-16")
        for content, status in ((going_on, 404), (twice, 400), (wide, 400), (b"", 400)):
            theirs = await keyed.client.post(url, content=content, headers=keys.blue.headers)
            assert theirs.status_code == status
        looked = await keyed.client.get(url, headers=keys.blue.headers)
        assert looked.status_code == 404
        assert len(upstream.exchanges) == seen, "an engine was asked"
        for key, content in ((keys.red, going_on), (keys.blue, b'{"model": "m", "input": "x"}')):
            own = await keyed.client.post(url, content=content, headers=key.headers)
            assert own.status_code == 200

    async def test_a_plan_tells_nothing_of_others(self, keyed: Any, keys: Any) -> None:
        await work(keyed, keys.red, SECRET, text=SECRET)
        url = f"{BASE}/plan/v1/chat/completions"
        body = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}
        headers = {"x-agentsched-program": SECRET}
        theirs = await keyed.client.post(url, json=body, headers=keys.blue.headers | headers)
        assert theirs.json()["program"] == f"blue/{SECRET}"
        assert not theirs.json().keys() & {"engines", "releases"}
        whole = await keyed.client.post(url, json=body, headers=keys.admin.headers | headers)
        assert "engines" in whole.json()

    async def test_an_operator_plans_for_whom_it_says(self, keyed: Any, keys: Any) -> None:
        """By the client's key beside its own, as the client sends it; or by a tenant's name."""
        url = f"{BASE}/plan/v1/chat/completions"
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

        async def whose(headers: dict[str, str]) -> str:
            shown = await keyed.client.post(url, json=body, headers=headers)
            assert shown.status_code == 200, shown.text
            return str(shown.json()["tenant"])

        ours = {"x-agentsched-key": keys.admin.token}
        named = {"x-agentsched-tenant": "blue"}
        assert await whose(ours | keys.red.headers) == "red"
        assert await whose(ours | keys.red.headers | named) == "red"  # it may not name others
        assert await whose(ours | keys.front.headers | named) == "blue"
        assert await whose(ours | named) == "blue"
        assert await whose(keys.admin.headers | named) == "blue"
        assert await whose(keys.admin.headers) == "default"
        assert await whose({"x-agentsched-key": ADMIN_KEY} | {"x-api-key": keys.red.token}) == "red"
        assert await whose({"Authorization": f"Bearer {ADMIN_KEY}"}) == "default"
        assert await whose(keys.red.headers | named) == "red"

    async def test_without_keys_of_ours_a_plan_is_for_whose_key_comes_with_it(
        self, proxy: Any
    ) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        for headers in ({"Authorization": "Bearer sk-theirs"}, {"x-agentsched-tenant": "red"}, {}):
            url = f"{BASE}/plan/v1/chat/completions"
            planned = await proxy.client.post(url, json=body, headers=headers)
            await proxy.client.post("/v1/chat/completions", json=body, headers=headers)
            arrived = proxy.turns.events(StepArrived)[-1]
            assert planned.json()["tenant"] == arrived.tenant


# -- whatever two tenants do, in any order -------------------------------------------------------

NAMES = st.sampled_from(
    ["a", "b", "red/a", "blue/a", "a#0", "%2F", "../a", "ü", "default", "x" * 200]
)
ACTIONS = st.tuples(
    st.sampled_from(["chat", "report", "release", "plan", "embed"]),
    st.sampled_from(["red", "blue"]),
    NAMES,
    st.integers(0, len(CLAIMS) - 1),
)


def views(programs: list[str], steps: list[str]) -> Iterator[str]:
    yield from ("/programs?limit=1000", "/tenants", "/engines", "/statistics", "/policies")
    yield "/overview"
    for key in [*programs, *steps]:
        for tail in ("", "/story", "/graph", "/graph?format=mermaid", "/timeline"):
            yield f"/programs/{quote(key, safe='')}{tail}"


async def act(proxy: Any, key: Any, action: str, name: str, number: int) -> None:
    headers, fields = CLAIMS[number](f"{key.tenant}-{name}")
    if not all(value.isascii() for value in headers.values()):
        return
    body = {"model": "m", "messages": [{"role": "user", "content": f"{key.tenant} says"}]}
    match action:
        case "chat":
            url, sent = "/v1/chat/completions", body | fields
        case "plan":
            url, sent = f"{BASE}/plan", body | fields
        case "embed":
            url, sent = "/v1/embeddings", {"model": "m", "input": name}
        case "report":
            url = f"{BASE}/tools"
            sent = {"event": "started", "program": name, "tool": f"{key.tenant}-tool"}
        case _:
            url, sent = (
                f"{BASE}/programs/{httpx.URL(path='/' + name).raw_path.decode()[1:]}/release",
                {},
            )
    answer = await proxy.client.post(url, json=sent, headers=key.headers | headers)
    assert answer.status_code in (200, 202, 400, 404), (url, answer.text)
    other = "blue" if key.tenant == "red" else "red"
    shown = answer.text + str(answer.headers)
    for said in (name, *headers.values()):
        shown = shown.replace(said, "")
    assert f"{other}-" not in shown
    assert f"{other}/" not in shown


class TestAnyOrder:
    @pytest.mark.slow
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(actions=st.lists(ACTIONS, min_size=4, max_size=14))
    def test_no_view_shows_the_others(
        self, start_keyed: Any, keys: Any, actions: list[tuple[str, str, str, int]]
    ) -> None:
        async def run() -> None:
            from proxy_upstream import running_upstream

            async with running_upstream() as engine, start_keyed(engine.url) as proxy:
                for action, tenant, name, number in actions:
                    await act(proxy, getattr(keys, tenant), action, name, number)
                programs = list(proxy.scheduler.programs)
                steps = [e.event.step for e in proxy.turns.entries if hasattr(e.event, "step")]
                for viewer, other in (("red", "blue"), ("blue", "red")):
                    for path in views(programs, steps[-4:]):
                        shown = await looked_at(proxy, getattr(keys, viewer), path)
                        if re.search(f"^/programs/{other}(/|%2F)", path):
                            assert shown.status_code == 404, path
                        assert f"{other}-" not in shown.text, path
                        assert f'"{other}' not in shown.text, path

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
