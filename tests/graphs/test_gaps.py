"""Gaps: censoring, back-off, skill against the constant, drift, bounds."""

from __future__ import annotations

from random import Random

import pytest

from agentsched.model import Nanos, ToolName
from agentsched_graphs.gaps import LEVELS, Gaps, ReturnForecast, age_of, bin_of

SECOND = 1_000_000_000
BASH, READ = ToolName("Bash"), ToolName("Read")


def span(seconds: float) -> Nanos:
    return Nanos(round(seconds * SECOND))


def ask(gaps: Gaps, tool: str, *, elapsed: float = 0.0, agent: str = "a") -> ReturnForecast:
    return gaps.forecast(agent=agent, tool=ToolName(tool), elapsed=span(elapsed))


def median(forecast: ReturnForecast) -> float:
    middle = forecast.quantile(0.5)
    assert middle is not None
    return middle / SECOND


def test_nothing_is_known_at_first() -> None:
    forecast = ask(Gaps(), "Bash")
    assert not forecast.has_skill
    assert 0.0 < forecast.probability_within(span(1)) < 1.0


def test_tools_that_differ_are_told_apart() -> None:
    gaps, rng = Gaps(), Random(1)
    for _ in range(200):
        gaps.returned(agent="a", tool=READ, gap=span(rng.uniform(0.02, 0.05)))
        gaps.returned(agent="a", tool=BASH, gap=span(rng.uniform(5, 20)))
    assert ask(gaps, "Read").level in ("tool", "tool and word")  # the same, without a word
    assert median(ask(gaps, "Read")) == pytest.approx(0.033, rel=0.4)
    assert median(ask(gaps, "Bash")) == pytest.approx(11, rel=0.4)
    assert gaps.skill("a")["tool"] > 0.3
    assert gaps.middle(agent="a", tool=BASH) > gaps.middle(agent="a", tool=READ)


def test_the_command_word_tells_more_than_the_tool() -> None:
    gaps = Gaps()
    for _ in range(150):
        gaps.returned(agent="a", tool=ToolName("Bash ls"), gap=span(0.03))
        gaps.returned(agent="a", tool=ToolName("Bash make"), gap=span(40))
    assert median(ask(gaps, "Bash ls")) < 0.1
    assert median(ask(gaps, "Bash make")) > 20
    unheard = ask(gaps, "Bash cargo")  # backs off to the tool
    assert 0.3 < unheard.probability_within(span(1)) < 0.7


def test_without_skill_the_constant_speaks() -> None:
    gaps, rng = Gaps(), Random(2)
    for _ in range(400):
        tool = rng.choice((BASH, READ, ToolName("Bash ls")))
        gaps.returned(agent="a", tool=tool, gap=span(rng.lognormvariate(0, 1.5)))
    for tool in (BASH, READ):
        forecast = ask(gaps, tool)
        assert forecast.level == LEVELS[0]
        assert forecast == ask(gaps, "Never")


def test_gaps_that_were_never_seen_to_end_are_not_short_ones() -> None:
    """Half of all come back after a second; a watcher who leaves at two seconds sees just those."""
    gaps = Gaps()
    for _ in range(200):
        gaps.returned(agent="a", tool=BASH, gap=span(1))
        gaps.gave_up(agent="a", tool=BASH, gap=span(2))
    forecast = ask(gaps, "Bash")
    assert forecast.probability_within(span(2)) == pytest.approx(0.5, abs=0.06)
    assert forecast.quantile(0.9) is None or (forecast.quantile(0.9) or 0) > span(100)


def test_who_stays_away_is_expected_later() -> None:
    gaps, rng = Gaps(), Random(3)
    for _ in range(300):
        gaps.returned(agent="a", tool=BASH, gap=span(rng.choice((0.1, 60.0))))
    fresh, old = ask(gaps, "Bash"), ask(gaps, "Bash", elapsed=5.0)
    assert fresh.probability_within(span(1)) > 0.4
    assert old.probability_within(span(1)) < 0.05
    assert 30 < median(old) < 70


