"""Makes the golden journals beside it: `.venv/bin/python tests/data/journals/make.py`.

Make them anew only when a decision was meant to change, and say so in the commit: whoever upgrades
finds that old journals replay to other commands. `tests/bench/replay` replays them in CI.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.model import SECOND, Limits, Nanos
from agentsched.policy import Choice
from agentsched_bench.replay import JournalWriter
from agentsched_bench.replay.swarm import Swarm, SwarmShape

SMALL: Final = Limits(
    programs_max=6,
    conversations_per_program_max=2,
    ready_steps_max=3,
    running_steps_per_engine_max=2,
    engine_wait_ns_max=Nanos(2 * SECOND),
    wait_ns_max=Nanos(4 * SECOND),
    bypasses_max=2,
    pins_per_engine_max=2,
    retries_max=1,
)

#: File name: configuration, shape and seed of its swarm.
JOURNALS: Final = {
    "passthrough.ndjson": (SchedulerConfig(), SwarmShape(programs=5, fault_rate=0.0), 1),
    "fcfs.ndjson.gz": (SchedulerConfig(profile="fcfs"), SwarmShape(programs=30), 2),
    "tight.ndjson": (
        SchedulerConfig(
            profile="fcfs",
            choices={
                "admit": Choice(name="depth", params={"depth": 2}),
                "pin": Choice(name="fixed", params={"ttl_s": 2.0}),
            },
            limits=SMALL,
        ),
        SwarmShape(programs=9, steps_per_program=4, arrival_ms_max=4_000, fault_rate=0.1),
        3,
    ),
    "pinned.ndjson.gz": (
        SchedulerConfig(
            profile="fcfs", choices={"pin": Choice(name="fixed", params={"ttl_s": 2.0})}
        ),
        SwarmShape(programs=20, arrival_ms_max=3_000, fault_rate=0.02, kv_tokens=4_000),
        5,
    ),
    "steered.ndjson": (
        SchedulerConfig(profile="agentsched", limits=SMALL),
        SwarmShape(programs=8, steps_per_program=4, arrival_ms_max=8_000, meddling=8),
        4,
    ),
    # Engines that leave looks unanswered.
    "silent.ndjson.gz": (
        SchedulerConfig(),
        SwarmShape(programs=12, arrival_ms_max=8_000, fault_rate=0.15),
        6,
    ),
    # Drains that hold over restarts.
    "drained.ndjson": (
        SchedulerConfig(profile="fcfs"),
        SwarmShape(programs=5, steps_per_program=3, arrival_ms_max=4_000, fault_rate=0.1),
        9,
    ),
}


def make(folder: Path) -> None:
    """Write all journals into a folder."""
    for name, (config, shape, seed) in JOURNALS.items():
        scheduler = build_scheduler(config)
        with JournalWriter(folder / name, journal_header(config)) as journal:
            Swarm(scheduler, seed=seed, shape=shape, on_turn=journal.write).run()


if __name__ == "__main__":
    make(Path(__file__).parent)
