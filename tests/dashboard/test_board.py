"""The dashboard's routes over HTTP: pages, one look, the stream, maps, and who sees what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

BASH = [{"type": "function", "function": {"name": "bash"}}]
FIXED = {"pin": {"name": "fixed"}}


class TestPages:
    async def test_page_and_what_it_needs(self, board: Any) -> None:
        page = await board.client.get("/agentsched/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for name, kind in (
            ("dashboard.js", "text/javascript"),
            ("dashboard.css", "text/css"),
            ("icon.svg", "image/svg+xml"),
        ):
            assert f"./{name}" in page.text
            part = await board.client.get(f"/agentsched/{name}")
            assert part.headers["content-type"].startswith(kind)
            assert len(part.content) > 100

    async def test_nothing_from_elsewhere_and_nothing_inline(self, board: Any) -> None:
        page = await board.client.get("/agentsched/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in page.text.replace("http-equiv", "")
        assert "<style" not in page.text
        assert page.text.count("<script") == page.text.count("src=") == 1
        assert page.headers["x-content-type-options"] == "nosniff"

    async def test_asked_again(self, board: Any) -> None:
        first = await board.client.get("/agentsched/dashboard.js")
        tag = {"If-None-Match": first.headers["etag"]}
        again = await board.client.get("/agentsched/dashboard.js", headers=tag)
        assert (again.status_code, again.content) == (304, b"")

    async def test_short_address(self, board: Any) -> None:
        answer = await board.client.get("/agentsched", follow_redirects=True)
        assert (answer.status_code, answer.url.path) == (200, "/agentsched/")

    @pytest.mark.parametrize("name", ["nothing.js", "..%2fboard.py", "board.py", "index.html.js"])
    async def test_nothing_else(self, board: Any, name: str) -> None:
        assert (await board.client.get(f"/agentsched/{name}")).status_code in (400, 404)


class TestOverview:
    async def test_programs_and_states(self, board: Any) -> None:
        await board.chat("a", "hello", tools=BASH)
        await board.chat("b", "hello", tenant="blue")
        shown = await board.get("/overview")
        rows = {row["program"].split("/")[-1]: row for row in shown["programs"]}
        assert rows["a"]["state"] == "paused"
        assert rows["a"]["tool"] == "bash"
        assert (rows["b"]["state"], rows["b"]["tool"]) == ("paused", "")
        assert shown["overview"]["steps_total"] == 2
        assert {t["tenant"] for t in shown["tenants"]} == {"red", "blue"}
        assert [e["is_up"] for e in shown["engines"]] == [True, True]
        sent = [d for d in shown["decisions"] if d["kind"] == "dispatch"]
        assert len(sent) == 2
        assert "place=" in sent[0]["reason"]

    async def test_computing_and_waiting(self, start: Any) -> None:
        limits = {"running_steps_per_engine_max": 1}
        async with start(count=1, limits=limits) as board:
            [engine] = board.engines
            engine.hold()
            first = asyncio.create_task(board.chat("a", "x"))
            await engine.until(lambda load: load.running + load.waiting == 1)
            second = asyncio.create_task(board.chat("b", "x"))
            async with asyncio.timeout(60):
                shown = await board.get("/overview")
                while shown["overview"]["waiting_steps"] != 1:
                    shown = await board.get("/overview")
            states = {r["program"].split("/")[-1]: r["state"] for r in shown["programs"]}
            assert states == {"a": "running", "b": "waiting"}
            assert shown["overview"]["oldest_wait_s"] > 0
            assert "hold" in {d["kind"] for d in shown["decisions"]}
            engine.release()
            await asyncio.gather(first, second)

    async def test_pins(self, start: Any) -> None:
        # Pins are for caches that cannot hold what programs want.
        async with start(count=1, blocks=30, policies=FIXED) as board:
            await board.chat("a", "hello", tools=BASH)
            shown = await board.get("/overview")
            assert shown["programs"][0]["state"] == "pinned"
            assert shown["engines"][0]["pinned_tokens"] > 0
            life = await board.get("/programs/red%2Fa/timeline")
            kinds = {span["kind"] for lane in life["lanes"] for span in lane["spans"]}
            assert kinds == {"wait", "compute", "tool", "pause", "pin"}
            told = await board.get("/programs/red%2Fa")
            [conversation] = told["conversations"]
            assert told["state"] == "pinned"
            assert conversation["pin"]["engine"] == "gpu-0"
            assert conversation["pin"]["tokens"] == shown["engines"][0]["pinned_tokens"]
            assert 0 < conversation["pin"]["expires_in_s"] <= 600
            [row] = (await board.get("/programs?state=pinned"))["programs"]
            assert row["program"] == "red/a"


class TestMap:
    async def test_a_shared_system_prompt_is_held_once(self, start: Any) -> None:
        async with start(count=1) as board:
            for name in "abc":
                await board.chat(name, f"task {name}")
            shown = await board.get("/engines/gpu-0/kv")
            assert len(shown["rows"]) == 3
            assert sum(b["tokens"] for b in shown["blocks"]) == shown["held_tokens"]
            [shared] = [b for b in shown["blocks"] if b["rows"] == 3]
            assert shared["begins"] == 0
            assert all(r["tokens"] > r["own_tokens"] for r in shown["rows"])

    async def test_unknown(self, board: Any) -> None:
        assert (await board.get("/engines/none/kv", status=404))["error"][
            "code"
        ] == "unknown_engine"
        unknown = await board.get("/programs/none/timeline", status=404)
        assert unknown["error"]["code"] == "unknown_program"


async def frames(board: Any, **headers: str) -> AsyncIterator[dict[str, Any]]:
    async with board.client.stream("GET", "/agentsched/v1/feed", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


@pytest.mark.slow
class TestFeed:
    async def test_all_first_then_changes(self, board: Any) -> None:
        await board.chat("a", "hello")
        told = frames(board)
        first = await anext(told)
        assert first["is_full"]
        assert len(first["programs"]) == 1
        await board.chat("b", "hello")
        async with asyncio.timeout(60):
            async for frame in told:
                assert not frame["is_full"]
                if frame["programs"]:
                    break
        assert [row["program"] for row in frame["programs"]] == ["red/b"]
        assert [d["kind"] for d in frame["decisions"]] == ["dispatch"]
        await board.client.post("/agentsched/v1/programs/red%2Fa/release")
        async with asyncio.timeout(60):
            async for frame in told:
                if frame["gone"]:
                    break
        assert frame["gone"] == ["red/a"]
        await told.aclose()

    async def test_ends_when_the_proxy_drains(self, board: Any) -> None:
        told = frames(board)
        await anext(told)
        board.gateway.draining.set()
        async with asyncio.timeout(60):
            assert [frame async for frame in told if frame["is_full"]] == []

    async def test_the_last_frame_says_that_the_proxy_drains(self, board: Any) -> None:
        await board.chat("a", "hello")
        told = frames(board)
        first = await anext(told)
        assert not first["overview"]["is_draining"]
        board.gateway.draining.set()
        async with asyncio.timeout(60):
            *_, last = [frame async for frame in told]
            # Who comes now is told nothing, lest it believe that there are no programs.
            assert [frame async for frame in frames(board)] == []
        assert last["overview"]["is_draining"]
        assert (last["is_full"], last["programs"], last["gone"]) == (False, [], [])
        assert last["programs_total"] == 1

    async def test_no_more_than_so_many(self, board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agentsched.dashboard.board._WATCHERS_MAX", 1)
        told = frames(board)
        await anext(told)
        refused = await board.get("/feed", status=503)
        assert refused["error"]["code"] == "too_many_watchers"
        await told.aclose()
