"""Requests of the overhead benchmark: their sizes, and that each goes on from the one before."""

from __future__ import annotations

import json
from statistics import mean

import pytest

from agentsched_bench.overhead.answers import STREAM_EVENTS, answer, stream, whole
from agentsched_bench.overhead.bodies import SHAPES, Script, TextPool


@pytest.fixture(scope="module")
def text() -> TextPool:
    return TextPool(1)


@pytest.mark.parametrize("name", SHAPES)
def test_the_mean_of_what_is_measured_has_the_shape_s_size(name: str, text: TextPool) -> None:
    shape = SHAPES[name]
    script = Script(shape, number=7, text=text)
    counts = [shape.messages_at(turn) for turn in range(1, shape.turns + 1)]
    sizes = [len(script.body(count, is_stream=False)[1]) for count in counts]
    assert mean(counts) == shape.messages
    assert mean(sizes) == pytest.approx(shape.body_bytes, rel=0.1)


def test_a_request_goes_on_from_the_answer_to_the_one_before(text: TextPool) -> None:
    script = Script(SHAPES["8KB"], number=3, text=text)
    seed, first = script.body(4, is_stream=False)
    _, second = script.body(6, is_stream=True)
    before, after = json.loads(first), json.loads(second)
    said = json.loads(whole(answer(seed)))["choices"][0]["message"]
    assert after["messages"][:4] == before["messages"]
    for name in ("content", "tool_calls"):
        assert after["messages"][4][name] == said[name]
    assert after["messages"][5]["tool_call_id"] == said["tool_calls"][0]["id"]
    assert after["stream"] is True
    assert "stream" not in before


def test_equal_numbers_give_equal_bytes_and_others_do_not(text: TextPool) -> None:
    shape = SHAPES["8KB"]
    bodies = [Script(shape, number=n, text=text).body(8, is_stream=False) for n in (1, 1, 2)]
    assert bodies[0] == bodies[1]
    assert bodies[0] != bodies[2]


def test_a_stream_says_what_the_whole_answer_says() -> None:
    said = answer(42)
    events = stream(said)
    assert len(events) == STREAM_EVENTS
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == said.text
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["id"] == said.call
    assert "".join(call["function"]["arguments"] for call in calls) == said.arguments
    assert json.loads(said.arguments)
    assert events[-1] == b"data: [DONE]\n\n"
