from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.model import (
    MILLISECOND,
    MINUTE,
    SECOND,
    ConfigError,
    Instant,
    Nanos,
    after,
    between,
    in_seconds,
    parse_span,
    seconds,
)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("15s", 15 * SECOND),
        ("250ms", 250 * MILLISECOND),
        ("1.5 h", 90 * MINUTE),
        (" 2m ", 2 * MINUTE),
        ("7us", 7_000),
        ("7ns", 7),
        ("0s", 0),
        ("0.5ns", 1),
        ("0.4ns", 0),
        ("1.000000001s", 1_000_000_001),
    ],
)
def test_parse_span(text: str, span: int) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize(
    "text", ["", "15", "s", "-1s", "1e3s", "1 d", "1s2s", "1.s", ".5s", "1_000s", "9" * 13 + "s"]
)
def test_what_is_no_span_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not a length of time: .*\(write 250ms"):
        parse_span(text)


@given(milliseconds=st.integers(0, 10**12 - 1))
def test_whole_numbers_are_exact(milliseconds: int) -> None:
    assert parse_span(f"{milliseconds}ms") == milliseconds * MILLISECOND


@given(at=st.integers(), span=st.integers())
def test_after_and_between_belong_together(at: int, span: int) -> None:
    later = after(Instant(at), Nanos(span))
    assert between(Instant(at), later) == span


def test_seconds() -> None:
    assert seconds(1.5) == 1_500_000_000
    assert in_seconds(Nanos(250_000_000)) == 0.25
