from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched_graphs.remaining import RemainingSteps

lengths = st.lists(st.integers(1, 200), max_size=60)


def test_before_anything_is_known_the_prior_speaks() -> None:
    remaining = RemainingSteps()
    assert remaining.expected(agent="a", steps_done=0) == 10.0
    assert remaining.expected(agent="a", steps_done=1_000) == 10.0


def test_each_agent_has_its_own_lengths() -> None:
    remaining = RemainingSteps()
    for _ in range(100):
        remaining.ended(agent="chat", steps=2)
        remaining.ended(agent="coder", steps=40)
    assert remaining.expected(agent="chat", steps_done=0) < 4
    assert remaining.expected(agent="coder", steps_done=0) > 35
    assert 15 < remaining.expected(agent="stranger", steps_done=0) < 25
    # Half of all have more than 10 steps to come when 10 are done, and all of those are coders.
    assert 25 < remaining.expected(agent="coder", steps_done=10) < 31


@given(lengths, lengths, st.integers(0, 200))
def test_taking_back_undoes_an_end(kept: list[int], undone: list[int], done: int) -> None:
    once, both = RemainingSteps(), RemainingSteps()
    for steps in kept:
        once.ended(agent="a", steps=steps)
        both.ended(agent="a", steps=steps)
    for steps in undone:
        both.ended(agent="a", steps=steps)
    for steps in undone:
        both.woke(agent="a", steps=steps)
    assert both.expected(agent="a", steps_done=done) == once.expected(agent="a", steps_done=done)


@given(lengths, st.integers(0, 200))
def test_the_forecast_is_the_mean_residual_life_with_a_prior(ends: list[int], done: int) -> None:
    remaining = RemainingSteps()
    for steps in ends:
        remaining.ended(agent="a", steps=steps)
    beyond = [steps - done for steps in ends if steps > done]
    overall = (sum(beyond) + 40.0) / (len(beyond) + 4)
    own = (sum(beyond) + 4 * overall) / (len(beyond) + 4) if ends else overall
    assert abs(remaining.expected(agent="a", steps_done=done) - own) < 1e-9


def test_old_programs_are_forgotten() -> None:
    remaining = RemainingSteps()
    for _ in range(600):
        remaining.ended(agent="a", steps=100)
    for _ in range(600):
        remaining.ended(agent="a", steps=5)
    assert remaining.expected(agent="a", steps_done=0) < 6


def test_of_too_many_agents_the_one_that_ended_last_keeps_its_lengths() -> None:
    remaining = RemainingSteps(agents_max=1)
    remaining.ended(agent="early", steps=2)
    remaining.ended(agent="late", steps=100)
    assert list(remaining._by_agent) == ["late"]
    overall = (2 + 100 + 4 * 10) / (2 + 4)
    assert remaining.expected(agent="early", steps_done=0) == overall
    assert remaining.expected(agent="late", steps_done=0) == (100 + 4 * overall) / (1 + 4)
    remaining.woke(agent="early", steps=2)  # its own are forgotten, so these are all that are left
    assert remaining.expected(agent="early", steps_done=0) == (100 + 4 * 10) / (1 + 4)


def test_an_end_that_is_forgotten_is_not_taken_back_twice() -> None:
    remaining = RemainingSteps()
    remaining.ended(agent="a", steps=5)
    before = remaining.expected(agent="a", steps_done=0)
    remaining.woke(agent="a", steps=7)
    assert remaining.expected(agent="a", steps_done=0) == before


def test_agents_that_come_after_many_others_are_learnt_all_the_same() -> None:
    """Names are the clients': whoever makes up a new one for each run fills what is kept."""
    remaining = RemainingSteps(agents_max=4)
    for number in range(50):
        remaining.ended(agent=f"run {number}", steps=3)
        remaining.ended(agent="coder", steps=40)
    assert len(remaining._by_agent) == 4
    assert remaining.expected(agent="coder", steps_done=0) > 35
    remaining.woke(agent="run 0", steps=3)  # of one that is forgotten there is nothing to undo
    assert len(remaining._by_agent) == 4