def test_quantiles_and_probabilities_agree() -> None:
    gaps, rng = Gaps(), Random(4)
    for _ in range(500):
        gaps.returned(agent="a", tool=BASH, gap=span(rng.lognormvariate(0.5, 1.2)))
    for elapsed in (0.0, 0.7, 9.0):
        forecast = ask(gaps, "Bash", elapsed=elapsed)
        before = Nanos(-1)
        for share in (0.05, 0.3, 0.5, 0.8):
            limit = forecast.quantile(share)
            assert limit is not None
            assert limit > before
            assert forecast.probability_within(limit) == pytest.approx(share, abs=0.03)
            before = limit


def test_quantiles_hold_as_often_as_they_say() -> None:
    gaps, rng = Gaps(), Random(4)
    for _ in range(600):
        gaps.returned(agent="a", tool=BASH, gap=span(rng.lognormvariate(0, 1)))
    forecast = ask(gaps, "Bash")
    drawn = [span(rng.lognormvariate(0, 1)) for _ in range(2000)]
    for share in (0.5, 0.9):
        limit = forecast.quantile(share)
        assert limit is not None
        held = sum(gap <= limit for gap in drawn) / len(drawn)
        assert held == pytest.approx(share, abs=0.05)


def test_what_changes_is_followed() -> None:
    gaps = Gaps()
    for _ in range(600):
        gaps.returned(agent="a", tool=BASH, gap=span(1))
    for _ in range(600):
        gaps.returned(agent="a", tool=BASH, gap=span(30))
    assert median(ask(gaps, "Bash")) > 20


def test_keys_are_bounded() -> None:
    gaps = Gaps(keys_max=40)
    for i in range(300):
        gaps.returned(agent="steady", tool=BASH, gap=span(5))
        gaps.returned(agent=f"a{i}", tool=ToolName(f"t{i} x"), gap=span(1))
        assert len(gaps._keys) <= 40
        assert len(gaps._chains) <= 40
        assert len(gaps._contests) <= 40
    assert ("a0",) not in gaps._keys
    # What is in use is not forgotten.
    assert median(ask(gaps, "Bash", agent="steady")) == pytest.approx(5, rel=0.3)


@pytest.mark.parametrize("gap", [0, 1, 10**7, 10**9, 10**12, 2**62])
def test_every_gap_has_a_bin(gap: int) -> None:
    assert bin_of(gap) <= bin_of(gap + 1) <= bin_of(2**63)


def test_a_programs_age_tells_more_where_old_ones_pause_longer() -> None:
    gaps = Gaps()
    for _ in range(150):
        gaps.returned(agent="a", tool=BASH, gap=span(0.05), age=2)
        gaps.returned(agent="a", tool=BASH, gap=span(8), age=6)
    young = gaps.forecast(agent="a", tool=BASH, elapsed=span(0), age=2)
    old = gaps.forecast(agent="a", tool=BASH, elapsed=span(0), age=6)
    assert young.level == old.level == "age"
    assert median(young) < 0.1
    assert median(old) > 5
    unheard = gaps.forecast(agent="a", tool=BASH, elapsed=span(0), age=4)  # backs off to the tool
    assert 0.3 < unheard.probability_within(span(1)) < 0.7


def test_who_came_back_after_all_was_not_lost() -> None:
    hasty, patient = Gaps(), Gaps()
    for _ in range(64):
        hasty.gave_up(agent="a", tool=BASH, gap=span(60), age=3)
    for _ in range(64):
        hasty.returned(agent="a", tool=BASH, gap=span(90), age=3, given_up_after=span(60))
        patient.returned(agent="a", tool=BASH, gap=span(90), age=3)
    one, other = (
        g.forecast(agent="a", tool=BASH, elapsed=span(0), age=3, level=2) for g in (hasty, patient)
    )
    spans = [span(s) for s in (1, 30, 80, 100, 1_000)]
    assert one.chances(spans) == pytest.approx(other.chances(spans), abs=0.05)


def test_the_age_of_a_program_is_an_octave_of_its_steps() -> None:
    assert [age_of(steps) for steps in (0, 1, 2, 3, 4, 7, 8, 1_000_000)] == [0, 1, 2, 2, 3, 3, 4, 9]


def test_who_may_never_come_back_has_no_middle() -> None:
    gaps = Gaps()
    for _ in range(200):
        gaps.gave_up(agent="a", tool=BASH, gap=span(3 * 3_600), age=0)
    forecast = gaps.forecast(agent="a", tool=BASH, elapsed=span(0))
    assert forecast.probability_within(span(3 * 3_600)) < 0.5
    assert forecast.quantile(0.5) is None
