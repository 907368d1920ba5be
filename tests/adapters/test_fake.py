"""What the fake has beyond the contract: faults, holding, replies and pins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from shorthand import pin, prefetch, unpin

from agentsched.model import EngineId, EngineTimeout, EngineUnreachable, HintOutcome
from agentsched.ports import EngineRequest
from agentsched_adapters import FakeEngine, NoHints
from agentsched_adapters.fake import Fault
from agentsched_adapters.fake_wire import FakeReply

ID = EngineId("fake")


def ask(prompt: object = "some words", *, tokens: int = 4, **fields: Any) -> EngineRequest:
    body = {"model": "fake", "messages": [{"role": "user", "content": prompt}]}
    return EngineRequest(
        method="POST",
        target="/v1/chat/completions",
        headers=(),
        body=msgspec.json.encode(body | {"max_tokens": tokens} | fields),
    )


async def answered(engine: FakeEngine, request: EngineRequest) -> Any:
    answer = await engine.send(request)
    try:
        return msgspec.json.decode(await answer.read())
    finally:
        await answer.aclose()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine(ID, blocks=20, block_size=4, pins=True)
    yield fake
    await fake.aclose()
    load = fake._gauges()
    assert (load.running, load.waiting) == (0, 0)


async def test_faults_come_in_the_order_asked_for(engine: FakeEngine) -> None:
    engine.fail_next(Fault.UNREACHABLE, Fault.SILENT, Fault.ERROR, Fault.CUT)
    with pytest.raises(EngineUnreachable):
        await engine.send(ask())
    with pytest.raises(EngineTimeout):
        await engine.send(ask())
    assert (await engine.send(ask())).status == 500
    stream = await engine.send(ask(stream=True))
    assert stream.status == 200
    with pytest.raises(EngineUnreachable, match="cut"):
        await stream.read()
    assert (await answered(engine, ask()))["usage"]["completion_tokens"] == 4
    assert len(engine.received) == 5


async def test_a_hanging_answer_ends_when_it_is_closed(engine: FakeEngine) -> None:
    engine.fail_next(Fault.HANG)
    stream = await engine.send(ask(stream=True))
    chunks = stream.chunks()
    assert (await anext(chunks)).startswith(b"data: ")
    await engine.until(lambda load: load.running == 1)
    await stream.aclose()
    assert (await engine.load()).running == 0


async def test_closing_before_anything_happened(engine: FakeEngine) -> None:
    stream = await engine.send(ask(stream=True))
    await stream.aclose()
    assert (await engine.load()).running == 0
    assert engine.pool.held == 0


async def test_a_held_engine_takes_and_keeps(engine: FakeEngine) -> None:
    engine.hold()
    asking = asyncio.create_task(answered(engine, ask()))
    await engine.until(lambda load: load.waiting == 1)
    engine.release()
    assert (await asking)["choices"][0]["finish_reason"] == "length"


async def test_a_down_engine(engine: FakeEngine) -> None:
    engine.is_down = True
    for call in (engine.probe(), engine.load(), engine.send(ask())):
        with pytest.raises(EngineUnreachable, match="down"):
            await call


async def test_replies_and_tool_calls() -> None:
    engine = FakeEngine(ID, reply=lambda _: FakeReply(calls=(("bash", '{"command":"ls"}'),)))
    whole = await answered(engine, ask())
    [call] = whole["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "bash", "arguments": '{"command":"ls"}'}
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    stream = await engine.send(ask(stream=True))
    assert b'"tool_calls":[{' in await stream.read()
    await engine.aclose()


async def test_a_streamed_reply_is_whole() -> None:
    text = "one two three  four five six seven"
    engine = FakeEngine(ID, reply=lambda _: FakeReply(text=text))
    stream = await engine.send(ask(stream=True, tokens=3))
    lines = (await stream.read()).split(b"\n\n")
    assert lines[-2:] == [b"data: [DONE]", b""]
    deltas = [msgspec.json.decode(line[6:])["choices"][0]["delta"] for line in lines[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == text
    await engine.aclose()


async def test_a_reply_that_raises_is_heard() -> None:
    def reply(_: object) -> FakeReply:
        raise RuntimeError("the test's own mistake")

    engine = FakeEngine(ID, reply=reply)
    with pytest.raises(RuntimeError, match="own mistake"):
        await engine.send(ask())
    await engine.aclose()


async def test_a_pin_outlives_pressure_until_it_ends(engine: FakeEngine) -> None:
    async def cached(name: str) -> int:
        fields = {"model": "fake", "prompt": [ord(name)] * 25, "max_tokens": 1, "session_id": name}
        request = EngineRequest(
            method="POST", target="/v1/completions", headers=(), body=msgspec.json.encode(fields)
        )
        usage = (await answered(engine, request))["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert await cached("a") == 0
    assert await engine.hint(pin(conversation="a", engine=ID)) is HintOutcome.ACCEPTED
    for other in "bcdefgh":
        await cached(other)
    assert await cached("a") == 24
    for _ in range(2):
        assert await engine.hint(unpin(engine=ID)) is HintOutcome.ACCEPTED
    for other in "bcdefgh":
        await cached(other)
    assert await cached("a") == 0
    assert engine.pool.held == 0


async def test_hints_that_cannot_be_followed(engine: FakeEngine) -> None:
    unseen = pin(conversation="never seen", engine=ID)
    assert await engine.hint(unseen) is HintOutcome.REFUSED
    assert await engine.hint(prefetch(engine=ID)) is HintOutcome.UNSUPPORTED
    assert await FakeEngine(ID).hint(unseen) is HintOutcome.UNSUPPORTED
    assert await NoHints().hint(unseen) is HintOutcome.UNSUPPORTED
