"""Any bytes on the socket: an answer or an end in time, and nothing smuggled to the engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.config import Config
from agentsched_bench.fuzz.mangle import Mangler
from agentsched_bench.fuzz.nasty import NastyEngine
from agentsched_bench.fuzz.raw import Exchange, RawAnswer
from agentsched_bench.fuzz.rig import Rig, check_shape, rigged

pytestmark = pytest.mark.slow
#: Far more than the proxy's patience with a client, and far less than for ever.
IN_TIME_S = 60.0


@pytest.fixture(scope="module")
def rig(start: Callable[[Any], Any], nasty: NastyEngine) -> Rig:
    config = {
        "port": 0,
        "engines": [{"url": nasty.url, "kind": "openai"}],
        "http": {"header_timeout": "150ms", "body_timeout": "150ms", "keepalive_timeout": "100ms"},
    }
    built: Rig = start(rigged(Config.model_validate(config)))
    return built


async def volley(rig: Rig, nasty: NastyEngine, shots: Sequence[Sequence[bytes]]) -> list[Exchange]:
    """Connections side by side; every answer is sound, and so is what reached the engine."""
    nasty.seen.clear()
    came = await asyncio.gather(*(rig.throw(pieces, timeout_s=IN_TIME_S) for pieces in shots))
    await rig.check()
    assert not nasty.unsound
    relayed = 0
    for pieces, exchange in zip(shots, came, strict=True):
        assert exchange.is_closed, f"held for {IN_TIME_S:g} s: {pieces!r}"
        for answer in answers_to(pieces, exchange):
            if answer.body or answer.status < 400:
                check_shape("", answer)
            relayed += bool(answer.header("x-agentsched-engine"))
    assert len(nasty.seen) <= relayed, [(seen.method, seen.target) for seen in nasty.seen]
    return came


def answers_to(pieces: Sequence[bytes], exchange: Exchange) -> list[RawAnswer]:
    """HEAD is answered without a body, and which answer is whose is known for the first only."""
    is_head = b"".join(pieces).lstrip(b"\r\n").startswith(b"HEAD ")
    return exchange.answers("HEAD" if is_head else "GET")


def is_json(answer: RawAnswer) -> bool:
    return bool(answer.body) and answer.header("content-type").startswith("application/json")


@settings(settings.get_profile("fuzz-few"))
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=24))
def test_mangled(rig: Rig, nasty: NastyEngine, run: Callable[[Any], Any], seeds: list[int]) -> None:
    run(volley(rig, nasty, [Mangler(random.Random(seed)).pieces() for seed in seeds]))


@settings(settings.get_profile("fuzz-few"))
@given(shots=st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=3), max_size=16))
def test_noise(
    rig: Rig, nasty: NastyEngine, run: Callable[[Any], Any], shots: list[list[bytes]]
) -> None:
    run(volley(rig, nasty, shots))


@pytest.mark.parametrize("line", [b"PATCH /agentsched/v1/engines/x/drain", b"GET /nowhere"])
def test_an_odd_expectation(
    rig: Rig, nasty: NastyEngine, run: Callable[[Any], Any], line: bytes
) -> None:
    """Once refused by the library in words of its own."""
    shot = [line + b" HTTP/1.1\r\nHost: localhost\r\nExpect: 200-ok\r\n\r\n"]
    (came,) = run(volley(rig, nasty, [shot]))
    (answer,) = came.answers()
    assert answer.status == 417
    assert is_json(answer)


def test_still_recognises(rig: Rig, run: Callable[[Any], Any]) -> None:
    run(rig.converse())
