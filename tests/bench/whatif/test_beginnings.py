"""What first prompts had in common: names tell of whole messages, engines of every block."""

from __future__ import annotations

from collections.abc import Iterable

from shorthand import arrived, finished, prefix

from agentsched.model import ConversationId, EngineId, Instant, Prefix, ProgramId, seconds
from agentsched_bench.sim.prompts import SimPrompts
from agentsched_bench.whatif.beginnings import Beginning, beginnings_of
from agentsched_bench.whatif.past import Past, PastStep
from agentsched_bench.workload.shape import PlannedCall, PlannedConversation

#: A name's end, the engine's count of what it found, and the engine.
First = tuple[str, tuple[Prefix, ...], int, str]


def begun(*firsts: First) -> dict[str, Beginning]:
    """Conversations of one call of 2,000 tokens each, a second apart."""
    past = Past()
    for number, (name, names, cached, engine) in enumerate(firsts):
        step = PastStep(
            arrived=arrived(name, name, tokens=2_000, prefixes=(*names, prefix(name, 2_000))),
            asked_at=Instant(seconds(number)),
            engine=EngineId(engine),
            sent_at=Instant(seconds(number)),
            started_at=None,
            finished=finished(name, prompt=2_000, cached=cached, output=10),
            finished_at=Instant(seconds(number + 1)),
        )
        past.programs[ProgramId(name)] = {ConversationId(name): [step]}
    return beginnings_of(past)


def common(one: Beginning, other: Beginning) -> int:
    """Tokens with which both prompts begin, in blocks of 16."""
    chains = [_prompts(name, made).chain(0) for name, made in (("one", one), ("other", other))]
    count = 0
    for mine, theirs in zip(*(chain.hashes(125) for chain in chains), strict=True):
        if mine != theirs:
            break
        count += 16
    return count


def names(name: str, made: Beginning) -> Iterable[str]:
    return [found.prefix for found in _prompts(name, made).prefixes(0)]


def _prompts(name: str, made: Beginning) -> SimPrompts:
    call = PlannedCall(
        base=None,
        keep_tokens=0,
        echo_tokens=0,
        pieces=made.pieces,
        prompt_tokens=2_000,
        output_tokens=10,
        pause_s=0.0,
    )
    plan = PlannedConversation(conversation=name, calls=(call,), system_tokens=made.system_tokens)
    return SimPrompts(plan, copy="", block_size=16)


def test_what_was_found_is_shared_with_whoever_began_most_alike() -> None:
    """The agent's own prompt ends with a folder's name: 1,500 tokens long, or a few more."""
    made = begun(
        ("a", (prefix("own a", 1_500),), 0, "e"),
        ("b", (prefix("own b", 900),), 0, "e"),
        ("c", (prefix("own c", 1_503),), 1_408, "e"),
        ("d", (prefix("own d", 1_498),), 1_424, "e"),
    )
    assert common(made["a"], made["c"]) == 1_408
    assert common(made["c"], made["d"]) == 1_408
    assert common(made["a"], made["d"]) >= 1_408
    assert common(made["b"], made["c"]) == 0
    everyone = [name for each, how in made.items() for name in names(each, how)]
    assert len(set(everyone)) == len(everyone), "a policy would know more than it did"
    assert [sum(piece.tokens for piece in how.pieces) for how in made.values()] == [2_000] * 4


def test_beyond_a_name_more_is_shared() -> None:
    tools = prefix("tools", 800)
    made = begun(
        ("a", (tools, prefix("own a", 1_500)), 0, "e"),
        ("b", (tools, prefix("own b", 1_500)), 1_408, "e"),
        ("c", (tools, prefix("own c", 1_500)), 800, "e"),
    )
    assert common(made["a"], made["b"]) == 1_408
    assert common(made["a"], made["c"]) == 800
    first = {name: list(names(name, how)) for name, how in made.items()}
    assert first["a"][0] == first["b"][0] == first["c"][0]
    later = [name for each in first.values() for name in each[2:]]
    assert len(set(later)) == len(later)


def test_nobody_shares_with_another_engine_or_a_shorter_prompt() -> None:
    made = begun(("a", (), 0, "e"), ("b", (), 1_408, "other"), ("c", (), 0, "other"))
    assert common(made["a"], made["b"]) == 0
    assert common(made["b"], made["c"]) == 0
