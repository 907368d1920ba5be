"""The map of a cache adds up: each token that is held is in one block, however many share it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shorthand import prefix

from agentsched.kernel.holdings import _blocks, holdings, wanted_tokens
from agentsched.kernel.residency import Residency
from agentsched.model import (
    SECOND,
    ConversationId,
    EngineId,
    Lineage,
    Nanos,
    Prefix,
    ProgramId,
)
from agentsched.policy import Retention

ENGINE = EngineId("e")

#: Paths in a tree of prefixes: equal beginnings are equal prefixes.
paths = st.lists(
    st.tuples(st.lists(st.integers(0, 2), max_size=5), st.integers(0, 40)), max_size=12
)


def chain(path: list[int]) -> tuple[Prefix, ...]:
    prefixes, tokens = [], 0
    for depth in range(len(path)):
        tokens += 10 + 3 * path[depth] + depth
        name = "/".join(map(str, path[: depth + 1]))
        prefixes.append(prefix(name, tokens))
    return tuple(prefixes)


@given(paths)
def test_adds_up(drawn: list[tuple[list[int], int]]) -> None:
    residency = Residency()
    for number, (path, tail) in enumerate(drawn):
        prefixes = chain(path)
        held = (prefixes[-1].tokens if prefixes else 0) + tail
        key = ConversationId(f"c{number}")
        residency.place(key, ENGINE, prefixes=prefixes, context_tokens=held)
    # In the order of their paths, those with equal beginnings are neighbours.
    order = sorted(range(len(drawn)), key=lambda n: (drawn[n][0], n))
    blocks = _blocks([residency.chain(ConversationId(f"c{n}")) for n in order])
    assert sum(block.tokens for block in blocks) == residency.tokens(ENGINE)
    for row, number in enumerate(order):
        own = [b for b in blocks if b.row <= row < b.row + b.rows]
        own.sort(key=lambda b: b.begins)
        at = 0
        for block in own:  # without gaps, from the first token on
            assert block.begins == at
            at += block.tokens
        segments, tail = residency.chain(ConversationId(f"c{number}"))
        assert at == tail + sum(tokens for _, tokens, _ in segments)


def test_a_shared_prefix_is_one_block() -> None:
    residency = Residency()
    system = prefix("system", 100)
    for name, tokens in (("a", 150), ("b", 180)):
        own = prefix(name, tokens)
        key = ConversationId(name)
        residency.place(key, ENGINE, prefixes=(system, own), context_tokens=tokens + 5)
    blocks = _blocks([residency.chain(ConversationId(name)) for name in "ab"])
    assert [(b.row, b.rows, b.begins, b.tokens) for b in blocks] == [
        (0, 2, 0, 100),
        (0, 1, 100, 55),
        (1, 1, 100, 85),
    ]


def test_nothing_held() -> None:
    assert _blocks([]) == []
    assert Residency().chain(ConversationId("x")) == ([], 0)


def test_the_map_of_an_engine_shows_whom_it_knows(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND)) if pause.tools else None
    rig.engine("e", kv_tokens=240)  # nearly full: pins are asked for
    head = prefix("head", 40)
    for number, name in enumerate(("p1", "p2", "p3")):
        own = prefix(name, 100)
        rig.arrive(name, program=name, at=number, prefixes=(head, own))
        rig.start(name)
    rig.finish("p3", tools={"k": "bash"}, prompt=100, output=10)
    found = holdings(rig.scheduler, ENGINE)
    assert (found.capacity_tokens, found.held_tokens) == (240, 40 + 60 + 60 + 70)
    assert sum(block.tokens for block in found.blocks) == found.held_tokens
    assert [(row.program, row.tokens, row.own_tokens) for row in found.rows] == [
        ("p1", 100, 60),
        ("p2", 100, 60),
        ("p3", 110, 70),
    ]
    assert [row.running_steps for row in found.rows] == [1, 1, 0]
    assert [row.pinned_until for row in found.rows] == [None, None, 3 * SECOND]
    shared = [block for block in found.blocks if block.rows == 3]
    assert [(block.begins, block.tokens) for block in shared] == [(0, 40)]
    # Of too many those placed first are left out; what is held is still all of it.
    short = holdings(rig.scheduler, ENGINE, rows_max=2)
    assert (len(short.rows), short.left_out, short.held_tokens) == (2, 1, found.held_tokens)


class Pauses:
    """A graph that is told how likely each program's pause is its last; of others it has none."""

    def __init__(self, chances: dict[str, float]) -> None:
        self._chances = chances

    def observe(self, event: Any, *, now: Any) -> None:
        pass

    def view(self, program: ProgramId) -> Any:
        chance = self._chances.get(program)
        return None if chance is None else Pause(chance)


