from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.kernel.residency import Residency
from agentsched.model import ConversationId, EngineId, Prefix, PrefixId

E0, E1 = EngineId("e0"), EngineId("e1")


def chain(words: tuple[str, ...], ends: Iterable[int] | None = None) -> list[Prefix]:
    """Prefixes of a prompt made of words; a word's length is its number of tokens.

    Those of so many words (`ends`) are named, in the usual case all.
    """
    found = []
    for end in sorted(ends) if ends is not None else range(1, len(words) + 1):
        name = "/".join(words[:end])
        found.append(Prefix(prefix=PrefixId(name), tokens=sum(map(len, words[:end]))))
    return found


def conversation(name: str) -> ConversationId:
    return ConversationId(name)


#: A message may be so short that no token is counted for it.
words = st.lists(st.sampled_from(["", "a", "bb", "ccc", "dddd"]), max_size=5).map(tuple)
names = st.sampled_from(["x", "y", "z", "w"])
engines = st.sampled_from([E0, E1])
placings = st.tuples(st.just("place"), names, engines, words, st.integers(0, 6))
removals = st.tuples(st.just("remove"), names)
losses = st.tuples(st.just("lose"), engines)


@given(st.lists(st.one_of(placings, placings, removals, losses), max_size=40))
def test_tokens_are_those_of_the_prefix_tree(deeds: list[tuple]) -> None:
    residency = Residency()
    held: dict[str, tuple[EngineId, tuple[str, ...], int]] = {}
    for deed in deeds:
        match deed:
            case ("place", name, engine, prompt, tail):
                context = sum(map(len, prompt)) + tail
                residency.place(
                    conversation(name), engine, prefixes=chain(prompt), context_tokens=context
                )
                held[name] = (engine, prompt, tail)
            case ("remove", name):
                residency.remove(conversation(name))
                held.pop(name, None)
            case ("lose", engine):
                residency.lose(engine)
                held = {name: h for name, h in held.items() if h[0] != engine}
        residency.check()
        for engine in (E0, E1):
            assert residency.tokens(engine) == union(held, engine)
        for name, (engine, _, _) in held.items():
            others = {key: value for key, value in held.items() if key != name}
            own = union(held, engine) - union(others, engine)
            assert residency.own_tokens(conversation(name)) == own
            assert residency.home(conversation(name)) == engine


def union(held: dict[str, tuple[EngineId, tuple[str, ...], int]], engine: EngineId) -> int:
    """Tokens of the prefix tree by brute force, tails beside it."""
    mine = [(prompt, tail) for home, prompt, tail in held.values() if home == engine]
    nodes = {prompt[:end] for prompt, _ in mine for end in range(1, len(prompt) + 1)}
    return sum(len(node[-1]) for node in nodes) + sum(tail for _, tail in mine)


@given(st.lists(words, max_size=5), words, st.integers(0, 6))
def test_what_is_missing_is_beyond_the_longest_known_beginning(
    known: list[tuple[str, ...]], prompt: tuple[str, ...], tail: int
) -> None:
    residency = Residency()
    for number, other in enumerate(known):
        tokens = sum(map(len, other))
        key = conversation(str(number))
        residency.place(key, E0, prefixes=chain(other), context_tokens=tokens)
    shared = 0
    for end in range(len(prompt), 0, -1):
        if any(other[:end] == prompt[:end] for other in known):
            shared = sum(map(len, prompt[:end]))
            break
    tokens = sum(map(len, prompt)) + tail
    missing = residency.missing_tokens(E0, prefixes=chain(prompt), prompt_tokens=tokens)
    assert missing == tokens - shared
    assert residency.missing_tokens(E1, prefixes=chain(prompt), prompt_tokens=tokens) == tokens


ends = st.sets(st.integers(1, 5))
#: Few words, so that much is shared; and prompts that name some of their beginnings.
alike = st.lists(st.sampled_from(["", "a", "bb"]), min_size=2, max_size=5).map(tuple)
marked = st.tuples(alike, ends, st.integers(0, 6))


