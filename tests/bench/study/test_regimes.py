"""Regimes: what is kept of each, and what is said of winning and losing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agentsched.model import ConfigError
from agentsched_bench.compare.inference import Verdict
from agentsched_bench.compare.scenario import Scenario
from agentsched_bench.study.regimes import (
    ArmRow,
    Regime,
    Regimes,
    asked_of,
    best_of,
    carried,
    is_done,
    main,
    markdown,
    outcomes,
    scenarios_of,
)

SMALL = """
name = "small"
arms = ["direct"]
[engine]
blocks = 300
max_model_len = 8192
[measure]
rates = [2.0, 4.0]
[workload]
programs = 3
steps_max = 3
gap_cap_s = 2
context_tokens_max = 7936
arrivals = { process = "regular", rate = 4.0 }
sources = [{ trace = "sample" }]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def row(arm: str, jct_s: float, verdict: Verdict | None, *, failed: int = 0) -> ArmRow:
    return ArmRow(
        arm=arm, jct_mean_s=jct_s, run_jct_s=[jct_s], slowdown_p95=2.0, ttft_max_s=15.0,
        cached_share=0.5, again_tokens=0, failed=failed, ratio=(0.5, 0.4, 0.6), verdict=verdict,
    )  # fmt: skip


def regime(name: str, *rows: ArmRow) -> Regime:
    return Regime(name=name, question="?", programs=3, calls=9, repeats=1, arms=list(rows))


FOUND = Regimes(
    command=[],
    variant=None,
    regimes=[
        regime(
            "thrash",
            row("direct", 20.0, None),
            row("unlimited", 4.0, Verdict.BETTER),
            row("saga", 10.0, Verdict.BETTER),
            row("fcfs", 5.0, Verdict.BETTER, failed=2),
        ),
        regime(
            "calm",
            row("direct", 5.0, None),
            row("saga", 9.0, Verdict.WORSE),
            row("fcfs", 5.0, Verdict.UNSEEN),
        ),
    ],
)


def test_who_wins_and_loses_where() -> None:
    assert outcomes(FOUND.regimes) == {
        "saga": {"faster": ["thrash"], "slower": ["calm"]},
        "fcfs": {"faster": ["thrash"], "slower": []},
    }
    thrash, calm = FOUND.regimes
    assert best_of(thrash) == "saga", "yardsticks win nothing, nor does who gave up on programs"
    assert best_of(calm) == "fcfs"


def test_the_tables_are_markdown() -> None:
    lines = markdown(FOUND).splitlines()

    assert lines[0] == "| regime | direct | unlimited | saga | fcfs |"
    assert "| **10**; 2.0; 15 |" in lines[2]
    assert "2 gave up" in lines[2]
    assert "| saga | thrash | calm |" in lines
    assert "| fcfs | thrash | - |" in lines


def test_what_an_arm_carries_is_the_rate_before_the_first_that_it_misses() -> None:
    def at(rate: float, **slowdowns: float) -> Regime:
        rows = [row(arm, 1.0, None, failed=arm == "saga" and rate > 2) for arm in slowdowns]
        for one, slowdown in zip(rows, slowdowns.values(), strict=True):
            one.slowdown_p95 = slowdown
        made = regime(f"open-{rate:g}", *rows)
        made.rate = rate
        return made

    # Rates are tried in any order; one that is kept beyond one that was missed is luck.
    tried = [
        at(4.0, direct=2.0, fcfs=3.0, saga=1.0, dlpm=9.0),
        at(1.0, direct=1.0, fcfs=1.0, saga=1.0, dlpm=3.1),
        at(2.0, direct=3.5, fcfs=2.0, saga=1.0, dlpm=9.0),
    ]

    assert carried(tried) == {
        "direct": "1/s",
        "fcfs": "4/s or more",
        "saga": "2/s",
        "dlpm": "none of them",
    }
    for one in tried:
        one.arms[1].slowdown_p95 = None  # of fcfs: nobody knows how long programs take alone
    assert carried(tried)["fcfs"] == "not known"
    table = markdown(Regimes(command=[], variant=None, regimes=[*tried, *FOUND.regimes]))
    assert "| open | carries (p95 slowdown 3) |" in table
    assert "| saga | 2/s |" in table
    assert table.count("carries") == 1


