"""With one tenant the share policies change nothing: the same journal, byte for byte."""

from __future__ import annotations

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import encode
from agentsched.model import Limits
from agentsched.policy import Choice, available, available_profiles
from agentsched_bench.replay.swarm import Swarm, SwarmShape

LIMITS = Limits(programs_max=30, ready_steps_max=20, running_steps_per_engine_max=2)


def journal(profile: str, share: str, seed: int) -> list[bytes]:
    config = SchedulerConfig(profile=profile, limits=LIMITS, choices={"share": Choice(name=share)})
    lines: list[bytes] = []
    shape = SwarmShape(programs=20, engines=2, tenants=1)
    Swarm(
        build_scheduler(config),
        seed=seed,
        shape=shape,
        on_turn=lambda entry: lines.append(encode(entry)),
    ).run()
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("profile", available_profiles())
def test_with_one_tenant_a_share_is_the_whole(profile: str) -> None:
    for seed in range(3):
        plain = journal(profile, "none", seed)
        for share in available("share"):
            assert journal(profile, share, seed) == plain, (share, seed)