def common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many words two prompts begin with alike."""
    same = 0
    for word, twin in zip(one, other, strict=False):
        if word != twin:
            break
        same += 1
    return same


def named(
    prompt: tuple[str, ...], some: Iterable[int], others: Sequence[tuple[str, ...]]
) -> list[Prefix]:
    """The beginnings that a prompt shares with others, and some that only it may name."""
    shared = {common(prompt, other) for other in others} - {0}
    return chain(prompt, shared | {end for end in some if end <= len(prompt)})


@given(st.lists(st.one_of(st.tuples(names, engines, marked), names), max_size=30))
def test_each_may_name_what_is_shared_at_other_places(deeds: list[tuple | str]) -> None:
    residency = Residency()
    prompts = [deed[2][0] for deed in deeds if not isinstance(deed, str)]
    held: dict[str, tuple[EngineId, tuple[str, ...], int]] = {}
    for deed in deeds:
        if isinstance(deed, str):
            residency.remove(conversation(deed))
            held.pop(deed, None)
        else:
            name, engine, (prompt, some, tail) = deed
            residency.place(
                conversation(name),
                engine,
                prefixes=named(prompt, some, prompts),
                context_tokens=sum(map(len, prompt)) + tail,
            )
            held[name] = (engine, prompt, tail)
        residency.check()
        for engine in (E0, E1):
            assert residency.tokens(engine) == union(held, engine)
        for name, (engine, prompt, tail) in held.items():
            others = {key: value for key, value in held.items() if key != name}
            own = union(held, engine) - union(others, engine)
            assert residency.own_tokens(conversation(name)) == own
            several = {key: held[key] for key in sorted(held)[::2] if held[key][0] == engine}
            keys = map(conversation, several)
            assert residency.tokens_of(engine, keys) == union(several, engine)
            segments, rest = residency.chain(conversation(name))
            assert sum(t for _, t, _ in segments) + rest == sum(map(len, prompt)) + tail


@given(st.lists(st.tuples(alike, ends), max_size=5), alike, ends, st.integers(0, 6))
def test_what_is_computed_is_found_by_any_of_its_names(
    known: list[tuple[tuple[str, ...], set[int]]],
    prompt: tuple[str, ...],
    some: set[int],
    tail: int,
) -> None:
    residency = Residency()
    prompts = [prompt, *(other for other, _ in known)]
    for number, (other, marks) in enumerate(known):
        residency.place(
            conversation(str(number)),
            E0,
            prefixes=named(other, marks, prompts),
            context_tokens=sum(map(len, other)),
        )
    shared = max((common(prompt, other) for other, _ in known), default=0)
    tokens = sum(map(len, prompt)) + tail
    missing = residency.missing_tokens(
        E0, prefixes=named(prompt, some, prompts), prompt_tokens=tokens
    )
    assert missing == tokens - sum(map(len, prompt[:shared]))


@given(
    st.lists(
        st.one_of(st.tuples(names, marked, st.sampled_from([1.0, 1.0, 1.0, 0.6, 1.3])), names),
        max_size=30,
    ),
    st.lists(names, unique=True),
)
def test_whatever_is_named_and_estimated_the_accounts_add_up(
    deeds: list[tuple | str], taken: list[str]
) -> None:
    residency = Residency()
    held: dict[str, tuple[EngineId, tuple[str, ...], int]] = {}
    is_exact = True
    for deed in deeds:
        if isinstance(deed, str):
            residency.remove(conversation(deed))
            held.pop(deed, None)
        else:
            name, (prompt, some, tail), factor = deed
            is_exact &= factor == 1.0
            prefixes = [
                Prefix(prefix=p.prefix, tokens=round(p.tokens * factor))
                for p in chain(prompt, {end for end in some if end <= len(prompt)})
            ]
            context = round(sum(map(len, prompt)) * factor) + tail
            residency.place(conversation(name), E0, prefixes=prefixes, context_tokens=context)
            held[name] = (E0, prompt, tail)
        residency.check()
        # What nobody can know to be shared is counted for each, but nothing is left out.
        assert not is_exact or residency.tokens(E0) >= union(held, E0)
    before = residency.tokens(E0), [residency.own_tokens(conversation(n)) for n in sorted(held)]
    gone = [conversation(name) for name in taken if name in held]
    out = [(key, residency.take_out(key)) for key in gone]
    for key, pieces in reversed(out):
        residency.put_back(key, E0, pieces)
    residency.check()
    after = residency.tokens(E0), [residency.own_tokens(conversation(n)) for n in sorted(held)]
    assert after == before


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_one_beginning_named_at_two_places_is_counted_once(order: str) -> None:
    residency = Residency()
    prompts = {"a": ({1, 2}, "aaa", "bb"), "b": ({2}, "aaa", "bb", "c"), "c": ({1}, "aaa", "d")}
    for name in order:
        marks, *said = prompts[name]
        residency.place(
            conversation(name),
            E0,
            prefixes=chain(tuple(said), marks),
            context_tokens=sum(map(len, said)),
        )
    # 3 for all of them, 2 for two, and one more for each of these two.
    assert residency.tokens(E0) == 3 + 2 + 1 + 1
    residency.remove(conversation("a"))
    assert residency.tokens(E0) == 3 + 2 + 1 + 1
    residency.remove(conversation("b"))
    assert residency.tokens(E0) == 3 + 1


def test_one_prompt_named_in_every_way_is_counted_once() -> None:
    """Three conversations of one prompt: each names any of its beginnings, and its end."""
    prompt = ("aaa", "", "bb", "c", "dddd")
    ways = [{5, *some} for size in range(5) for some in combinations(range(1, 5), size)]
    for marks in product(ways, repeat=3):
        residency = Residency()
        for name, some in zip("xyz", marks, strict=True):
            residency.place(
                conversation(name), E0, prefixes=chain(prompt, some), context_tokens=10 + 2
            )
        residency.check()
        assert residency.tokens(E0) == 10 + 3 * 2
        lengths = sorted({p.tokens for p in chain(prompt, set().union(*marks))})
        for name in "xyz":
            pieces, tail = residency.chain(conversation(name))
            assert list(accumulate(tokens for _, tokens, _ in pieces)) == lengths
            assert [owners for _, _, owners in pieces] == [3] * len(pieces)
            assert tail == 2
        # Who goes takes its own tail and nothing else, until nobody is left.
        for left, name in ((2, "x"), (1, "y"), (0, "z")):
            assert residency.own_tokens(conversation(name)) == (2 if left else 12)
            residency.remove(conversation(name))
            residency.check()
            assert residency.tokens(E0) == (10 + 2 * left if left else 0)


def test_who_names_all_beginnings_brings_those_together_who_named_some() -> None:
    prompt = ("aaa", "bb", "c", "dddd", "ee")
    whole = chain(prompt)
    ways = [set(some) for size in range(1, 6) for some in combinations(range(1, 6), size)]
    for marks in product(ways, repeat=2):
        residency = Residency()
        for name, some in zip("xy", marks, strict=True):
            prefixes = chain(prompt, some)
            context = prefixes[-1].tokens
            residency.place(conversation(name), E0, prefixes=prefixes, context_tokens=context)
        residency.place(conversation("z"), E0, prefixes=whole, context_tokens=12)
        residency.check()
        assert residency.tokens(E0) == 12
        pieces, tail = residency.chain(conversation("z"))
        assert tail == 0
        assert [(key, tokens) for key, tokens, _ in pieces] == [
            (prefix.prefix, len(word)) for prefix, word in zip(whole, prompt, strict=True)
        ]
        reach = [sum(end <= max(some) for some in marks) for end in range(1, 6)]
        assert [owners - 1 for _, _, owners in pieces] == reach


def test_names_whose_estimates_contradict_each_other_are_one_path_all_the_same() -> None:
    residency = Residency()
    longer, shorter = PrefixId("aaa/bb"), PrefixId("aaa")
    said = {
        "x": [Prefix(prefix=longer, tokens=5)],
        "y": [Prefix(prefix=shorter, tokens=6)],
        # Who names both brings them together; the order is that of the first estimates.
        "z": [Prefix(prefix=shorter, tokens=3), Prefix(prefix=longer, tokens=5)],
        "w": [Prefix(prefix=shorter, tokens=3), Prefix(prefix=longer, tokens=5)],
    }
    held = []
    for name, prefixes in said.items():
        residency.place(conversation(name), E0, prefixes=prefixes, context_tokens=7)
        residency.check()
        held.append(residency.tokens(E0))
    # The tails: 2, 1, 2, 2. Beside them 5 and 6 tokens that nobody knows to be shared, then 6.
    assert held == [5 + 2, 5 + 6 + 3, 6 + 5, 6 + 7]
    pieces, tail = residency.chain(conversation("z"))
    assert (pieces, tail) == ([(longer, 5, 4), (shorter, 1, 3)], 2)
    for name, left in (("w", 6 + 5), ("y", 6 + 4), ("z", 5 + 2), ("x", 0)):
        residency.remove(conversation(name))
        residency.check()
        assert residency.tokens(E0) == left


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("place"), names, engines, st.booleans()),
            st.tuples(st.sampled_from(["rest", "remove"]), names),
        ),
        max_size=40,
    )
)
def test_those_that_rest_are_told_in_the_order_of_their_placing(deeds: list[tuple]) -> None:
    residency = Residency()
    resting: set[str] = set()
    for deed in deeds:
        match deed:
            case ("place", name, engine, rests):
                residency.place(
                    conversation(name), engine, prefixes=(), context_tokens=1, rests=rests
                )
                resting.discard(name)
                resting |= {name} if rests else set()
            case ("rest", name):
                residency.rest(conversation(name))
                resting |= {name} if residency.home(conversation(name)) is not None else set()
            case ("remove", name):
                residency.remove(conversation(name))
                resting.discard(name)
        residency.check()
        for engine in (E0, E1):
            here = [c for c in residency.conversations(engine) if c in resting]
            assert list(residency.resting(engine)) == here


def test_a_conversation_that_is_placed_again_goes_to_the_end() -> None:
    residency = Residency()
    for name in ("x", "y", "x"):
        residency.place(conversation(name), E0, prefixes=chain((name,)), context_tokens=9)
    assert list(residency.conversations(E0)) == ["y", "x"]


def test_what_is_not_resident_has_nothing_of_its_own() -> None:
    residency = Residency()
    residency.remove(conversation("x"))
    assert residency.own_tokens(conversation("x")) == 0
    assert residency.split_tokens(conversation("x")) == 0
    assert residency.home(conversation("x")) is None
    assert residency.tokens(E0) == 0


def test_of_what_is_shared_each_has_its_part() -> None:
    residency = Residency()
    for name, tail in (("x", 1), ("y", 2), ("z", 0)):
        prompt = ("a" * 10,) if name == "z" else ("a" * 10, "bbb")
        residency.place(
            conversation(name),
            E0,
            prefixes=chain(prompt),
            context_tokens=sum(map(len, prompt)) + tail,
        )
    parts = [residency.split_tokens(conversation(name)) for name in "xyz"]
    # Of 10 a third, of 3 a half, both in whole tokens, and all of the tail.
    assert parts == [3 + 1 + 1, 3 + 1 + 2, 3]


def test_a_prompt_is_as_long_as_the_longest_of_its_beginnings_at_least() -> None:
    residency = Residency()
    prefixes = [
        Prefix(prefix=PrefixId("a"), tokens=5),
        Prefix(prefix=PrefixId("ab"), tokens=3),  # estimates that contradict each other
    ]
    residency.place(conversation("x"), E0, prefixes=prefixes, context_tokens=9)
    assert residency.chain(conversation("x")) == ([(PrefixId("a"), 5, 1)], 4)
    residency.place(conversation("x"), E0, prefixes=prefixes, context_tokens=4)
    assert residency.chain(conversation("x")) == ([(PrefixId("a"), 5, 1)], 0)
    assert (residency.tokens(E0), residency.own_tokens(conversation("x"))) == (5, 5)
    residency.check()