def test_each_rate_is_a_regime(small: Path) -> None:
    found = scenarios_of(small, variant=None, arms=["direct", "fcfs"], repeat=3)
    other = scenarios_of(small, variant=None, arms=["direct"], repeat=1, rates=[0.5])

    assert [each.name for each in other] == ["small-0.5"]
    assert [each.name for each in found] == ["small-2", "small-4"]
    assert {each.measure.repeat for each in found} == {3}
    assert {each.measure.client for each in found} == {"mini-swe-agent"}


def test_a_regime_that_was_played_otherwise_is_no_answer(small: Path) -> None:
    def scenario(*, arms: tuple[str, ...] = ("direct", "fcfs"), repeat: int = 1) -> Scenario:
        (found,) = scenarios_of(small, variant=None, arms=arms, repeat=repeat, rates=[2.0])
        return found

    old = regime("small-2", row("direct", 1.0, None), row("fcfs", 1.0, None))
    asked = asked_of(scenario(), beside=small.parent)

    def is_played(now: Scenario) -> bool:
        return is_done(now, [old], beside=small.parent)

    for old.asked in ("", asked):  # an older file does not have it
        assert is_played(scenario())
        with pytest.raises(ConfigError, match="small-2 was played otherwise"):
            is_played(scenario(arms=("direct", "autellix")))
        with pytest.raises(ConfigError, match="small-2 was played otherwise"):
            is_played(scenario(repeat=3))
    small.write_text(SMALL.replace("blocks = 300", "blocks = 400"), encoding="utf-8")
    with pytest.raises(ConfigError, match="small-2 was played otherwise"):
        is_played(scenario())
    assert not is_done(scenario(), [], beside=small.parent)


@pytest.mark.slow
def test_regimes_are_played_once(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = small.with_name("regimes.json")
    arms = ["unlimited", "plugin:continuum"]
    main([small], arm=arms, repeat=1, out=out)
    first = msgspec.json.decode(out.read_bytes(), type=Regimes)
    main([small], arm=arms, repeat=1, out=out)

    assert [each.name for each in first.regimes] == ["small-2", "small-4"]
    assert [each.rate for each in first.regimes] == [2.0, 4.0]
    for each in first.regimes:
        assert [row.arm for row in each.arms] == ["direct", *arms]
        assert all(row.jct_mean_s > 0 and not row.failed for row in each.arms)
    again = msgspec.json.decode(out.read_bytes(), type=Regimes)
    assert again.regimes == first.regimes
    assert "| regime | direct |" in capsys.readouterr().out


def test_a_repeat_that_nobody_completed_is_no_win() -> None:
    dead = row("saga", 0.0, Verdict.UNKNOWN, failed=3)
    won = outcomes([regime("a", row("direct", 50.0, None), dead)])
    lost = outcomes([regime("a", row("direct", 0.0, None, failed=3), row("saga", 9.0, None))])

    assert won == lost == {"saga": {"faster": [], "slower": []}}


@pytest.mark.slow
def test_regimes_are_written_as_a_whole(small: Path) -> None:
    """Hours go on from this file: whoever writes into it may be killed half-way."""
    out, before = small.with_name("regimes.json"), small.with_name("before.json")
    out.write_bytes(msgspec.json.encode(Regimes(command=[], variant=None)))
    before.hardlink_to(out)

    main([small], arm=["unlimited"], repeat=1, rate=[2.0], out=out)

    assert msgspec.json.decode(before.read_bytes(), type=Regimes).regimes == []
    assert len(msgspec.json.decode(out.read_bytes(), type=Regimes).regimes) == 1
