"""What engines do over the network beyond the port: other dialects, and metrics by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentsched_adapters import VllmEngine
from agentsched_adapters.detect import detect

pytestmark = pytest.mark.slow

TEXT = "Say something about blocks, and then about prefixes of blocks. " * 8
METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:cache_config_info",
)


@pytest.fixture(params=["embedded", pytest.param("vllm", marks=pytest.mark.vllm)])
def kind(request: pytest.FixtureRequest) -> str:
    """Every engine that listens."""
    return str(request.param)


async def test_it_is_recognised(client: Any) -> None:
    engine = await detect(client.engine.id, client.engine.url + "/v1/")
    assert isinstance(engine, VllmEngine)
    await engine.aclose()


async def test_metrics_have_vllms_names(client: Any) -> None:
    status, page = await client.raw("/metrics")
    assert status == 200
    missing = [name for name in METRICS if f"\n{name}{{".encode() not in page]
    assert missing == []


async def test_responses_usage(client: Any) -> None:
    status, answer = await client.post("/v1/responses", input=TEXT, max_output_tokens=7)
    assert status == 200
    usage = answer["usage"]
    assert usage["input_tokens"] > 32
    assert 0 < usage["output_tokens"] <= 7
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    events = await client.events("/v1/responses", input=TEXT, max_output_tokens=7)
    assert events[0]["type"] == "response.created"
    # An answer that its limit ends is complete for the engine's stream, or said to be incomplete.
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    last = events[-1]["response"]["usage"]
    assert last["input_tokens"] == usage["input_tokens"]
    assert last["input_tokens_details"]["cached_tokens"] > 0


async def test_a_response_is_announced_before_it_is_computed(client: Any, prompt: Any) -> None:
    """So the first events of such a stream say nothing of how its answer comes along."""
    fields = {"model": client.model, "input": TEXT, "max_output_tokens": 7, "stream": True}

    async def attempt() -> bytes:
        async with client.all_slots_taken(prompt):
            answer = await client.open("/v1/responses", msgspec.json.encode(fields))
            said = b""
            try:
                async for chunk in answer.chunks():
                    said += chunk
                    if said.count(b"\n\n") == 2:
                        break
                await client.while_taken(lambda load: load.waiting == 1)
            finally:
                await answer.aclose()
        return said

    said = await client.in_time(attempt)
    lines = [line for line in said.split(b"\n") if line.startswith(b"event: ")]
    assert lines == [b"event: response.created", b"event: response.in_progress"]


def _input_tokens(usage: Any) -> int:
    """What was found in the cache and what was put there are counted apart in this dialect."""
    apart = ("cache_read_input_tokens", "cache_creation_input_tokens")
    return int(usage["input_tokens"]) + sum(int(usage.get(name) or 0) for name in apart)


async def test_messages_usage(client: Any) -> None:
    messages = [{"role": "user", "content": TEXT}]
    status, answer = await client.post("/v1/messages", messages=messages, max_tokens=7)
    assert status == 200
    assert answer["type"] == "message"
    assert _input_tokens(answer["usage"]) > 32
    assert 0 < answer["usage"]["output_tokens"] <= 7
    events = await client.events("/v1/messages", messages=messages, max_tokens=7)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    [delta] = [event for event in events if event["type"] == "message_delta"]
    assert delta["delta"]["stop_reason"] in ("max_tokens", "end_turn")
    assert 0 < delta["usage"]["output_tokens"] <= 7
    assert _input_tokens(delta["usage"]) == _input_tokens(answer["usage"])


async def test_count_tokens(client: Any) -> None:
    messages = [{"role": "user", "content": TEXT}]
    status, answer = await client.post("/v1/messages/count_tokens", messages=messages)
    assert status == 200
    assert answer["input_tokens"] > 32


async def test_messages_errors_have_their_own_shape(client: Any) -> None:
    status, answer = await client.post("/v1/messages", messages=[], max_tokens="many")
    assert status == 400
    assert answer["error"]["message"]


async def test_tokenize_and_back(client: Any) -> None:
    status, answer = await client.post("/tokenize", prompt=TEXT)
    assert status == 200
    assert answer["count"] == len(answer["tokens"])
    status, back = await client.post("/detokenize", tokens=answer["tokens"])
    assert status == 200
    assert back["prompt"] == TEXT


async def test_token_ids_of_answers_where_they_are_asked_for(client: Any, prompt: Any) -> None:
    ids = prompt("ids", 96)
    fields = {"prompt": ids, "max_tokens": 64, "ignore_eos": True}
    status, whole = await client.post("/v1/completions", **fields, return_token_ids=True)
    assert status == 200
    (choice,) = whole["choices"]
    assert choice["prompt_token_ids"] == ids
    assert len(choice["token_ids"]) == 64

    events = await client.events("/v1/completions", **fields, seed=1, return_token_ids=True)
    choices = [choice for event in events for choice in event["choices"]]
    assert choices[0]["prompt_token_ids"] == ids
    assert not any(choice.get("prompt_token_ids") for choice in choices[1:])
    assert sum(len(choice["token_ids"]) for choice in choices) == 64
    # They are what lies in the cache: the last one was never computed.
    assert await client.cached([*ids, *choice["token_ids"], 5]) >= 128

    _, plain = await client.post("/v1/completions", **fields)
    assert plain["choices"][0]["token_ids"] is None
    assert plain["choices"][0]["prompt_token_ids"] is None
