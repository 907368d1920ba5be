"""The embedded engine over raw HTTP: shapes, refusals, faults, aborts, metrics, real time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from live import small_engine

from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig, Scheduling
from agentsched_bench.engine.server import RunningEngine, ServerConfig, running_engine

#: vLLM's types for a body of bad values and for a body that does not validate.
REFUSED = ("BadRequestError", "Bad Request")
SMALL = small_engine(blocks=65, max_num_seqs=4, max_num_batched_tokens=512, max_model_len=2048)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


@pytest.fixture
async def engine() -> AsyncIterator[RunningEngine]:
    async with running_engine(ServerConfig(engine=SMALL, speed=200)) as served:
        yield served
        served.driver.model.check()


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": [{"role": "user", "content": text}], **fields}


def exact(tokens: int, text: str = "hi", **fields: Any) -> dict[str, Any]:
    return chat(text, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, **fields)


async def post(http: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, Any]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(url, json=body, headers=names) as response:
        return response.status, await response.json()


async def live(served: RunningEngine, count: int) -> None:
    """Wait until `count` generations are in the engine."""
    async with asyncio.timeout(60):
        await served.driver.has(count)


async def test_a_stream_has_vllms_chunks(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    body = exact(3, stream=True, stream_options={"include_usage": True})
    async with http.post(f"{engine.url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = (await response.read()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert set(chunks[1]["choices"][0]) == {
        "index",
        "delta",
        "logprobs",
        "finish_reason",
        "token_ids",
    }
    assert [len(chunk["choices"]) for chunk in chunks] == [1, 1, 1, 1, 0]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-2]["choices"][0]["stop_reason"] is None
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 0,
        "created_cache_tokens": 0,
    }
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert all("usage" not in chunk for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        ({}, 400, "messages"),
        (chat(model="other"), 404, "`other` does not exist"),
        (chat(max_tokens=0), 400, "at least 1"),
        (chat(max_tokens=5, min_tokens=6), 400, "min_tokens"),
        (chat(max_tokens=3000), 400, "max_model_len=2048"),
        (chat(max_tokens=2048), 400, "maximum context length is 2048"),
        (chat("word " * 5000), 400, "maximum context length is 2048"),
        (chat(vllm_xargs={"agentic_context": {"program": "p"}}), 400, "vllm_xargs"),
        (chat(n=2), 400, "n=1"),
        (chat(temperature=-1), 400, "temperature"),
        (chat(stream_options={"include_usage": True}), 400, "stream=True"),
        (chat(tool_choice="what"), 400, "tool_choice"),
        ({"model": "sim", "messages": [{"content": "x"}]}, 400, "role"),
        ({"model": "sim", "messages": []}, 400, "empty"),
    ],
)
async def test_bad_requests_get_vllms_error(
    http: aiohttp.ClientSession, engine: RunningEngine, body: Any, status: int, words: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(f"{engine.url}/v1/chat/completions", data=data) as response:
        error = (await response.json())["error"]
        assert response.status == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["type"] in (("NotFoundError",) if status == 404 else REFUSED)
    assert words in error["message"]


async def test_scalars_in_xargs_are_fine(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    xargs = {"session_id": "s", "deadline": 3.5, "tools": ["a", 1]}
    status, _ = await post(http, f"{engine.url}/v1/chat/completions", exact(2, vllm_xargs=xargs))
    assert status == 200


@pytest.mark.parametrize("refuses", [True, False])
async def test_priority_under_fcfs(http: aiohttp.ClientSession, refuses: bool) -> None:
    config = ServerConfig(engine=SMALL, speed=200, refuse_priority=refuses)
    async with running_engine(config) as served:
        url = f"{served.url}/v1/chat/completions"
        status, body = await post(http, url, exact(2, priority=1))
        assert status == (400 if refuses else 200)
        if refuses:
            assert "Priority scheduling is not enabled" in body["error"]["message"]
        assert (await post(http, url, exact(2, priority=0)))[0] == 200


async def test_priority_orders_the_queue(http: aiohttp.ClientSession) -> None:
    config = replace(SMALL, max_num_seqs=1, scheduling=Scheduling.PRIORITY)
    order: list[str] = []
    async with running_engine(ServerConfig(engine=config, speed=50)) as served:
        url = f"{served.url}/v1/chat/completions"
        served.driver.hang()

        async def ask(name: str, *, priority: int = 0, **headers: str) -> None:
            status, _ = await post(http, url, exact(20, name, priority=priority), **headers)
            assert status == 200
            order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask("late", priority=5))
            group.create_task(ask("soon", x_vllm_priority="-5"))
            group.create_task(ask("middle"))
            await live(served, 3)
            served.driver.resume()
    assert order == ["soon", "middle", "late"]


@pytest.mark.parametrize(("header", "first"), [("9", "b"), ("soon", "a")])
async def test_the_header_goes_before_the_body(
    http: aiohttp.ClientSession, header: str, first: str
) -> None:
    """One that is no number is passed over."""
    config = replace(SMALL, max_num_seqs=1, scheduling=Scheduling.PRIORITY)
    order: list[str] = []
    async with running_engine(ServerConfig(engine=config, speed=50)) as served:
        served.driver.hang()

        async def ask(name: str, *, priority: int, **headers: str) -> None:
            url = f"{served.url}/v1/chat/completions"
            status, _ = await post(http, url, exact(20, name, priority=priority), **headers)
            assert status == 200
            order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask("a", priority=1, x_vllm_priority=header))
            await live(served, 1)
            group.create_task(ask("b", priority=2))
            await live(served, 2)
            served.driver.resume()
    assert order[0] == first


async def test_a_hang_up_frees_the_engine_at_once(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    body = exact(1500, stream=True)
    response = await http.post(f"{engine.url}/v1/chat/completions", json=body)
    await response.content.readany()
    assert engine.driver.gauges().blocks_used > 0
    response.close()
    await live(engine, 0)
    assert engine.driver.gauges().blocks_used == 0


async def test_a_hang_up_of_a_waiting_request(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    engine.driver.hang()
    task = asyncio.create_task(post(http, f"{engine.url}/v1/chat/completions", exact(5)))
    await live(engine, 1)
    task.cancel()
    await live(engine, 0)
    engine.driver.resume()


async def test_the_queue_has_a_limit(http: aiohttp.ClientSession) -> None:
    config = EngineConfig.from_preset(preset("h100"))
    limited = EngineConfig(
        cost=config.cost,
        blocks=65,
        block_size=32,
        max_num_seqs=1,
        max_num_batched_tokens=512,
        max_model_len=2048,
        max_queued=1,
    )
    async with running_engine(ServerConfig(engine=limited, speed=100)) as served:
        url = f"{served.url}/v1/chat/completions"
        served.driver.hang()
        task = asyncio.create_task(post(http, url, exact(4)))
        await live(served, 1)
        status, body = await post(http, url, exact(4, "other"))
        assert (status, body["error"]["type"]) == (503, "ServiceUnavailableError")
        served.driver.resume()
        assert (await task)[0] == 200


async def test_metrics_under_vllms_names(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    url = f"{engine.url}/v1/chat/completions"
    for _ in range(2):
        status, answer = await post(http, url, exact(5, "word " * 200))
        assert status == 200
    async with http.get(f"{engine.url}/metrics") as response:
        text = await response.text()
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line and not line.startswith("#")
    }
    labels = 'engine="0",model_name="sim"'
    prompt = answer["usage"]["prompt_tokens"]
    assert prompt > 1000 // 4
    assert values[f"vllm:generation_tokens_total{{{labels}}}"] == 10
    assert values[f"vllm:prompt_tokens_total{{{labels}}}"] == 2 * prompt
    assert values[f"vllm:prefix_cache_queries_total{{{labels}}}"] == 2 * prompt
    assert values[f"vllm:prefix_cache_hits_total{{{labels}}}"] == (prompt - 1) // 32 * 32
    assert values[f"vllm:num_requests_running{{{labels}}}"] == 0
    assert values[f"vllm:kv_cache_usage_perc{{{labels}}}"] == 0
    assert values[f'vllm:request_success_total{{{labels},finished_reason="length"}}'] == 2
    assert values[f"vllm:time_to_first_token_seconds_count{{{labels}}}"] == 2
    assert 'num_gpu_blocks="65"' in text
    assert 'block_size="32"' in text


async def test_small_routes(http: aiohttp.ClientSession, engine: RunningEngine) -> None:
    for path in ("/health", "/ping"):
        async with http.get(engine.url + path) as response:
            assert response.status == 200
    async with http.get(f"{engine.url}/version") as response:
        assert "sim" in (await response.json())["version"]
    async with http.get(f"{engine.url}/load") as response:
        assert (await response.json()) == {"server_load": 0}
    _, tokens = await post(http, f"{engine.url}/tokenize", {"prompt": "naïve text"})
    assert tokens["count"] == len(tokens["tokens"])
    _, text = await post(http, f"{engine.url}/detokenize", {"tokens": tokens["tokens"]})
    assert text == {"prompt": "naïve text"}
    status, _ = await post(http, f"{engine.url}/tokenize", {})
    assert status == 400
    _, messages = await post(
        http, f"{engine.url}/tokenize", {"messages": [{"role": "user", "content": "hi"}]}
    )
    _, answer = await post(http, f"{engine.url}/v1/chat/completions", exact(2))
    assert messages["count"] == answer["usage"]["prompt_tokens"]
    async with http.post(f"{engine.url}/reset_prefix_cache") as response:
        assert response.status == 200


@pytest.mark.parametrize("fault", ["status=503;retry-after=3", "status=500", "status=429"])
async def test_fault_status(http: aiohttp.ClientSession, engine: RunningEngine, fault: str) -> None:
    async with http.post(
        f"{engine.url}/v1/chat/completions", json=exact(4), headers={"x-sim-fault": fault}
    ) as response:
        assert response.status == int(fault[7:10])
        assert response.headers.get("Retry-After") == ("3" if "retry" in fault else None)
        assert "error" in await response.json()


@pytest.mark.parametrize("stream", [True, False])
async def test_fault_cut(http: aiohttp.ClientSession, engine: RunningEngine, stream: bool) -> None:
    with pytest.raises(aiohttp.ClientError):
        async with http.post(
            f"{engine.url}/v1/chat/completions",
            json=exact(20, stream=stream),
            headers={"x-sim-fault": "cut-after=5"},
        ) as response:
            await response.read()
    await live(engine, 0)


async def test_fault_early_end(http: aiohttp.ClientSession, engine: RunningEngine) -> None:
    async with http.post(
        f"{engine.url}/v1/chat/completions",
        json=exact(20, stream=True),
        headers={"x-sim-fault": "eof-after=5"},
    ) as response:
        data = await response.read()
    assert data.count(b"data: ") == 5
    assert b"[DONE]" not in data


async def test_fault_error_event(http: aiohttp.ClientSession, engine: RunningEngine) -> None:
    async with http.post(
        f"{engine.url}/v1/chat/completions",
        json=exact(20, stream=True),
        headers={"x-sim-fault": "error-event"},
    ) as response:
        events = (await response.read()).decode().split("\n\n")
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == 500
    assert events[2] == "data: [DONE]"


async def test_fault_hang_is_ended_by_the_client(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await post(http, f"{engine.url}/v1/chat/completions", exact(2), x_sim_fault="hang")


async def test_fault_slow_takes_longer(http: aiohttp.ClientSession, engine: RunningEngine) -> None:
    loop = asyncio.get_running_loop()
    url = f"{engine.url}/v1/chat/completions"
    before = engine.driver.gauges().busy_ns
    started_at = loop.time()
    status, _ = await post(http, url, exact(4), x_sim_fault="slow=100;delay=0.01")
    assert status == 200
    # What the engine was busy for, many times over: a machine can only make it longer.
    busy_s = (engine.driver.gauges().busy_ns - before) / 1e9 / engine.driver.speed
    assert busy_s > 0
    assert loop.time() - started_at > 0.01 + 50 * busy_s


async def test_unknown_faults_are_refused(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    status, body = await post(
        http, f"{engine.url}/v1/chat/completions", exact(2), x_sim_fault="explode"
    )
    assert status == 400
    assert "explode" in body["error"]["message"]
    status, _ = await post(http, f"{engine.url}/sim/faults", {"kind": "status=700"})
    assert status == 400


async def test_standing_faults_count_down(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    url = f"{engine.url}/v1/chat/completions"
    await post(http, f"{engine.url}/sim/faults", {"kind": "status=503", "count": 2})
    statuses = [(await post(http, url, exact(2)))[0] for _ in range(3)]
    assert statuses == [503, 503, 200]
    async with http.delete(f"{engine.url}/sim/faults") as response:
        assert (await response.json()) == {"faults": []}


async def test_a_crash_breaks_streams_and_loses_the_cache(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    url = f"{engine.url}/v1/chat/completions"
    warm = exact(2, "word " * 200)
    await post(http, url, warm)
    stream = await http.post(url, json=exact(1500, stream=True))
    await stream.content.readany()
    await post(http, f"{engine.url}/sim/crash", {})
    with pytest.raises(aiohttp.ClientError):
        await stream.read()
    with pytest.raises(aiohttp.ClientError):
        await post(http, url, warm)
    await post(http, f"{engine.url}/sim/resume", {})
    _, answer = await post(http, url, warm)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_hung_engine_is_silent_until_it_resumes(
    http: aiohttp.ClientSession, engine: RunningEngine
) -> None:
    await post(http, f"{engine.url}/sim/hang", {})
    task = asyncio.create_task(post(http, f"{engine.url}/v1/chat/completions", exact(2)))
    health = asyncio.create_task(http.get(f"{engine.url}/health"))
    _, state = await post(http, f"{engine.url}/sim/hang", {})
    assert state["gauges"]["running"] == 0
    assert not task.done()
    assert not health.done()
    await post(http, f"{engine.url}/sim/resume", {})
    assert (await task)[0] == 200
    (await health).close()


async def test_scripted_by_header(http: aiohttp.ClientSession, engine: RunningEngine) -> None:
    url = f"{engine.url}/v1/chat/completions"
    answer = json.dumps({"text": "as told", "finish": "length"})
    _, body = await post(http, url, chat(), x_sim_answer=answer)
    assert body["choices"][0]["message"]["content"] == "as told"
    assert body["choices"][0]["finish_reason"] == "length"
    status, _ = await post(http, url, chat(), x_sim_answer="{")
    assert status == 400


@pytest.mark.slow
async def test_real_time_follows_the_cost_model(http: aiohttp.ClientSession) -> None:
    async with running_engine(ServerConfig(engine=SMALL, speed=20)) as served:
        body = exact(60, "word " * 1000)
        assert (await post(http, f"{served.url}/v1/chat/completions", body))[0] == 200
        gauges = served.driver.gauges()
        # The engine cannot have been busy for longer than it has been alive.
        assert 0 < gauges.busy_ns <= served.driver.now()
        assert gauges.generation_tokens == 60
