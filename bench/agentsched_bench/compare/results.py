"""What a comparison measured, as it lies in the file: specification, runs, calls, figures."""

from __future__ import annotations

import gzip
import os
import platform
import time
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec

from agentsched.model import AgentschedError
from agentsched_bench.compare.inference import Ratio, Verdict
from agentsched_bench.live.results import TraceRow
from agentsched_bench.whole_file import write_whole
from agentsched_bench.workload.statistics import Spread

SCHEMA: Final = "agentsched.compare/1"


class Call(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call. `sent_s` is seconds since its run began.

    `held_s` is how long the proxy kept it back, `ttft_s` from sending to the first token, waits and
    tries included; None where nobody said. `refused_s` of that went by before its last try, for it
    was turned away. `known_tokens` is how much of the prompt an earlier call
    of the conversation had already brought, `cached_tokens` what the engine still had of it all.
    `label` is the program that the proxy took it for. `error` is empty on success.
    """

    program: str
    conversation: str
    step: int
    sent_s: float
    latency_s: float
    ttft_s: float | None = None
    held_s: float | None = None
    refused_s: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    known_tokens: int = 0
    tenant: str = ""
    engine: str = ""
    label: str = ""
    decision: str = ""
    bypassed: int | None = None
    attempts: int = 1
    error: str = ""
    tools: tuple[str, ...] = ()


class Program(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One program in one run. `jct_s` is None unless it completed."""

    program: str
    started_s: float
    jct_s: float | None
    outcome: str
    tenant: str = ""


class Pinned(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A stretch of time in which a program's KV was retained; `end` says what ended it."""

    program: str
    conversation: str
    from_s: float
    to_s: float
    end: str = ""
    engine: str = ""


class Reading(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The engines' gauges at one moment, summed over engines (`kv_usage`: the mean)."""

    at_s: float
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None


class Decision(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One decision worth showing: a refusal, a pin, an unpin, a step that was held for long."""

    at_s: float
    kind: str
    text: str
    program: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the machine itself did to a run, in seconds of its clock over `watched_s`.

    A gap is a second and more in which the harness was to wake and did not: `gaps` of them,
    `gaps_s` together, `longest_gap_s` the longest. `longest_wait_s` is how long a process of the
    run (`waiting`) at least was ready to go on and got no CPU. `steal_share` of all CPUs' time went
    to other virtual machines, `others_share` to processes that are not the run's. `kernel_stalls`
    counts the lines of the kernel's log about stalls. None: not to be known here.
    """

    watched_s: float
    gaps: int = 0
    gaps_s: float = 0.0
    longest_gap_s: float = 0.0
    longest_wait_s: float = 0.0
    waiting: str = ""
    steal_share: float | None = None
    others_share: float | None = None
    kernel_stalls: int | None = None


class Replaced(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was made again because the machine had stood still; what is left of it."""

    machine: Machine
    jct_mean_s: float | None


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All programs once on one arm.

    `preemptions` and `busy_share` are the engines' own over the run. `decisions_total` counts
    commands by kind; `decisions` has the latest that are worth a line. `machine` is what the
    machine did meanwhile (live runs), `replaced` the run that this one was made in place of.
    """

    arm: str
    repeat: int
    seed: int
    started_at: str = ""
    duration_s: float = 0.0
    is_complete: bool = False
    calls: list[Call] = []
    programs: list[Program] = []
    pins: list[Pinned] = []
    readings: list[Reading] = []
    decisions: list[Decision] = []
    decisions_total: dict[str, int] = {}
    preemptions: float | None = None
    busy_share: float | None = None
    log: str = ""
    note: str = ""
    machine: Machine | None = None
    replaced: Replaced | None = None


class ArmRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One side. `missing` says why it could not run, at all or in a later repeat.

    `has_failed`: as far as anybody knew it could be run, and then it did not start or broke off.
    """

    name: str
    text: str
    about: str = ""
    version: str = ""
    ids: str = "none"
    missing: str = ""
    has_failed: bool = False


class TenantFigures(msgspec.Struct, kw_only=True):
    """One tenant on one arm."""

    tenant: str
    programs: int
    jct_mean_s: float
    slowdown_p99: float | None
    ttft_p99_s: float
    service_tokens: int


class ArmFigures(msgspec.Struct, kw_only=True):
    """One arm over its finished runs.

    `slowdown` is over the time alone on an idle engine, None where that is unknown. `again_tokens`
    were computed although an earlier call of the conversation had computed them; they, the cached
    and the computed are None where no engine told what it had cached. `held_s` is the
    proxy's own wait. `jct` compares with the baseline, program by program, None for the baseline;
    `noise` compares the arm with itself in the repeat before. `share_gap_tokens` is the greatest
    difference of service between two tenants while both had work waiting. `stalled` counts the
    runs in which the machine stood still; they are in no figure unless there is no other run.
    `in_time_share` is of the programs that have a deadline.
    """

    arm: str
    runs: int
    completed: int
    failed: int
    calls: int
    errors: int
    retries: int
    jct_s: Spread
    run_jct_s: list[float]
    slowdown: Spread | None
    ttft_s: Spread
    held_s: Spread | None
    bypassed_max: int | None
    prompt_tokens: int
    cached_tokens: int | None
    cached_share: float | None
    computed_tokens: int | None
    again_tokens: int | None
    output_tokens: int
    preemptions: float | None
    busy_share: float | None
    throughput_tokens_s: float
    recognised_share: float | None
    tenants: list[TenantFigures]
    jain: float | None
    share_gap_tokens: float | None
    jct: Ratio | None
    ttft: Ratio | None
    noise: Ratio | None
    verdict: Verdict | None
    sentence: str
    stalled: int = 0
    in_time_share: float | None = None


class CompareResult(msgspec.Struct, kw_only=True):
    """The whole of a comparison."""

    schema: str
    name: str
    how: Literal["live", "simulated", "journal"]
    command: list[str]
    started_at: str
    versions: dict[str, str]
    machine: dict[str, str]
    spec: dict[str, object]
    trace: TraceRow
    arms: list[ArmRow]
    baseline: str
    question: str = ""
    expects: str = ""
    #: Seconds that each program takes alone on an idle engine, and how that is known.
    alone_s: dict[str, float] = {}
    alone_how: str = ""
    #: Seconds from its start within which each program is wanted, where it is.
    deadlines_s: dict[str, float] = {}
    #: A hash of the engines as models, whose costs may lie in a file; empty in older results.
    engines_sha256: str = ""
    runs: list[Run] = []
    summary: list[ArmFigures] = []
    notes: list[str] = []
    is_complete: bool = False


def versions() -> dict[str, str]:
    """What ran this."""
    return {
        "agentsched": metadata.version("agentsched"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def machine() -> dict[str, str]:
    """Where it ran, as far as figures depend on it; no names."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)
    return {
        "cpus": str(os.cpu_count()),
        "load_before": f"{load[0]:.2f}",
        "processor": _processor(),
        "clock": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def write(result: CompareResult, path: Path) -> None:
    """Replace `path` as a whole, or leave it as it was; gzip by name. Raises OSError."""
    data = msgspec.json.encode(result)
    if path.suffix == ".gz":
        data = gzip.compress(data, compresslevel=6, mtime=0)
    write_whole(path, data)


def read(path: Path) -> CompareResult:
    """Read a comparison. Raises AgentschedError, naming the file, if it is none."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        result = msgspec.json.decode(data, type=CompareResult)
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError) as error:
        raise AgentschedError(f"{path}: not a comparison's result: {error}") from error
    if result.schema != SCHEMA:
        raise AgentschedError(f"{path}: schema {result.schema!r}, this version reads {SCHEMA!r}")
    return result


def left_out(result: CompareResult) -> list[str]:
    """A line for each arm that could not run, at all or any more, with why."""
    lines = []
    for row in result.arms:
        if row.missing:
            done = len(finished_runs(result, row.name))
            after = f" after {done} run{'' if done == 1 else 's'}" if done else ""
            lines.append(f"{row.name}: left out{after}, {row.missing}")
    return lines


def finished_runs(result: CompareResult, arm: str) -> Sequence[Run]:
    """The arm's runs that came to their end, in order of repeats."""
    own = [run for run in result.runs if run.arm == arm and run.is_complete]
    return sorted(own, key=lambda run: run.repeat)