class Pause:
    def __init__(self, chance: float) -> None:
        self._chance = chance

    def last_pause_chance(self, conversation: ConversationId) -> float:
        return self._chance

    def is_waiting_for_children(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("chance", "is_wanted"), [(None, True), (0.0, True), (0.5, True), (0.51, False), (1.0, False)]
)
def test_a_pause_that_is_probably_the_last_is_not_wanted(
    make_rig: Any, chance: float | None, *, is_wanted: bool
) -> None:
    rig = make_rig(graph=Pauses({} if chance is None else {"p1": chance}))
    rig.engine("e", kv_tokens=1_000)
    rig.arrive("s1")
    rig.start("s1")
    assert wanted_tokens(rig.scheduler, ENGINE) == 100  # it runs, whatever is said of its pauses
    rig.finish("s1", tools={"k": "bash"})
    assert wanted_tokens(rig.scheduler, ENGINE) == (110 if is_wanted else 0)


def test_what_is_pinned_is_wanted_however_likely_its_end_is(make_rig: Any) -> None:
    rig = make_rig(graph=Pauses({"p1": 1.0}))
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.engine("e", kv_tokens=120)  # nearly full: pins are asked for
    rig.arrive("s1", at=0)
    rig.start("s1")
    rig.finish("s1", tools={"k": "bash"})
    assert wanted_tokens(rig.scheduler, ENGINE) == 110
    rig.timer(at=1)
    assert wanted_tokens(rig.scheduler, ENGINE) == 0


def test_after_a_last_word_only_what_others_share_is_wanted(rig: Any) -> None:
    rig.engine("e", kv_tokens=1_000)
    head = prefix("head", 40)
    for name in ("over", "goes-on"):
        rig.arrive(name, program=name, prefixes=(head, prefix(name, 100)))
        rig.start(name)
    rig.finish("over", finish_reason="stop")
    assert holdings(rig.scheduler, ENGINE).held_tokens == 40 + 70 + 60
    assert wanted_tokens(rig.scheduler, ENGINE) == 40 + 60
    rig.finish("goes-on", tools={"k": "bash"})
    assert wanted_tokens(rig.scheduler, ENGINE) == 40 + 70
    assert wanted_tokens(rig.scheduler, EngineId("unknown")) == 0


def test_what_goes_on_under_another_id_is_not_wanted_twice(rig: Any) -> None:
    rig.engine("e", kv_tokens=1_000)
    head = prefix("head", 40)
    rig.arrive("s1", conversation="old", prefixes=(head, prefix("old", 100)))
    rig.finish("s1", tools={"k": "bash"})
    rig.arrive(
        "s2",
        conversation="new",
        prefixes=(head, prefix("new", 100)),
        lineage=Lineage.COMPACTS,
        parent_conversation=ConversationId("old"),
    )
    rig.finish("s2", tools={"l": "bash"})
    assert holdings(rig.scheduler, ENGINE).held_tokens == 40 + 70 + 70
    assert wanted_tokens(rig.scheduler, ENGINE) == 40 + 70
    rig.arrive("s3", conversation="old", prefixes=(head, prefix("old", 100)))
    assert wanted_tokens(rig.scheduler, ENGINE) == 40 + 70 + 70
