from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched.kernel.residency import Residency
from agentsched.model import ConversationId, EngineId, Prefix, PrefixId

E0, E1 = EngineId("e0"), EngineId("e1")


def chain(words: tuple[str, ...]) -> list[Prefix]:
    """Prefixes of a prompt made of words; a word's length is its number of tokens."""
    found = []
    for end in range(1, len(words) + 1):
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
    assert residency.home(conversation("x")) is None
    assert residency.tokens(E0) == 0
