"""What an engine costs by the default placement, each term worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from shorthand import reported

from agentsched.model import Dispatch, EngineId, Instant, StepId
from agentsched_policies.hashing import rendezvous
from agentsched_policies.place.rendezvous import Rendezvous

MS = 1e6


def engine(name: str, **known: Any) -> Any:
    """A cache of 10,000 tokens, 9,000 of which are taken; 0.1 ms to compute a token of a prompt,
    0.02 ms to bring one back, and 10 ms for one of an answer. 300 tokens are being computed."""
    usual: dict[str, Any] = {
        "is_up": True,
        "capabilities": SimpleNamespace(kv_tokens=10_000, context_max=None, models=()),
        "prefill_ns": 0.1 * MS,
        "reload_ns": 0.02 * MS,
        "decode_ns": 10 * MS,
        "peer_tokens": 2_000,
        "cold_tokens": lambda *, now: 300,
    }
    return SimpleNamespace(engine=name, **{**usual, **known})


def cost_ms(
    *,
    home: str | None = None,
    is_resident: bool = False,
    left: float | None = 1.0,
    resident: int = 9_000,
    other_decode_ns: float = 10 * MS,
    is_tried: bool = True,
    parent: str | None = None,
    talks: int = 1,
    spread: float = 0.0,
    pools: tuple[int | None, ...] = (),
    **known: Any,
) -> float:
    """Of the engine e, for a step of 1,000 tokens whose answer is expected to have 50."""
    policy = Rendezvous(roomy=0.0, spread=spread)
    for name, pool in zip("ef", pools, strict=False):
        policy.observe(reported(name, kv_tokens=pool), now=Instant(0))
    if is_tried:
        sent = Dispatch(step=StepId("x"), engine=EngineId("e"), priority=0)
        policy.decided([sent], now=Instant(0))
    engines = {"e": engine("e", **known), "f": engine("f", decode_ns=other_decode_ns)}
    talk = SimpleNamespace(engine=home, is_resident=is_resident)
    program = SimpleNamespace(conversations=dict.fromkeys(range(talks)), parent=parent)
    graph = SimpleNamespace(steps_left=lambda: left)
    world: Any = SimpleNamespace(
        engines=engines,
        programs={"p": program},
        conversation=lambda step: talk,
        graph=lambda program: graph,
        missing_tokens=lambda step, engine: 1_000,
        resident_tokens=lambda engine: resident,
    )
    step: Any = SimpleNamespace(
        program="p", model="", prompt_tokens=1_000, output_tokens_expected=50
    )
    return -policy.score(step, engines["e"], world, now=Instant(0)) / MS


#: 300 tokens before its own; 500 that go for it, at four times their reload; its 50 tokens and
#: those of one more step, and four fifths more for a fifth of the cache that others keep.
BEFORE, EVICTED, ANSWERS, CROWD = 30, 4 * 500 * 0.02, 2 * 50 * 10, 1.8


@pytest.mark.parametrize(
    ("home", "is_resident", "cost"),
    [
        (None, False, 1_000 * 0.1 + BEFORE + EVICTED + ANSWERS * CROWD),
        ("f", False, 1_000 * 0.1 + BEFORE + EVICTED + ANSWERS * CROWD),
        # At home it is brought back, and what lies there already evicts nobody.
        ("e", False, 1_000 * 0.02 + BEFORE + EVICTED + ANSWERS * CROWD),
        ("e", True, 1_000 * 0.02 + BEFORE + ANSWERS),
        # A move must save the lost prefix four times over.
        ("f", True, 1_000 * 0.1 + BEFORE + EVICTED + ANSWERS + 4 * 1_000 * 0.1),
    ],
)
def test_a_cost_is_computing_the_queue_what_is_evicted_and_the_answers(
    home: str | None, is_resident: bool, cost: float
) -> None:
    assert cost_ms(home=home, is_resident=is_resident) == pytest.approx(cost)


@pytest.mark.parametrize(("left", "steps"), [(0.0, 1), (1.0, 2), (3.0, 4), (9.0, 4), (None, 4)])
def test_an_engine_is_chosen_for_the_steps_to_come_four_at_most(
    left: float | None, steps: int
) -> None:
    cost = cost_ms(home="e", is_resident=True, left=left)
    assert cost == pytest.approx(1_000 * 0.02 + BEFORE + steps * 50 * 10)


@pytest.mark.parametrize(
    ("own_ms", "other_ms", "price_ms"),
    [(12, 10, 11), (10, 12, 11), (20, 10, 20), (10, 20, 10), (10, 6, 8)],
)
def test_an_answer_costs_as_usual_on_an_engine_that_is_nearly_as_fast(
    own_ms: int, other_ms: int, price_ms: int
) -> None:
    """Within a quarter of the mean."""
    cost = cost_ms(home="e", is_resident=True, decode_ns=own_ms * MS, other_decode_ns=other_ms * MS)
    assert cost == pytest.approx(1_000 * 0.02 + BEFORE + 100 * price_ms)


@pytest.mark.parametrize(
    ("resident", "pool", "over"),
    [(8_500, 10_000, 0), (8_600, 10_000, 100), (9_000, None, 0), (0, 10_000, 0)],
)
def test_beyond_nineteen_twentieths_somebody_goes(
    resident: int, pool: int | None, over: int
) -> None:
    capabilities = SimpleNamespace(kv_tokens=pool, context_max=None, models=())
    cost = cost_ms(resident=resident, capabilities=capabilities, peer_tokens=0)
    assert cost == pytest.approx(1_000 * 0.1 + BEFORE + 4 * over * 0.02 + ANSWERS)


@pytest.mark.parametrize(
    ("resident", "peers", "talks", "parent", "is_free"),
    [
        (9_000, 0, 1, None, True),
        (8_000, 2_000, 1, None, True),
        (9_000, 2_000, 1, None, False),  # others left no room there
        (8_000, 0, 2, None, False),
        (8_000, 0, 1, "elder", False),
    ],
)
def test_an_engine_that_had_no_step_is_tried_by_new_programs_of_their_own(
    resident: int, peers: int, talks: int, parent: str | None, is_free: bool
) -> None:
    cost = cost_ms(is_tried=False, resident=resident, peer_tokens=peers, talks=talks, parent=parent)
    assert (cost == 0.0) is is_free


@pytest.mark.parametrize(
    ("pools", "weight"),
    [
        ((10_000, 10_000), 1.0),
        ((10_000, 30_000), 0.5),  # half of the mean: it wins half as many
        ((10_000, None), 10_000 / 55_000),  # one that says nothing is taken to hold 100,000
    ],
)
@pytest.mark.parametrize("is_tried", [True, False])
def test_what_tells_equals_apart_is_a_share_of_computing_the_prompt(
    pools: tuple[int, int | None], weight: float, *, is_tried: bool
) -> None:
    plain = cost_ms(is_tried=is_tried)
    spread = cost_ms(is_tried=is_tried, spread=0.5, pools=pools)
    scale = rendezvous("p", "e", weight=weight)
    assert scale < 10
    assert spread - plain == pytest.approx(0.5 * scale * 1_000 * 0.1)


def test_it_is_ten_at_most() -> None:
    """Were it without end, a small engine would never be anybody's."""
    plain = cost_ms()
    spread = cost_ms(spread=0.5, pools=(1, 10**9))
    assert spread - plain == pytest.approx(0.5 * 10 * 1_000 * 0.1)
