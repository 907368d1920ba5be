"""Whatever takes hints answers each in time, never raises, and stops when it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from shorthand import pin, prefetch, unpin

from agentsched.model import EngineId, HintOutcome, Prefetch
from agentsched.ports import Engine, EngineRequest, HintSink
from agentsched_adapters.fake import FakeEngine, Fault
from agentsched_adapters.hints import NoHints, WarmHints

ENGINE = EngineId("e")


class Known:
    """A source that knows one conversation; each request after the first is a fallback."""

    def __init__(self, *bodies: dict[str, object]) -> None:
        self._bodies = bodies

    def warm_requests(self, hint: Prefetch, engine: Engine) -> Sequence[EngineRequest]:
        return [
            EngineRequest(
                method="POST",
                target="/v1/chat/completions",
                headers=(("content-type", "application/json"),),
                body=json.dumps(body).encode(),
            )
            for body in self._bodies
        ]


GOOD: dict[str, object] = {
    "model": "fake",
    "messages": [{"role": "user", "content": "hello " * 50}],
    "max_tokens": 1,
}
BAD: dict[str, object] = {"model": "nobody", "messages": []}


def sinks() -> dict[str, HintSink]:
    return {
        "none": NoHints(),
        "warm": WarmHints(FakeEngine(ENGINE), Known(GOOD)),
        "fake": FakeEngine(ENGINE, pins=True),
        "fake without pins": FakeEngine(ENGINE),
    }


@pytest.mark.parametrize("name", list(sinks()))
async def test_every_hint_is_answered_also_when_it_comes_twice(name: str) -> None:
    sink = sinks()[name]
    for hint in (pin(), pin(), unpin(), unpin(), prefetch(), prefetch()):
        async with asyncio.timeout(60):
            assert isinstance(await sink.hint(hint), HintOutcome)


class TestWarmHints:
    async def test_it_sends_one_request(self) -> None:
        engine = FakeEngine(ENGINE)
        assert await WarmHints(engine, Known(GOOD)).hint(prefetch()) is HintOutcome.ACCEPTED
        assert len(engine.received) == 1

    async def test_what_the_engine_refuses_is_tried_the_other_way(self) -> None:
        engine = FakeEngine(ENGINE)
        assert await WarmHints(engine, Known(BAD, GOOD)).hint(prefetch()) is HintOutcome.ACCEPTED
        assert await WarmHints(engine, Known(BAD)).hint(prefetch()) is HintOutcome.REFUSED

    async def test_what_nobody_knows_is_refused(self) -> None:
        assert await WarmHints(FakeEngine(ENGINE), Known()).hint(prefetch()) is HintOutcome.REFUSED

    @pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.ERROR, Fault.CUT])
    async def test_a_fault_is_an_answer(self, fault: Fault) -> None:
        engine = FakeEngine(ENGINE)
        engine.fail_next(fault)
        assert await WarmHints(engine, Known(GOOD)).hint(prefetch()) is HintOutcome.FAILED

    async def test_it_stops_in_the_engine_when_it_is_cancelled(self) -> None:
        engine = FakeEngine(ENGINE)
        engine.hold()
        task = asyncio.create_task(WarmHints(engine, Known(GOOD)).hint(prefetch()))
        await engine.until(lambda load: bool((load.running or 0) + (load.waiting or 0)))
        task.cancel()
        await engine.until(lambda load: not (load.running or 0) + (load.waiting or 0))
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_silence_has_an_end(self) -> None:
        engine = FakeEngine(ENGINE)
        engine.hold()
        sink = WarmHints(engine, Known(GOOD), timeout_s=0.01)
        assert await sink.hint(prefetch()) is HintOutcome.FAILED
