"""Equal configurations and events give equal commands, in any process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import hashlib
from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import encode
from agentsched.model import Limits
from agentsched.policy import Choice, available_profiles
from agentsched_bench.replay.swarm import Swarm, SwarmShape

digest = hashlib.sha256()
limits = Limits(programs_max=8, ready_steps_max=6, running_steps_per_engine_max=2, tenants_max=2)
for profile in available_profiles():
    config = SchedulerConfig(profile=profile, limits=limits, choices={"pin": Choice(name="fixed")})
    shape = SwarmShape(programs=40, engines=3, fault_rate=0.1)
    on_turn = lambda entry: digest.update(encode(entry))
    Swarm(build_scheduler(config), seed=5, shape=shape, on_turn=on_turn).run()
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_hash_seeds_change_nothing() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        for seed in ("0", "1", "4711")
    ]
    digests = {done.stdout for done in runs}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64
