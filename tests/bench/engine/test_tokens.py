"""Block chains: equal prefixes and only those have equal hashes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched_bench.engine.tokens import Run, RunChain, TokenChain

SIZES = st.integers(1, 9)
IDS = st.lists(st.integers(0, 2), max_size=60)
RUNS = st.lists(
    st.builds(Run, content=st.integers(0, 2), tokens=st.integers(0, 20), offset=st.integers(0, 5)),
    max_size=8,
)


def spelled(runs: list[Run]) -> list[tuple[int, int]]:
    return [(run.content, run.offset + step) for run in runs for step in range(run.tokens)]


def common(left: list[object], right: list[object]) -> int:
    length = 0
    for mine, other in zip(left, right, strict=False):
        if mine != other:
            break
        length += 1
    return length


@given(left=IDS, right=IDS, size=SIZES)
def test_token_chains_agree_on_common_blocks(left: list[int], right: list[int], size: int) -> None:
    ours = TokenChain(left, block_size=size).hashes(len(left) // size)
    others = TokenChain(right, block_size=size).hashes(len(right) // size)
    blocks = common(list(left), list(right)) // size
    assert list(ours[:blocks]) == list(others[:blocks])
    assert common(list(ours), list(others)) == blocks


@given(left=RUNS, right=RUNS, size=SIZES)
def test_run_chains_agree_on_common_blocks(left: list[Run], right: list[Run], size: int) -> None:
    ours = RunChain(left, block_size=size)
    others = RunChain(right, block_size=size)
    blocks = common(list(spelled(left)), list(spelled(right))) // size
    mine = list(ours.hashes(ours.tokens // size))
    theirs = list(others.hashes(others.tokens // size))
    assert common(list(mine), list(theirs)) == blocks
    assert ours.tokens == len(spelled(left))


@given(runs=RUNS, size=SIZES, cut=st.integers(0, 100))
def test_a_fork_keeps_whole_blocks_and_grows_alone(runs: list[Run], size: int, cut: int) -> None:
    chain = RunChain(runs, block_size=size)
    before = list(chain.hashes(chain.tokens // size))
    twin = chain.fork(tokens=cut)
    assert twin.tokens == min(cut, chain.tokens) // size * size
    twin.extend(Run(content=99, tokens=3 * size))
    kept = (twin.tokens - 3 * size) // size
    assert list(twin.hashes(kept))[:kept] == before[:kept]
    assert list(chain.hashes(len(before))) == before


def test_a_salt_separates() -> None:
    plain = TokenChain([1, 2, 3, 4], block_size=2)
    salted = TokenChain([1, 2, 3, 4], block_size=2, salt="x")
    assert list(plain.hashes(2)) != list(salted.hashes(2))
