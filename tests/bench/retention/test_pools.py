"""The offline cache: its account, its orders, and that nobody beats the clairvoyant."""

from __future__ import annotations

from random import Random

import pytest

from agentsched.model import ConversationId, Instant
from agentsched_bench.retention.orders import Clairvoyant, least_recent
from agentsched_bench.retention.pools import Pool
from agentsched_bench.retention.reference import Reference, Use, make_reference
from agentsched_bench.retention.study import ARMS, BELADY, SPLIT, play
from agentsched_bench.workload.shape import Piece, PlannedCall, PlannedConversation, PlannedProgram


def use(name: str, *, keep: int, own: int, head: int = 0) -> Use:
    shared = "agent" if head else ""
    return Use(conversation=ConversationId(name), head=shared, head_tokens=head, keep=keep, own=own)


def step(pool: Pool, what: Use, at: int) -> int:
    cached = pool.begin(what, now=Instant(at), is_counted=True)
    pool.end(what, now=Instant(at + 1))
    pool.check()
    return cached


def test_what_is_kept_is_found_and_what_was_cut_is_not() -> None:
    pool = Pool(capacity=1_600, order=least_recent)
    assert step(pool, use("a", keep=0, own=320), 0) == 0
    assert step(pool, use("a", keep=320, own=480), 10) == 320
    assert step(pool, use("a", keep=160, own=320), 20) == 160
    assert pool.bill.again_tokens == 0


def test_the_end_goes_before_the_beginning_and_is_computed_again() -> None:
    pool = Pool(capacity=640, order=least_recent)
    step(pool, use("a", keep=0, own=480), 0)
    step(pool, use("b", keep=0, own=320), 10)
    assert pool.segments["a"].cached == 320
    assert step(pool, use("a", keep=480, own=480), 20) == 320
    assert pool.bill.again_tokens == 160


def test_a_head_is_shared_and_goes_last() -> None:
    pool = Pool(capacity=960, order=least_recent)
    step(pool, use("a", keep=0, own=320, head=320), 0)
    assert step(pool, use("b", keep=0, own=320, head=320), 10) == 320
    step(pool, use("c", keep=0, own=320, head=320), 20)
    assert pool.segments["head agent"].cached == 320
    assert pool.segments["a"].cached == 0


def test_what_runs_stays() -> None:
    pool = Pool(capacity=480, order=least_recent)
    pool.begin(use("a", keep=0, own=320), now=Instant(0), is_counted=True)
    pool.begin(use("b", keep=0, own=320), now=Instant(1), is_counted=True)
    assert pool.segments["a"].cached == 320
    assert pool.bill.excess_tokens == 160


def programs(rng: Random, count: int) -> list[PlannedProgram]:
    """Programs that grow by a few hundred tokens a step and share a head."""
    made = []
    for number in range(count):
        calls: list[PlannedCall] = []
        for index in range(rng.randint(3, 8)):
            base = calls[-1] if calls else None
            kept = (base.prompt_tokens, base.output_tokens) if base else (0, 0)
            grown = rng.randint(50, 600)
            pieces = [Piece(stream=f"own/{number}/{index}", tokens=grown)]
            if base is None:
                pieces.insert(0, Piece(stream="shared/agent", tokens=800))
            calls.append(
                PlannedCall(
                    base=index - 1 if base else None,
                    keep_tokens=kept[0],
                    echo_tokens=kept[1],
                    pieces=tuple(pieces),
                    prompt_tokens=sum(kept) + sum(piece.tokens for piece in pieces),
                    output_tokens=rng.randint(5, 60),
                    pause_s=rng.choice([0.1, 1.0, 8.0, 30.0]),
                    tools=(rng.choice(["bash", "edit"]),),
                )
            )
        talk = PlannedConversation(conversation=f"t{number}", calls=tuple(calls), system_tokens=800)
        made.append(PlannedProgram(program=f"t{number}", main=talk))
    return made


def reference(seed: int) -> Reference:
    rng = Random(seed)
    return make_reference(programs(rng, 8), programs(rng, 20), rate=0.5, rng=rng)


def test_the_future_is_told_right() -> None:
    made = reference(1)
    for moment in made.moments:
        if moment.begins is not None:
            following = made.next_call(moment.begins.conversation, now=moment.at)
            assert following is None or following[0] > moment.at


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_nobody_computes_less_again_than_the_clairvoyant(seed: int) -> None:
    rng = Random(seed)
    # All are judged: an optimum for all of them is not one for a part.
    made = make_reference([], programs(rng, 28), rate=0.5, rng=rng)
    lanes = play(made, arms=ARMS, capacities={0.5: 9_000, 1.0: 14_000})
    for share in (0.5, 1.0):
        bills = {lane.arm: lane.bill for lane in lanes if lane.share == share}
        optimum = bills.pop(BELADY)
        assert optimum.calls == bills["value"].calls > 0
        for arm, bill in bills.items():
            # Running calls may exceed a pool by a little, at moments that differ between arms.
            slack = optimum.excess_tokens + bill.excess_tokens
            assert bill.again_tokens + slack >= optimum.again_tokens, arm


def test_equal_seeds_give_equal_bills() -> None:
    first, second = (
        [lane.bill for lane in play(reference(7), arms=ARMS, capacities={1.0: 10_000})]
        for _ in range(2)
    )
    assert first == second


def test_the_clairvoyant_gives_up_what_is_never_needed_first() -> None:
    made = reference(3)
    order = Clairvoyant(made)
    pool = Pool(capacity=10_000, order=order)
    last = made.moments[-1].at
    for moment in made.moments:
        if moment.begins is not None:
            pool.begin(moment.begins, now=moment.at, is_counted=False)
        if moment.ends is not None:
            pool.end(moment.ends, now=moment.at)
    pool.check()
    victims = order(last, [s for s in pool.segments.values() if s.cached])
    assert {
        made.next_call(ConversationId(s.name), now=last) for s, _ in victims if not s.is_head
    } == {None}


@pytest.mark.slow
def test_hindsight_comes_near_the_clairvoyant_and_ends_alone_change_nothing_that_is_told() -> None:
    """In these programs the last answer says that it is the last; when one returns nobody says."""
    made = reference(5)
    lanes = play(made, arms=SPLIT, capacities={0.5: 9_000})
    again = {lane.arm: lane.bill.again_tokens for lane in lanes}
    assert again["ends known"] == again["value"]
    assert again["returns known"] == again["both known"]
    lost = again["value"] - again[BELADY]
    assert lost > 0
    assert again["both known"] - again[BELADY] < lost / 2
