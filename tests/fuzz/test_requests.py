"""Requests that are nearly right: each gets an answer in its dialect, and the proxy stays sound."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.config import Config
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.fuzz.rig import Rig, check_shape, post, rigged
from agentsched_bench.fuzz.twist import GOOD, Twister

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def rig(start: Callable[[Any], Any]) -> Rig:
    sizes = replace(preset("h100-8b"), max_model_len=4_096)
    config = ServerConfig(engine=EngineConfig.from_preset(sizes), speed=1e6)
    engine = start(running_engine(config))
    proxied = {
        "port": 0,
        "engines": [{"url": engine.url}],
        "http": {"body_bytes_max": 4 << 20, "body_timeout": "2s"},
        "identity": {"programs_max": 500},
        "limits": {"programs_max": 500},
    }
    built: Rig = start(rigged(Config.model_validate(proxied)))
    return built


async def shoot(rig: Rig, path: str, request: bytes) -> int:
    answer = await rig.ask(request)
    check_shape(path, answer)
    await rig.check()
    return answer.status


@settings(settings.get_profile("fuzz-many"))
@given(dice=st.randoms(use_true_random=False), path=st.sampled_from(sorted(GOOD)))
def test_twisted(rig: Rig, run: Callable[[Any], Any], dice: random.Random, path: str) -> None:
    run(shoot(rig, path, Twister(dice, is_large=False).request(path).wire()))


@settings(settings.get_profile("fuzz-few"))
@given(seed=st.integers(0, 2**32), path=st.sampled_from(sorted(GOOD)))
def test_twisted_and_large(rig: Rig, run: Callable[[Any], Any], seed: int, path: str) -> None:
    """Megabytes are made from a seed: Hypothesis could not shrink them anyway."""
    run(shoot(rig, path, Twister(random.Random(seed)).request(path).wire()))


def test_no_request_is_larger_than_anybodys() -> None:
    """Half a gigabyte came of this seed, with one long number in a long list."""
    dice = random.Random(241163)
    assert len(Twister(dice).request(dice.choice(sorted(GOOD))).wire()) < 16 << 20


def test_still_recognises(rig: Rig, run: Callable[[Any], Any]) -> None:
    run(rig.converse())


def nested(depth: int) -> bytes:
    return b'[{"content":' * depth + b"1" + b"}]" * depth


USER = b'{"role":"user","content":"hi"}'
#: Each of these did harm once.
FOUND = {
    "other: nested deeply": ("/v1/embeddings", b'{"model":"sim","input":"a","x":%b}' % nested(700)),
    "a block's type is an object": (
        CHAT,
        b'{"model":"sim","messages":[{"role":"user","content":[{"type":{"a":1}}]}]}',
    ),
    "a block's type is a list": (
        "/v1/messages",
        b'{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":[{"type":[[]]}]}]}',
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_before(rig: Rig, run: Callable[[Any], Any], name: str) -> None:
    path, body = FOUND[name]
    assert run(shoot(rig, path, post(path, body))) < 500


@pytest.mark.parametrize("depth", [100, 500, 900, 990, 1_000, 1_010, 10_000, 200_000])
@pytest.mark.parametrize("field", ["messages", "tools", "metadata", "agentsched", "nvext"])
def test_nesting(rig: Rig, run: Callable[[Any], Any], depth: int, field: str) -> None:
    messages = nested(depth) if field == "messages" else b"[%b]" % USER
    body = b'{"model":"sim","max_tokens":1,"messages":%b,"%b":%b}' % (
        messages, b"x" if field == "messages" else field.encode(), nested(depth)
    )  # fmt: skip
    run(shoot(rig, CHAT, post(CHAT, body)))


def test_a_broken_body_is_no_defect(rig: Rig, run: Callable[[Any], Any]) -> None:
    """The library logs a traceback for it; a client could fill a disk with them."""
    request = post(CHAT, b"not gzip", b"Content-Encoding: gzip")
    assert run(shoot(rig, CHAT, request)) == 400


def test_a_bomb_is_too_large(rig: Rig, run: Callable[[Any], Any]) -> None:
    bomb = gzip.compress(b" " * (64 << 20), 9)
    assert run(shoot(rig, CHAT, post(CHAT, bomb, b"Content-Encoding: gzip"))) == 413


@pytest.mark.parametrize("field", ["program_id", "session_id", "prompt_cache_key", "user"])
def test_an_id_of_a_megabyte(rig: Rig, run: Callable[[Any], Any], field: str) -> None:
    body = b'{"model":"sim","max_tokens":1,"messages":[%b],"%b":"%b"}' % (
        USER, field.encode(), b"i" * (1 << 20)
    )  # fmt: skip
    assert run(shoot(rig, CHAT, post(CHAT, body))) == 200


def test_a_hundred_thousand_messages(rig: Rig, run: Callable[[Any], Any]) -> None:
    body = b'{"model":"sim","max_tokens":1,"messages":[%b]}' % b",".join([USER] * 100_000)
    assert run(shoot(rig, CHAT, post(CHAT, body))) == 400


@pytest.mark.parametrize("field", ["program_id", "session_id"])
def test_no_header_is_injected(rig: Rig, run: Callable[[Any], Any], field: str) -> None:
    body = (
        b'{"model":"sim","max_tokens":1,"messages":[%b],"%b":"a\\r\\nx-injected: 1\\u2028\\u0000"}'
    )
    assert run(shoot(rig, CHAT, post(CHAT, body % (USER, field.encode())))) == 200
