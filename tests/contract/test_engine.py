"""What every engine does, real or not: one suite, asked through the port that the proxy uses.

Counts and order only, never seconds: what is slow on one machine must not fail there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agentsched.model import Capabilities

pytestmark = pytest.mark.slow

BLOCK = 32
MESSAGES = [
    {"role": "system", "content": "You are an agent. " * 20},
    {"role": "user", "content": "Say something about blocks."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "bash",
            "description": "Run a command.",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
        },
    }
]
Prompt = Callable[[str, int], list[int]]


async def test_probe_tells_what_it_is(client: Any, kind: str) -> None:
    found = client.engine.capabilities
    # The embedded engine has no route that tells its scheduler's settings.
    settings = (found.priority, found.running_max)
    assert settings in ([(True, 4)] if kind != "embedded" else [(True, 4), (False, None)])
    assert replace(found, priority=True, running_max=4) == Capabilities(
        prefix_cache=True,
        priority=True,
        session_id=found.session_id if kind == "embedded" else True,
        cached_tokens=True,
        cache_salt=found.cache_salt if kind == "fake" else True,
        pins=False,
        warm=True,
        block_size=BLOCK,
        kv_tokens=(256 if kind == "fake" else 257) * BLOCK,
        running_max=4,
        context_max=4_096,
        models=("tiny",),
    )


async def test_health_and_models(client: Any) -> None:
    assert (await client.raw("/health"))[0] == 200
    status, body = await client.raw("/v1/models")
    assert status == 200
    assert b'"tiny"' in body
    assert (await client.raw("/v1/no-such-thing"))[0] == 404


# -- the prefix cache ---------------------------------------------------------------------------


async def test_a_prompt_is_cached_block_by_block(client: Any, prompt: Prompt) -> None:
    whole = prompt("a", 10 * BLOCK + 5)
    assert await client.cached(whole) == 0
    assert await client.cached(whole) == 10 * BLOCK
    # A prompt of whole blocks: its last token must be computed, so its last block is.
    assert await client.cached(whole[: 10 * BLOCK]) == 9 * BLOCK


async def test_a_longer_prompt_begins_with_the_shorter(client: Any, prompt: Prompt) -> None:
    first = prompt("a", 4 * BLOCK + 7)
    await client.cached(first)
    assert await client.cached(first + prompt("b", 3 * BLOCK)) == 4 * BLOCK


async def test_a_change_ends_the_common_prefix(client: Any, prompt: Prompt) -> None:
    first = prompt("a", 6 * BLOCK + 1)
    await client.cached(first)
    changed = list(first)
    changed[2 * BLOCK] = 99
    assert await client.cached(changed) == 2 * BLOCK
    # The same block behind another beginning is another block.
    assert await client.cached(prompt("b", BLOCK) + first[BLOCK:]) == 0


async def test_a_conversation_that_grows_is_a_prefix(client: Any) -> None:
    turns = [*MESSAGES, {"role": "assistant", "content": "Blocks are square. " * 10}]
    turns.append({"role": "user", "content": "And then?"})
    _, first = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=1)
    _, second = await client.post("/v1/chat/completions", messages=turns, max_tokens=1)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > first["usage"]["prompt_tokens"] - 2 * BLOCK


async def test_under_pressure_the_tail_goes_before_the_head(client: Any, prompt: Prompt) -> None:
    kept = prompt("kept", 99 * BLOCK + 31)  # 100 blocks, the last of them partial
    await client.cached(kept)
    await client.cached(prompt("other", 99 * BLOCK + 31))
    # 56 of 256 blocks are older; 40 more must come from the end of what is oldest then.
    await client.cached(prompt("pressure", 95 * BLOCK + 31))
    left = await client.cached(kept)
    assert 59 * BLOCK <= left <= 61 * BLOCK


async def test_under_pressure_the_least_recent_goes_first(client: Any, prompt: Prompt) -> None:
    touched, idle = prompt("touched", 60 * BLOCK + 1), prompt("idle", 60 * BLOCK + 1)
    await client.cached(touched)
    await client.cached(idle)
    assert await client.cached(touched) == 60 * BLOCK
    for name in ("x", "y"):
        await client.cached(prompt(name, 90 * BLOCK))
    assert await client.cached(touched) == 60 * BLOCK
    assert await client.cached(idle) < 60 * BLOCK


# -- order and abort ----------------------------------------------------------------------------


async def test_the_more_urgent_goes_first(client: Any, prompt: Prompt) -> None:
    assert await client.served_order(prompt) == ["sooner", "later"]


async def test_admission_fields_are_taken(client: Any, prompt: Prompt) -> None:
    fields = client.engine.admission_fields(priority=3, session="s1")
    assert fields["priority"] == 3
    assert ("session_id" in fields) is client.engine.capabilities.session_id
    await client.generate(prompt("a", 8), **fields)
    assert client.engine.admission_fields(priority=0, session="") == {}
    assert list(client.engine.admission_headers(priority=0)) == []


async def test_hanging_up_frees_the_engine(client: Any, prompt: Prompt) -> None:
    async def hang_up() -> None:
        async with client.all_slots_taken(prompt) as streams:
            waiting = await client.stream(prompt("waiting", 8), tokens=1_500)
            try:
                await client.while_taken(lambda load: load.waiting == 1)
            finally:
                await waiting.aclose()
            # One that waits and one that runs: both leave, and nobody takes their place.
            await client.while_taken(lambda load: load.waiting == 0)
            await streams[0].aclose()
            await client.one_left()

    await client.in_time(hang_up)


async def test_hanging_up_before_the_answer_frees_the_engine(client: Any, prompt: Prompt) -> None:
    asking = asyncio.create_task(client.generate(prompt("a", 8), tokens=3_000))
    await client.until(lambda load: load.running == 1)
    asking.cancel()
    await asyncio.wait((asking,))
    assert asking.cancelled()
    await client.until(lambda load: load.running == 0)


# -- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": TOOLS}),
        ("/v1/completions", {"prompt": "Blocks are square. " * 20}),
    ],
    ids=["chat", "chat-tools", "completions"],
)
async def test_usage_with_and_without_a_stream(client: Any, target: str, fields: Any) -> None:
    fields = fields | {"max_tokens": 7, "ignore_eos": True}
    status, whole = await client.post(target, **fields)
    assert status == 200
    usage = whole["usage"]
    assert usage["completion_tokens"] == 7
    assert usage["prompt_tokens"] > BLOCK
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7
    assert whole["choices"][0]["finish_reason"] == "length"

    asked = await client.events(target, **fields, stream_options={"include_usage": True})
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["prompt_tokens"] == usage["prompt_tokens"]
    assert asked[-1]["usage"]["completion_tokens"] == 7
    assert asked[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert [c["finish_reason"] for e in asked for c in e["choices"]][-1] == "length"
    plain = await client.events(target, **fields)
    assert not any(event.get("usage") for event in plain)


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"model": "tiny"}'])
async def test_what_is_no_request(client: Any, target: str, body: bytes) -> None:
    status, answer = await client.raw(target, body)
    assert status == 400
    assert b'"error"' in answer
    assert b'"message"' in answer


async def test_what_is_no_text(client: Any) -> None:
    # vLLM answers `{"detail": ...}` here: the one error that is not in OpenAI's shape.
    status, _ = await client.raw("/v1/chat/completions", b"\xff")
    assert status == 400


async def test_unknown_model(client: Any) -> None:
    status, answer = await client.post("/v1/chat/completions", model="other", messages=MESSAGES)
    assert status == 404
    assert "other" in answer["error"]["message"]


async def test_too_long(client: Any, prompt: Prompt) -> None:
    status, answer = await client.post("/v1/completions", prompt=prompt("a", 4_097), max_tokens=1)
    assert status == 400
    assert "4096" in answer["error"]["message"]


async def test_errors_leave_nothing_behind(client: Any) -> None:
    await client.raw("/v1/completions", b"{")
    load = await client.engine.load()
    assert (load.running, load.waiting) == (0, 0)
