"""One tenant's book: who handed out what, and that a turn leaves no trace in it."""

from __future__ import annotations

from dataclasses import fields
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.model import ConfigError, ConversationId, Instant, ProgramId, TenantId
from agentsched.proxy.identity import IdentityLimits, records
from agentsched.proxy.identity.records import Book, Conversation, Program, TextEnd, Turn, is_weak


@pytest.fixture
def book() -> Book:
    return Book(name=TenantId("t"), needles_max=4)


def turn(book: Book, program: str = "p", *, prompt: bytes = b"prompt") -> Turn:
    owner = Program(program=ProgramId(program), book=book, is_declared=False)
    talk = Conversation(
        program=owner, conversation=ConversationId(program), thread="", head=b"head"
    )
    return Turn(conversation=talk, prompt=prompt, head=b"head", at=Instant(0))


def test_turns_at_one_place_are_told_apart_up_to_a_bound(book: Book) -> None:
    turns = [turn(book, name) for name in "abc"]
    assert list(book.at(b"x")) == []
    for one in (turns[0], turns[0], turns[1], turns[1], turns[2]):
        book.add_point(b"x", one, candidates_max=2)
    assert list(book.at(b"x")) == turns[1:]  # the oldest went
    book.drop_point(b"x", turns[0])
    book.drop_point(b"x", turns[1])
    assert list(book.at(b"x")) == [turns[2]]
    book.drop_point(b"x", turns[2])
    book.drop_point(b"x", turns[2])
    assert not book.points


def test_a_call_id_is_whose_turn_handed_it_out(book: Book) -> None:
    one, other = turn(book, "a"), turn(book, "b", prompt=b"another")
    assert book.add_call("c1", one)
    assert book.add_call("c1", one)
    assert book.calls["c1"] is one
    assert not book.add_call("c1", other)
    assert book.calls["c1"] is None  # from now on it says nothing
    assert not book.add_call("c1", one)


def test_a_retry_may_hand_out_what_its_first_try_did(book: Book) -> None:
    first, retry, stranger = turn(book), turn(book), turn(book, prompt=b"another")
    book.add_call("c1", first)
    first.retaken = True
    assert book.add_call("c1", retry)
    assert book.calls["c1"] is retry
    retry.retaken = True
    assert not book.add_call("c1", stranger)


def test_a_long_answer_of_two_programs_is_nobodys(book: Book) -> None:
    one, other = turn(book, "a"), turn(book, "b")
    later = Turn(conversation=one.conversation, prompt=b"p2", head=b"head", at=Instant(1))
    book.add_said(b"text", one)
    book.add_said(b"text", later)
    assert book.said[b"text"] is later
    book.add_said(b"text", other)
    assert book.said[b"text"] is None
    book.add_said(b"text", one)
    assert book.said[b"text"] is None


def test_shared_cache_keys_are_bounded(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_SHARED_MAX", 2)
    for key in "abc":
        book.share(key)
    assert list(book.shared) == ["b", "c"]


def test_a_text_length_that_two_texts_end_at_goes_with_the_second(book: Book) -> None:
    turns = [turn(book, name) for name in "ab"]
    for one, places in zip(turns, ([(b"x", 5), (b"x", 9)], [(b"x", 5)]), strict=True):
        one.text = TextEnd(boundary=b"x", length=1, tail=b"")
        one.text.places = places
        for boundary, length in places:
            book.add_length(boundary, length)
    assert book.lengths == {b"x": {5: 2, 9: 1}}
    book.forget_turn(turns[0])
    assert book.lengths == {b"x": {5: 1}}
    book.forget_turn(turns[1])
    assert book.lengths == {}
    book.forget_turn(turns[1])  # again: nothing is there
    assert book.lengths == {}


def test_forgetting_a_turn_leaves_what_others_said(book: Book) -> None:
    one, other = turn(book, "a"), turn(book, "b", prompt=b"another")
    for owner, call, response in ((one, "mine", "r1"), (other, "its", "r2")):
        owner.calls, owner.response_id = (call,), response
        book.add_call(call, owner)
        book.responses[response] = owner
    one.calls = ("mine", "its", "never")  # a repeated id: the other's stays the other's
    one.response_id = "r2"
    book.forget_turn(one)
    assert book.calls == {"its": other}
    assert book.responses == {"r1": one, "r2": other}
    one.response_id = "r1"
    book.forget_turn(one)
    assert book.responses == {"r2": other}


_NAMES = st.sampled_from(["a", "b", "c"])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(_NAMES, st.lists(_NAMES, max_size=3), st.lists(st.integers(1, 4), max_size=3)),
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_when_all_turns_are_forgotten_the_book_is_empty(
    told: list[tuple[str, list[str], list[int]]], random: Random
) -> None:
    book = Book(name=TenantId("t"), needles_max=4)
    turns: list[Turn] = []
    for number, (name, calls, lengths) in enumerate(told):
        one = turn(book, f"{name}{number % 2}", prompt=name.encode())
        one.answer, one.said, one.response_id = name.encode() * 2, name.encode(), name
        one.calls = tuple(calls)
        one.text = TextEnd(boundary=b"x", length=0, tail=b"")
        one.text.chains = [bytes(calls[0] * 3, "ascii")] if calls else []
        one.text.places = [(name.encode(), length) for length in lengths]
        for chain in (one.prompt, one.answer, *one.text.chains):
            book.add_point(chain, one, candidates_max=2)
        for call in one.calls:
            book.add_call(call, one)
        for boundary, length in one.text.places:
            book.add_length(boundary, length)
        book.add_said(one.said, one)
        book.responses.setdefault(one.response_id, one)
        turns.append(one)
    random.shuffle(turns)
    for one in turns:
        book.forget_turn(one)
    left = [book.points, book.calls, book.said, book.responses, book.lengths]
    assert left == [{}] * 5


@pytest.mark.parametrize(
    ("call_id", "weak"),
    [("call_1", True), ("functions.get:0", True), ("", True), ("call_0a1b2c", False), ("7", True)],
)
def test_ids_that_are_counted_up_are_weak(call_id: str, *, weak: bool) -> None:
    assert is_weak(call_id) is weak


@pytest.mark.parametrize("name", [field.name for field in fields(IdentityLimits)])
def test_every_limit_is_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        IdentityLimits(**{name: 0})
