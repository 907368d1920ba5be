from __future__ import annotations

from agentsched_bench.sim.prompts import SimPrompts
from agentsched_bench.workload.shape import (
    Piece,
    PlannedCall,
    PlannedConversation,
    PlannedProgram,
)
from agentsched_bench.workload.shared import limit_shared

SIZE = 16


def call(base: int | None, keep: int, echo: int, *pieces: Piece, output: int = 20) -> PlannedCall:
    return PlannedCall(
        base=base,
        keep_tokens=keep,
        echo_tokens=echo,
        pieces=pieces,
        prompt_tokens=keep + echo + sum(piece.tokens for piece in pieces),
        output_tokens=output,
        pause_s=0.0,
    )


def talk(name: str, *more: PlannedCall, shared: int = 100) -> PlannedConversation:
    head = Piece(stream="shared/agent", tokens=shared)
    first = call(None, 0, 0, head, Piece(stream=f"own/{name}", tokens=50))
    return PlannedConversation(conversation=name, calls=(first, *more), system_tokens=shared)


def prompts(plan: PlannedConversation, *, copy: str = "", error: float = 0.0) -> SimPrompts:
    return SimPrompts(plan, copy=copy, block_size=SIZE, token_error=error)


def common(first: SimPrompts, second: SimPrompts, at: int = 0, other: int = 0) -> int:
    """Tokens of whole blocks in common."""
    a, b = first.chain(at).hashes(0), second.chain(other).hashes(0)
    count = 0
    for one, two in zip(a, b, strict=False):
        if one != two:
            break
        count += 1
    return count * SIZE


def test_programs_share_what_they_shared_when_recorded() -> None:
    a, b = prompts(talk("a")), prompts(talk("b"))
    assert common(a, b) == 100 // SIZE * SIZE
    assert a.prefixes(0)[0] == b.prefixes(0)[0]
    assert a.prefixes(0)[0].tokens == 100
    assert a.prefixes(0)[-1] != b.prefixes(0)[-1]
    assert a.prefixes(0)[-1].tokens == a.prompt_tokens(0) == 150


def test_a_twin_shares_only_what_everybody_shares() -> None:
    a, twin = prompts(talk("a")), prompts(talk("a"), copy="1")
    assert common(a, twin) == 100 // SIZE * SIZE
    assert common(a, prompts(talk("a"))) > 100


def test_a_conversation_goes_on_from_prompt_and_answer() -> None:
    plan = talk("a", call(0, 150, 20, Piece(stream="own/a/1", tokens=30)))
    it = prompts(plan)
    before = list(it.chain(0).hashes(0))
    assert it.answered(0).tokens == 170
    assert list(it.chain(1).hashes(0))[: len(before)] == before
    assert it.answered(0) in it.prefixes(1)
    assert it.seen_tokens(1) == 169


def test_a_cut_prompt_keeps_its_beginning_to_the_token() -> None:
    straight = talk("a", call(0, 150, 20, Piece(stream="own/a/1", tokens=30)))
    cut = talk("a", call(0, 131, 0, Piece(stream="own/a/2", tokens=40)))
    one, two = prompts(straight), prompts(cut)
    one.chain(0), two.chain(0)
    assert common(one, two, 1, 1) == 131 // SIZE * SIZE
    assert two.chain(1).tokens == 131 + 40 + 20
    # What stands in the block of the cut is still what stood there.
    again = talk("a", call(0, 131, 0, Piece(stream="own/a", start=31, tokens=19)))
    it = prompts(again)
    it.chain(0), it.chain(1)
    assert common(one, it, 0, 1) == 150 // SIZE * SIZE


def test_an_answer_that_came_back_shorter() -> None:
    whole = talk("a", call(0, 150, 20, Piece(stream="own/a/1", tokens=30)))
    part = talk("a", call(0, 150, 11, Piece(stream="own/a/1", tokens=30)))
    one, two = prompts(whole), prompts(part)
    one.chain(0), two.chain(0)
    assert common(one, two, 1, 1) == 161 // SIZE * SIZE
    assert two.answered(0) not in two.prefixes(1)


def test_prefixes_are_eight_at_most_and_ever_longer() -> None:
    calls = []
    tokens = 150
    for number in range(12):
        calls.append(call(number, tokens, 20, Piece(stream=f"own/a/{number}", tokens=5)))
        tokens += 25
    it = prompts(talk("a", *calls))
    for index in range(13):
        found = it.prefixes(index)
        sizes = [prefix.tokens for prefix in found]
        assert sizes == sorted(set(sizes))
        assert len(found) <= 8
        assert found[0].tokens == 100


def test_estimates_are_off_alike_for_the_same_content() -> None:
    a, b = prompts(talk("a"), error=0.2), prompts(talk("b"), error=0.2)
    assert a.prefixes(0)[0] == b.prefixes(0)[0]
    assert a.prompt_tokens(0) != 150
    assert 0.8 * 150 <= a.prompt_tokens(0) <= 1.2 * 150


def test_sharing_can_be_limited() -> None:
    def limited(name: str) -> SimPrompts:
        program = PlannedProgram(program=name, main=talk(name))
        return prompts(limit_shared(program, tokens=40).main)

    a, b = limited("a"), limited("b")
    assert common(a, b) == 40 // SIZE * SIZE
    assert a.prompt_tokens(0) == 150
    assert a.prefixes(0)[0] == b.prefixes(0)[0]
