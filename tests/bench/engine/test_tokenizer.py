"""The tokenizer: exact both ways, and equal beginnings stay equal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched_bench.engine import tokenizer
from agentsched_bench.engine.ask import Said, render

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGES = st.lists(
    st.builds(
        Said,
        role=st.sampled_from(["user", "assistant", "tool"]),
        text=TEXTS,
        calls=st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
    ),
    max_size=5,
)


@given(text=TEXTS)
def test_round_trip(text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.pieces(ids)) == text
    assert all(0 <= token < 1 << 32 for token in ids)


@given(left=TEXTS, right=TEXTS)
def test_a_text_keeps_its_tokens_when_it_grows(left: str, right: str) -> None:
    before = tokenizer.encode(left)
    after = tokenizer.encode(left + right)
    assert after[: max(0, len(before) - 1)] == before[:-1]


@given(messages=MESSAGES, more=MESSAGES)
def test_a_conversation_keeps_its_tokens_when_it_grows(
    messages: list[Said], more: list[Said]
) -> None:
    before = render(messages, open_answer=False)
    assert render([*messages, *more], open_answer=False)[: len(before)] == before


@given(text=TEXTS, calls=st.lists(st.tuples(TEXTS, TEXTS), max_size=2))
def test_an_answer_sent_back_has_the_tokens_it_was_given(
    text: str, calls: list[tuple[str, str]]
) -> None:
    asked = render([Said(role="user", text="q")])
    answered = [Said(role="user", text="q"), Said(role="assistant", text=text, calls=tuple(calls))]
    assert render(answered, open_answer=False)[: len(asked)] == asked


def test_about_four_characters_a_token() -> None:
    text = "def main() -> None:\n    print('hello')\n" * 20
    assert len(tokenizer.encode(text)) == -(-len(text) // 4)


def test_no_text_is_a_marker() -> None:
    text = "".join(map(chr, range(1, 0x3000)))
    assert max(tokenizer.encode(text)) < tokenizer.START
