"""Real clusters: what is promised of replicas holds while they are killed and restarted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentsched.model import ConfigError
from agentsched_bench.cluster.run import ClusterOptions, run_scenario
from agentsched_bench.cluster.scenarios import SCENARIOS
from agentsched_bench.cluster.share_gap import is_shared

SMALL = ClusterOptions(agents=6, seconds=16.0, calm_s=3.0)


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_rolling_restart_fails_nothing() -> None:
    found = await run_scenario("rolling-restart", SMALL)
    assert found["calls_failed"] == 0, found["failed_by_kind"]
    assert found["programs_completed"] == found["programs"] > 10
    assert found["cut_by_kind"].get("broken", 0) == 0
    _programs_are_known(found)


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_replica_that_is_killed_costs_no_program() -> None:
    found = await run_scenario("replica-kill", SMALL)
    assert found["failed_whole"] == 0, found["failed_by_kind"]
    assert found["programs_completed"] == found["programs"] > 10
    assert found["hung"] == 0
    _programs_are_known(found)


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_shares_stay_within_the_bound_while_a_replica_is_killed(tmp_path: Path) -> None:
    """At every turn of both, from their journals; and the dashboard of the other one tells it."""
    limits: dict[str, object] = {"limits": {"running_steps_per_engine_max": 1}}
    crowd = replace(SMALL, agents=24, is_greedy=True, settings=limits, pictures=tmp_path)
    found = await run_scenario("replica-kill", crowd)
    assert found["failed_whole"] == 0, found["failed_by_kind"]
    assert found["programs_completed"] == found["programs"] > 10
    assert is_shared(found), found["gap"]
    for page in ("overview", "tenants"):  # taken when the page said that the replica is gone
        assert (tmp_path / f"{page}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_broker_and_database_may_go_together() -> None:
    found = await run_scenario("everything", replace(SMALL, seconds=18.0))
    assert found["failed_whole"] == 0, found["failed_by_kind"]
    assert found["programs_completed"] == found["programs"] > 10


async def test_names_are_checked_first() -> None:
    with pytest.raises(ConfigError, match="no scenario"):
        await run_scenario("nothing-of-the-kind", SMALL)
    with pytest.raises(ConfigError, match="not for"):
        await run_scenario("broker-kill", replace(SMALL, target="litellm"))


def test_every_scenario_says_what_it_does() -> None:
    assert all(scenario.about for scenario in SCENARIOS.values())
    assert sum(scenario.is_common for scenario in SCENARIOS.values()) >= 6


def _programs_are_known(found: dict[str, Any]) -> None:
    """With ids always; without, but for what was said in the second in which a replica died."""
    ids, none = found["recognition"]["with_ids"], found["recognition"]["without_ids"]
    assert ids["kept"] == ids["followed"] > 0
    assert none["kept"] >= 0.97 * none["followed"] > 0
    assert found["programs_merged"] == 0
