"""The bounded memory keeps what is used."""

from __future__ import annotations

from agentsched.proxy.identity.memo import Memo


def test_holds_no_more_than_its_size() -> None:
    memo: Memo[int] = Memo(10)
    for number in range(1_000):
        memo.put(str(number).encode(), number)
    assert len(memo) <= 10
    assert memo.get(b"999") == 999
    assert memo.get(b"1") is None


def test_what_is_used_stays() -> None:
    memo: Memo[int] = Memo(10)
    memo.put(b"kept", 1)
    for number in range(1_000):
        memo.put(str(number).encode(), number)
        assert memo.get(b"kept") == 1


def test_pop_forgets_in_both_generations() -> None:
    memo: Memo[int] = Memo(4)
    for number in range(3):
        memo.put(str(number).encode(), number)
    assert memo.pop(b"0") == 0
    assert memo.pop(b"2") == 2
    assert memo.get(b"0") is None
    assert memo.pop(b"0") is None


def test_what_weighs_more_takes_more_room() -> None:
    memo: Memo[int] = Memo(20, weigh=lambda value: value)
    for number in range(1_000):
        memo.put(str(number).encode(), 4)
    assert len(memo) <= 5
    memo.put(b"huge", 50)
    memo.put(b"one", 1)
    assert (memo.get(b"huge"), memo.get(b"one")) == (50, 1)
    memo.put(b"next", 1)
    assert memo.get(b"999") is None


def test_what_is_put_again_or_forgotten_leaves_its_room() -> None:
    memo: Memo[int] = Memo(8, weigh=lambda value: value)
    for _ in range(100):
        memo.put(b"a", 2)
        memo.put(b"b", 2)
        assert memo.pop(b"b") == 2
    memo.put(b"c", 2)
    assert len(memo) == 2
