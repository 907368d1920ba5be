"""An engine that answers anything: its client gets the bytes, an error or an end, in time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.config import Config
from agentsched_bench.fuzz.mangle import Mangler
from agentsched_bench.fuzz.nasty import End, NastyEngine, Script
from agentsched_bench.fuzz.raw import RawAnswer
from agentsched_bench.fuzz.rig import Rig, post, rigged, until
from agentsched_bench.fuzz.twist import GOOD

pytestmark = pytest.mark.slow
PATHS = (*GOOD, "/v1/models", "/v1/responses/resp_1")


@pytest.fixture(scope="module")
def rig(start: Callable[[Any], Any], nasty: NastyEngine) -> Rig:
    config = {
        "port": 0,
        "engines": [{"url": nasty.url, "kind": "openai"}],
        "upstream": {
            "first_byte_timeout": "500ms",
            "idle_timeout": "500ms",
            "probe_interval": "200ms",
            # Limits so short are passed by probes, too, where the machine is busy.
            "failures_until_lost": 100,
        },
    }
    built: Rig = start(rigged(Config.model_validate(config)))
    return built


@pytest.fixture(scope="module")
def patient(start: Callable[[Any], Any], nasty: NastyEngine) -> Rig:
    """For answers that come at once: no time-out of a busy machine stands in for what was said."""
    config = {"port": 0, "engines": [{"url": nasty.url, "kind": "openai"}]}
    built: Rig = start(rigged(Config.model_validate(config)))
    return built


async def through(rig: Rig, nasty: NastyEngine, script: Script, name: str, path: str) -> RawAnswer:
    """The answer that a client gets when the engine answers with this script."""
    nasty.scripts[name] = script
    mark = b"x-fuzz: %b" % name.encode()
    if path in GOOD:
        is_stream = any(b"event-stream" in piece for piece in script.pieces)
        body = json.dumps({**GOOD[path], "stream": is_stream}).encode()
        request = post(path, body, mark)
    else:
        request = b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%b\r\n\r\n"
        request %= (path.encode(), mark)
    came = await rig.throw([request])
    assert came.is_closed, script
    answers = came.answers()
    assert len(answers) <= 1, script
    if not answers:
        # An answer that began and could not be completed; nothing better can be said of it.
        return RawAnswer(status=0, headers=(), body=b"", is_whole=False)
    answer = answers[0]
    assert b"internal_error" not in answer.body, (script, answer)
    assert b"The proxy failed" not in answer.body, (script, answer)
    assert answer.header("x-request-id") != "fake", (script, answer)
    assert answer.header("x-agentsched-engine") != "fake", (script, answer)
    return answer


async def volley(rig: Rig, nasty: NastyEngine, seeds: list[int]) -> None:
    async def one(place: int, seed: int) -> None:
        dice = random.Random(seed)
        path = dice.choice(PATHS)
        await through(rig, nasty, Mangler(dice).answer(), str(place), path)

    nasty.scripts.clear()
    await asyncio.gather(*(one(place, seed) for place, seed in enumerate(seeds)))
    await rig.check()
    assert not nasty.unsound


@settings(settings.get_profile("fuzz-few"))
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=16))
def test_anything(
    rig: Rig, nasty: NastyEngine, run: Callable[[Any], Any], seeds: list[int]
) -> None:
    run(volley(rig, nasty, seeds))


def test_still_recognises(rig: Rig, run: Callable[[Any], Any]) -> None:
    async def converse() -> None:
        await until(lambda: bool(rig.gateway.fleet.up()))
        await rig.converse()

    run(converse())


def script(head: bytes, body: bytes = b"{}", *, end: End = End.CLOSE) -> Script:
    return Script(pieces=(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body,), end=end)


def call(arguments: str) -> Script:
    function = {"name": "bash", "arguments": arguments}
    message = {"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    return script(b"HTTP/1.1 200 OK\r\nContent-Type: application/json", json.dumps(body).encode())


def counted(tokens: int) -> Script:
    message = {"role": "assistant", "content": "a"}
    usage = {"prompt_tokens": tokens, "completion_tokens": 2**63 - 1}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {**usage, "prompt_tokens_details": {"cached_tokens": tokens}},
    }
    return script(b"HTTP/1.1 200 OK\r\nContent-Type: application/json", json.dumps(body).encode())


#: Each of these got the client an internal error, or an answer that is not HTTP.
FOUND = {
    # Not HTTP (RFC 9110, 5.5): a strict reader has no answer to pass on, and says so.
    "control characters in a header": (script(b"HTTP/1.1 200 OK\r\nX-Odd: a\x0bb\x0c"), 502),
    "a status of four hundred too many": (script(b"HTTP/1.1 999 x"), 502),
    "a status below all": (script(b"HTTP/1.1 099 x"), 502),
    "a protocol that nobody asked for": (script(b"HTTP/1.1 101 Switching Protocols"), 502),
    "a call without a command": (call('{"command":[],"cmd":[]}'), 200),
    "a call nested deeply": (call('{"x":' + "[" * 5_000 + "]" * 5_000 + "}"), 200),
    "more tokens than fit a column": (counted(10**20), 200),
    "a call nested nearly too deeply": (call('{"x":' + "[" * 900 + "]" * 900 + "}"), 200),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("name", FOUND)
def test_found_before(
    patient: Rig, nasty: NastyEngine, run: Callable[[Any], Any], name: str, path: str
) -> None:
    async def ask() -> None:
        await until(lambda: bool(patient.gateway.fleet.up()))
        said, status = FOUND[name]
        answer = await through(patient, nasty, said, "found", path)
        assert answer.status == status
        assert answer.is_whole
        await patient.check()

    run(ask())


def test_headers_without_end(patient: Rig, nasty: NastyEngine, run: Callable[[Any], Any]) -> None:
    async def ask() -> None:
        await until(lambda: bool(patient.gateway.fleet.up()))
        endless = Script(pieces=(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n" * 1_000] * 400))
        answer = await through(patient, nasty, endless, "endless", "/v1/chat/completions")
        assert answer.status == 502
        await patient.check()

    run(ask())
