"""What simulated clients read is what simulated engines say; half of it is never taken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched_bench.chaos.dialects import BY_PATH, DIALECTS, Dialect
from agentsched_bench.chaos.engine import words_of

each = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
WORDS = words_of("a prompt")
TEXT = "".join(WORDS)
USAGE = (12, len(WORDS))


def stream(dialect: Dialect) -> bytes:
    words = [dialect.word(word) for word in WORDS]
    return b"".join([*dialect.opening(), *words, *dialect.closing(TEXT, USAGE)])


@each
def test_a_stream_is_read_as_it_was_said(dialect: Dialect) -> None:
    said = dialect.read(stream(dialect))
    assert (said.text, said.is_done, said.has_error) == (TEXT, True, False)
    assert dialect.text_of(json.loads(dialect.whole(TEXT, USAGE))) == TEXT


@each
def test_the_engine_hears_what_was_asked_last(dialect: Dialect) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert dialect.last_text(json.loads(json.dumps(dialect.fields(messages)))) == "three"
    assert BY_PATH[dialect.path] is dialect


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
@given(share=st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_stream_that_was_cut_anywhere_is_not_done(dialect: Dialect, share: float) -> None:
    whole = stream(dialect)
    # The last event ends with an empty line: without any of it there is no event.
    last = whole.rstrip(b"\n").rindex(b"\n\n") if dialect.name != "chat" else len(whole) - 8
    said = dialect.read(whole[: int(share * last)])
    assert not said.is_done
    assert TEXT.startswith(said.text)


@each
def test_a_failure_in_mid_stream_is_an_error_even_where_the_end_follows(dialect: Dialect) -> None:
    body = dialect.word(WORDS[0]) + dialect.error() + dialect.closing(TEXT, USAGE)[-1]
    assert dialect.read(body).has_error


@each
def test_an_error_in_the_middle_of_half_an_event_is_no_event(dialect: Dialect) -> None:
    """What a proxy that wrote its error behind a torn event would do to its clients."""
    torn = dialect.word(WORDS[0])[:-9]
    with pytest.raises(ValueError):  # noqa: PT011  # whatever its words are
        dialect.read(torn + dialect.error())
