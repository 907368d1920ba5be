"""The price of memory in our pin policy: how soon the engines compute as much as a pool holds.

Of the latest 600 seconds, each with as many computed tokens, about 0.86 of their rate counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from types import SimpleNamespace
from typing import Any

import pytest
from shorthand import finished, prefix

from agentsched.model import SECOND, CallId, Instant, Nanos, ToolName, seconds
from agentsched.policy import Retention
from agentsched_policies.pin.value import Value

NOW = Instant(600 * SECOND)


class Returns:
    """At a constant rate, once in so many seconds."""

    def __init__(self, mean_s: float) -> None:
        self._mean_s = mean_s

    def chances(self, spans: Sequence[Nanos]) -> list[float]:
        return [1.0 - exp(-span / SECOND / self._mean_s) for span in spans]


def kept(
    policy: Value,
    mean_s: float | None,
    *,
    pool: int | None = 10_000,
    others_up: Sequence[bool] = (),
    talk: Any = None,
    tokens: int = 1_000,
    since: int = NOW,
) -> Retention | None:
    """What is kept of a conversation that returns so; 1 ms a token is the price of its reload."""
    engine = SimpleNamespace(
        is_up=True,
        capabilities=SimpleNamespace(kv_tokens=pool),
        reload=lambda tokens: Nanos(tokens * 1_000_000),
    )
    returns = Returns(mean_s) if mean_s is not None else None
    talk = talk or SimpleNamespace(is_over=False)
    world: Any = SimpleNamespace(
        programs={"p": SimpleNamespace(conversations={"c": talk})},
        engines={
            "e": engine,
            **{f"o{n}": SimpleNamespace(is_up=up) for n, up in enumerate(others_up)},
        },
        graph=lambda program: SimpleNamespace(returns=lambda conversation, *, now: returns),
        waiting_steps=0,
    )
    pause: Any = SimpleNamespace(
        program="p",
        conversation="c",
        engine="e",
        tools={CallId("k"): ToolName("bash")},
        since=Instant(since),
        prefix=prefix("x", tokens),
    )
    return policy.retain(pause, world, now=NOW)


def busy(**usage: Any) -> Value:
    """So much was computed in each of the last 600 seconds; nothing is granted but by value."""
    policy = Value(patience=0.0, price=1.0)
    for second in range(600):
        policy.observe(finished("x", **usage), now=seconds(second))
    return policy


@pytest.mark.parametrize(
    ("usage", "others_up"),
    [
        ({"prompt": 1_000, "cached": 0}, ()),
        ({"prompt": 1_000, "cached": None}, ()),  # nobody says what was cached: nothing
        ({"prompt": 2_000, "cached": 1_500, "output": 500}, ()),
        ({"prompt": 0, "cached": 0, "output": 1_000}, ()),
        ({"prompt": 10, "cached": 64, "output": 1_000}, ()),  # whole blocks: never less than none
        ({"prompt": 2_000, "cached": 0}, (True,)),  # two engines share that work
        ({"prompt": 1_000, "cached": 0}, (False,)),
    ],
)
def test_a_pool_is_turned_over_by_what_its_engine_computes(
    usage: dict[str, Any], others_up: Sequence[bool]
) -> None:
    """A thousand tokens a second: the LRU keeps a pool of 10,000 for eleven or twelve seconds."""
    policy = busy(**usage)
    assert kept(policy, 10.0, others_up=others_up) is not None
    assert kept(policy, 14.0, others_up=others_up) is None


@pytest.mark.parametrize("pool", [None, 10_000])
def test_while_nothing_is_known_the_lru_keeps_what_returns_within_five_minutes(
    pool: int | None,
) -> None:
    policy = Value(patience=0.0, price=1.0) if pool else busy(prompt=1_000, cached=0)
    assert kept(policy, 280.0, pool=pool) is not None
    assert kept(policy, 320.0, pool=pool) is None


def test_no_pool_is_turned_over_in_less_than_a_second() -> None:
    policy = busy(prompt=10**7, cached=0)
    assert kept(policy, 0.9) is not None
    assert kept(policy, 1.2) is None


def test_nothing_is_kept_of_what_is_over_nor_for_longer_than_a_forecast_may_say() -> None:
    policy = Value(patience=5_000.0, ttl_s_max=600.0)
    long = kept(policy, 1e9)
    assert long is not None
    assert long.ttl == 600 * SECOND  # a reload takes a second
    assert kept(policy, 1e9, talk=SimpleNamespace(is_over=True)) is None


def test_a_value_is_seconds_of_reload_saved_for_a_token_and_second() -> None:
    """Once in ten seconds, a millisecond a token."""
    found = kept(Value(), 10.0)
    assert found is not None
    assert found.value == pytest.approx(0.1 * 1e-3, rel=0.06)


def test_the_rent_that_is_granted_runs_from_the_pause() -> None:
    policy = Value(patience=3.0)
    found = kept(policy, None, since=NOW - SECOND)
    assert found == Retention(ttl=Nanos(2 * SECOND))


def test_what_always_pays_is_kept_for_as_long_as_a_forecast_may_say() -> None:
    found = kept(Value(patience=0.0, ttl_s_max=4.0), 1.0)
    assert found is not None
    assert found.ttl == 4 * SECOND


@pytest.mark.parametrize("bad", [{"patience": -0.1}, {"price": 0.0}, {"ttl_s_max": 0.0}])
def test_parameters_that_make_no_sense(bad: dict[str, float]) -> None:
    Value(patience=0.0, price=0.1, ttl_s_max=0.1)
    with pytest.raises(ValueError, match="positive"):
        Value(**bad)
