"""SGLang's surface, as its documentation has it, behind a scripted server."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from sglang_server import INFO, sglang_app

from agentsched.model import EngineId, EngineLoad, EngineRefused
from agentsched_adapters.detect import detect
from agentsched_adapters.sglang import SglangEngine

ID = EngineId("e")


@pytest.mark.parametrize("at", ["/server_info", "/get_server_info"])
async def test_it_is_known_by_its_arguments(at: str) -> None:
    async with TestServer(sglang_app(INFO, at=at)) as server:
        engine = await detect(ID, str(server.make_url("/")))
        assert isinstance(engine, SglangEngine)
        found = await engine.probe()
        assert engine.version == "0.5.19"
        assert (found.kv_tokens, found.block_size, found.running_max) == (98_328, 16, 128)
        assert (found.context_max, found.models) == (32_768, ("m",))
        assert found.prefix_cache
        assert found.priority
        assert found.cached_tokens
        assert not found.pins
        assert await engine.load() == EngineLoad(running=3, waiting=7, kv_usage=0.28)
        await engine.aclose()


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, -5),
        ({"schedule_low_priority_values_first": True}, 5),
        ({"enable_priority_scheduling": False}, None),
    ],
)
async def test_greater_is_sooner_there(settings: dict[str, bool], sent: int | None) -> None:
    async with TestServer(sglang_app(INFO | settings)) as server:
        engine = SglangEngine(ID, str(server.make_url("/")))
        assert engine.admission_fields(priority=5, session="s") == {}  # not probed yet
        await engine.probe()
        wanted = {} if sent is None else {"priority": sent}
        assert engine.admission_fields(priority=5, session="s") == wanted
        # One that names none would be the last of all there, behind every warm-up.
        ordinary = {} if sent is None else {"priority": 0}
        assert engine.admission_fields(priority=0, session="s") == ordinary
        await engine.aclose()


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"enable_session_radix_cache": True}, {"priority": -5, "session_id": "s"}),
        (
            {"enable_session_radix_cache": True, "enable_priority_scheduling": False},
            {"session_id": "s"},
        ),
        ({"enable_session_radix_cache": False}, {"priority": -5}),
        ({}, {"priority": -5}),  # of before June 2026
    ],
)
async def test_a_cache_that_tells_sessions_apart_is_told_whose_a_step_is(
    settings: dict[str, bool], sent: dict[str, object]
) -> None:
    async with TestServer(sglang_app(INFO | settings)) as server:
        engine = SglangEngine(ID, str(server.make_url("/")))
        found = await engine.probe()
        assert found.session_id == ("session_id" in sent)
        assert engine.admission_fields(priority=5, session="s") == sent
        assert "session_id" not in engine.admission_fields(priority=5, session="")
        await engine.aclose()


async def test_counts_of_ranks_add_up_and_their_shares_do_not() -> None:
    ranks = "\n".join(
        f'sglang:num_running_reqs{{dp_rank="{rank}"}} {running}\n'
        f'sglang:token_usage{{dp_rank="{rank}"}} {usage}'
        for rank, running, usage in ((0, 3, 0.5), (1, 1, 0.25))
    )
    async with TestServer(sglang_app(INFO, metrics=f"# x\n{ranks}\n")) as server:
        engine = SglangEngine(ID, str(server.make_url("/")))
        await engine.probe()
        assert await engine.load() == EngineLoad(running=4, kv_usage=0.375)
        await engine.aclose()


@pytest.mark.parametrize(
    ("settings", "running_max"),
    [
        ({"dp_size": 2}, 256),
        ({"dp_size": 2, "enable_dp_attention": True}, 128),
        ({"dp_size": 2, "max_running_requests": None}, None),
    ],
)
async def test_what_is_said_of_one_rank_counts_for_each(
    settings: dict[str, Any], running_max: int | None
) -> None:
    async with TestServer(sglang_app(INFO | settings)) as server:
        engine = SglangEngine(ID, str(server.make_url("/")))
        found = await engine.probe()
        assert (found.kv_tokens, found.running_max) == (2 * 98_328, running_max)
        await engine.aclose()


async def test_without_gauges_it_is_only_there_or_not() -> None:
    async with TestServer(sglang_app(INFO | {"enable_metrics": False})) as server:
        engine = SglangEngine(ID, str(server.make_url("/")))
        await engine.probe()
        assert await engine.load() == EngineLoad()
        await engine.aclose()


@pytest.mark.parametrize("info", [{}, [], {"max_total_num_tokens": "many"}])
async def test_another_make_is_refused(info: Any) -> None:
    async with TestServer(sglang_app(info)) as server:
        engine = SglangEngine(ID, str(server.make_url("/")))
        with pytest.raises(EngineRefused, match="SGLang"):
            await engine.probe()
        await engine.aclose()
