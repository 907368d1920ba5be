"""Paths, queries and methods that nobody meant: the control plane and all else answer soundly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.config import Config
from agentsched_bench.fuzz.mangle import Mangler
from agentsched_bench.fuzz.nasty import NastyEngine
from agentsched_bench.fuzz.raw import RawAnswer
from agentsched_bench.fuzz.rig import Rig, check_shape, rigged

pytestmark = pytest.mark.slow
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"])


@pytest.fixture(scope="module", params=["open", "keyed"])
def rig(request: pytest.FixtureRequest, start: Callable[[Any], Any], nasty: NastyEngine) -> Rig:
    config: dict[str, Any] = {"port": 0, "engines": [{"url": nasty.url, "kind": "openai"}]}
    if request.param == "keyed":
        config["admin_key"] = "sesame"
    built: Rig = start(rigged(Config.model_validate(config)))
    return built


async def look(rig: Rig, nasty: NastyEngine, method: bytes, target: bytes) -> RawAnswer:
    """Ask for a path; what went to the engine is the very path that was asked for."""
    nasty.seen.clear()
    request = b"%b %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    request += b"Authorization: Bearer \xff\xfe sesam\xc3\xa9\r\n\r\n"
    answer = await rig.ask(request % (method, target))
    if answer.body:
        check_shape("", answer)
    await rig.check()
    assert not nasty.unsound
    for seen in nasty.seen:
        assert seen.method.encode() == method
        assert seen.target.encode() in target
        assert seen.target.startswith(("/v1/", "/tokenize", "/detokenize")), seen.target
        path = seen.target.partition("?")[0].lower().replace("%2e", ".").replace("%2f", "/")
        assert "/../" not in f"{path}/", seen.target
    return answer


@settings(settings.get_profile("fuzz-many"))
@given(seed=st.integers(0, 2**32), method=METHODS)
def test_odd_targets(
    rig: Rig, nasty: NastyEngine, run: Callable[[Any], Any], seed: int, method: bytes
) -> None:
    run(look(rig, nasty, method, Mangler(random.Random(seed)).target()))


SAFE = st.text("abcv1/.%2ef5cC0\\;:@&=+$,~-_!*'()", max_size=40)


@settings(settings.get_profile("fuzz-many"))
@given(
    base=st.sampled_from(
        ["/v1/", "/v1/models/", "/agentsched/v1/", "/agentsched/v1/programs/", "/", "/metrics"]
    ),
    rest=SAFE,
    query=st.none() | SAFE,
    method=METHODS,
)
def test_made_up_paths(
    rig: Rig,
    nasty: NastyEngine,
    run: Callable[[Any], Any],
    base: str,
    rest: str,
    query: str | None,
    method: bytes,
) -> None:
    target = base + rest + (f"?{query}" if query is not None else "")
    run(look(rig, nasty, method, target.encode()))


def test_still_recognises(rig: Rig, run: Callable[[Any], Any]) -> None:
    async def converse() -> None:
        await asyncio.gather(*(rig.converse() for _ in range(3)))

    run(converse())
