"""`python -m agentsched_bench.sim.speed TRACE`: what a simulation costs, as JSON.

    python -m agentsched_bench.sim.speed ../shared/traces/miniswe-gemini3-swebench-verified.jsonl.gz

The load, the engines and the arms are those of `agentsched simulate`, and so is the work: reading
the trace, playing each program alone (for the slowdowns), playing all of them. The answer has CPU
seconds of each, calls per CPU second and the peak of memory. With `--cpu-limit` a simulation that
takes longer is stopped, and the answer says how far it came. With `--digest` it has a hash over
all events and commands (equal before and after a change that must not change results); hashing is
work too, so its times are not to be quoted.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import xxhash

from agentsched.kernel import JournalEntry, encode
from agentsched.model import in_seconds, seconds
from agentsched.model.time import Instant, Nanos
from agentsched_bench.compare.results import machine, versions
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Outcome, Scenario, alone, parse_arm, run_arm
from agentsched_bench.sim.cli import load, shape_for
from agentsched_bench.sim.specs import fleet_of

SCHEMA: Final = "agentsched.simulation-speed/1"
#: How many turns pass between two looks at the clock.
_LOOK_EVERY: Final = 64
_START: Final = Instant(0)

T = TypeVar("T")


class SpeedRow(msgspec.Struct, kw_only=True):
    """One arm under one seed.

    `calls` and `turns` are what was played, `simulated_s` how far virtual time came. What a stopped
    simulation (`is_finished` false) would have cost in the end is not known.
    """

    arm: str
    seed: int
    is_finished: bool
    calls: int
    turns: int
    simulated_s: float
    cpu_s: float
    wall_s: float
    calls_per_cpu_s: float
    cached_share: float | None = None
    jct_mean_s: float | None = None
    digest: str | None = None


class Speed(msgspec.Struct, kw_only=True):
    """The whole of one invocation. `total_cpu_s` is that of reading, playing alone and all rows."""

    schema: str
    command: list[str]
    versions: dict[str, str]
    machine: dict[str, str]
    programs: int
    calls: int
    engines: int
    block_size: int
    read_cpu_s: float
    alone_cpu_s: float | None
    rows: list[SpeedRow]
    total_cpu_s: float
    peak_memory_mib: float


class _TooSlow(Exception):
    """The CPU time that a simulation was given is used up."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """Sees every turn of a simulation: counts, hashes where asked to, ends what takes too long."""

    ends_at_s: float | None = None
    hasher: xxhash.xxh3_128 | None = None
    calls: int = 0
    turns: int = 0
    now: Instant = _START

    def turn(self, entry: JournalEntry) -> None:
        """One turn of the scheduler.

        Raises:
            _TooSlow: the time is up.
        """
        self.turns += 1
        self.now = entry.now
        self.calls += type(entry.event).__name__ == "StepArrived"
        if self.hasher is not None:
            self.hasher.update(encode(entry))
        if self.ends_at_s is None or self.turns % _LOOK_EVERY:
            return
        if time.process_time() >= self.ends_at_s:
            raise _TooSlow


def measure(
    text: str,
    scenario: Scenario,
    *,
    seed: int,
    cpu_limit_s: float | None = None,
    digest: bool = False,
) -> SpeedRow:
    """Play one arm and say what it cost."""
    began_s, wall_s = time.process_time(), time.perf_counter()
    watch = Watch(
        ends_at_s=None if cpu_limit_s is None else began_s + cpu_limit_s,
        hasher=xxhash.xxh3_128() if digest else None,
    )
    outcome: Outcome | None = None
    with contextlib.suppress(_TooSlow):
        outcome = run_arm(parse_arm(text), scenario, seed=seed, on_turn=watch.turn)
    cpu_s = time.process_time() - began_s
    row = SpeedRow(
        arm=text,
        seed=seed,
        is_finished=outcome is not None,
        calls=watch.calls,
        turns=watch.turns,
        simulated_s=in_seconds(Nanos(watch.now)),
        cpu_s=round(cpu_s, 2),
        wall_s=round(time.perf_counter() - wall_s, 2),
        calls_per_cpu_s=round(watch.calls / max(cpu_s, 1e-9), 1),
        digest=None if watch.hasher is None else watch.hasher.hexdigest(),
    )
    if outcome is not None:
        _add_results(row, outcome)
    return row


def _add_results(row: SpeedRow, outcome: Outcome) -> None:
    tally = outcome.tally
    row.calls = tally.calls
    row.cached_share = tally.cached_tokens / max(1, tally.prompt_tokens)
    spans = [run.ended_at - run.started_at for run in outcome.runs if run.ended_at is not None]
    row.jct_mean_s = in_seconds(Nanos(sum(spans))) / max(1, len(spans))


def peak_memory_mib() -> float:
    """The most memory this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began_s = time.process_time()
    found = work()
    return found, round(time.process_time() - began_s, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    given = _parser().parse_args(arguments)
    loads = machine()
    fleet = fleet_of([f"{given.engines}x{given.preset}"], block_size=given.block_size)
    shape = shape_for(
        fleet, tokens=given.scale_tokens, time=given.scale_time, gap_cap=60.0, steps=given.steps
    )
    sessions = given.sessions
    (plans, row), read_s = _timed(lambda: load(given.trace, shape, sessions=sessions))
    scenario = Scenario(
        plans=plans,
        engines=fleet.engines,
        traits=fleet.traits,
        arrivals=parse_arrivals(given.arrivals),
        programs=given.programs,
        wait_ns_max=seconds(given.max_wait),
    )
    alone_s = None if given.no_alone else _timed(lambda: alone(scenario))[1]
    rows = [
        measure(arm, scenario, seed=seed, cpu_limit_s=given.cpu_limit, digest=given.digest)
        for arm in given.profile or ["agentsched"]
        for seed in given.seeds
    ]
    speed = Speed(
        schema=SCHEMA,
        command=["python", "-m", "agentsched_bench.sim.speed", *(arguments or sys.argv[1:])],
        versions=versions(),
        machine=loads,
        programs=given.programs or len(plans),
        calls=row.calls,
        engines=given.engines,
        block_size=fleet.engines[0].block_size,
        read_cpu_s=read_s,
        alone_cpu_s=alone_s,
        rows=rows,
        total_cpu_s=round(read_s + (alone_s or 0.0) + sum(one.cpu_s for one in rows), 2),
        peak_memory_mib=peak_memory_mib(),
    )
    text = msgspec.json.format(msgspec.json.encode(speed), indent=1) + b"\n"
    if given.out is not None:
        given.out.write_bytes(text)
    sys.stdout.write(text.decode())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentsched_bench.sim.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--profile", action="append", help="an arm (default agentsched)")
    parser.add_argument("--programs", type=int, help="how many; more than there are replays some")
    parser.add_argument("--sessions", type=int, help="take so many of the trace (default all)")
    parser.add_argument("--steps", type=int, help="at most this many calls per conversation")
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--preset", default="h100-8b")
    parser.add_argument("--block-size", type=int, help="tokens (default: the preset's, 16)")
    parser.add_argument("--arrivals", default="poisson:0.5")
    parser.add_argument("--scale-tokens", type=float, default=1.0)
    parser.add_argument("--scale-time", type=float, default=1.0)
    parser.add_argument("--max-wait", type=float, default=15.0, help="seconds")
    parser.add_argument("--seeds", type=_seeds, default=[1], help="comma-separated (default 1)")
    parser.add_argument("--cpu-limit", type=float, help="stop each simulation after such seconds")
    parser.add_argument("--no-alone", action="store_true", help="do not play each program alone")
    parser.add_argument("--digest", action="store_true", help="hash all events and commands")
    parser.add_argument("--out", type=Path)
    return parser


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
