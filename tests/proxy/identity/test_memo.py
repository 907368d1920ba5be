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
