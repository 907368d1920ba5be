"""Texts that are found by their hashes alone."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentsched.proxy.identity.traces import Trace, Tracer

TRACER = Tracer(secret=7)
WORDS = st.lists(
    st.sampled_from(["count", "the", "hens", "Hühner", "鶏を", "(all)", "\n", "a" * 50, "—"]),
    min_size=1,
    max_size=40,
).map(" ".join)
TEXTS = WORDS.map(str.strip).filter(lambda text: len(text.encode()) >= 8)


@given(before=WORDS, text=TEXTS, after=WORDS)
def test_a_text_is_found_where_it_stands(before: str, text: str, after: str) -> None:
    trace = TRACER.trace(text)
    assert TRACER.ground(f"{before} {text}{after}").holds(trace)
    assert TRACER.ground(f"{before}<task>{text}</task>").holds(trace)
    assert TRACER.ground(text).is_whole(trace)
    assert not TRACER.ground(text + "!").is_whole(trace)


@given(text=TEXTS, other=WORDS)
def test_nothing_else_is_found(text: str, other: str) -> None:
    assert TRACER.ground(other).holds(TRACER.trace(text)) <= (text in other)


def test_a_trace_is_keyed_and_holds_no_text() -> None:
    text = "count the hens in the yard"
    trace = TRACER.trace(text)
    assert not Tracer(secret=8).ground(text).holds(trace)
    data = msgspec.msgpack.encode(trace)
    assert b"hens" not in data
    assert msgspec.msgpack.decode(data, type=Trace) == trace


def test_a_short_text_ends_where_the_prompt_ends() -> None:
    assert TRACER.ground("so go on").holds(TRACER.trace("go on"))
    assert not TRACER.ground("so go o").holds(TRACER.trace("go on"))
    assert not TRACER.ground("").holds(TRACER.trace("go on"))


class CountingTracer(Tracer):
    """Counts what it hashes."""

    def __init__(self) -> None:
        super().__init__(secret=7)
        self.stems = self.wholes = 0

    def stem(self, data: bytes) -> int:
        self.stems += 1
        return super().stem(data)

    def whole(self, data: bytes) -> bytes:
        self.wholes += 1
        return super().whole(data)


def test_many_traces_in_a_long_prompt_cost_little() -> None:
    """Looked for on the event loop, in first prompts only: 256 of them, in 64 kB."""
    traces = [
        TRACER.trace(f"{number} count the hens " * (1 + number % 12)) for number in range(256)
    ]
    text = "count the hens in the yard " * 2_400
    counting = CountingTracer()
    ground = counting.ground(text)
    assert not any(ground.holds(trace) for trace in traces)
    # Each word is hashed once for each length of a stem, however many traces there are.
    assert counting.stems <= len(text.split()) * len({trace.stem_size for trace in traces})
    assert counting.wholes == 0


def test_a_prompt_that_repeats_itself_costs_little() -> None:
    """Traces whose beginnings stand everywhere: a place is hashed once for each size."""
    repeated = "go on with it " * 4_000
    traces = [TRACER.trace(repeated[:200] + f"and then {number:04}") for number in range(512)]
    counting = CountingTracer()
    ground = counting.ground(repeated)
    assert not any(ground.holds(trace) for trace in traces)
    assert len({(trace.stem, trace.size) for trace in traces}) == 1
    assert counting.wholes <= 256
