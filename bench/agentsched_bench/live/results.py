"""What a replay measured: rows for calls and programs, a summary, a file that is always whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model import AgentschedError
from agentsched_bench.live.attribution import Attributed, Attribution, attribution
from agentsched_bench.whole_file import write_whole
from agentsched_bench.workload.statistics import Spread, spread

SCHEMA: Final = "agentsched.replay/1"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
INTERRUPTED: Final = "interrupted"


class CallRow(msgspec.Struct, kw_only=True):
    """One call. `sent_s` is seconds since the run began; `label` is the program that the other side
    took it for (`x-agentsched-program`), if it said so. `refused_s` is when its last try was sent,
    after the first. `error` is empty on success.
    """

    run: int
    arm: str
    program: str
    conversation: str
    step: int
    sent_s: float
    status: int
    error: str
    attempts: int
    waited_s: float
    ttft_s: float | None
    latency_s: float
    planned_prompt_tokens: int
    planned_output_tokens: int
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    label: str | None = None
    engine: str | None = None
    decision: str | None = None
    tenant: str = ""
    refused_s: float = 0.0


class ProgramRow(msgspec.Struct, kw_only=True):
    """One program in one run. `jct_s` is from its start to the end of its last call, None unless it
    completed; `pauses_s` how long its main conversation's tools took.
    """

    run: int
    arm: str
    program: str
    started_s: float
    jct_s: float | None
    outcome: str
    calls_planned: int
    calls_done: int
    pauses_s: float
    tenant: str = ""


class RunRow(msgspec.Struct, kw_only=True):
    """All programs once on one arm. `started_at` is UTC, ISO 8601."""

    run: int
    arm: str
    repeat: int
    started_at: str
    salt: str
    duration_s: float = 0.0
    is_complete: bool = False


class ArmRow(msgspec.Struct, kw_only=True):
    """One side of a comparison."""

    name: str
    url: str
    ids: str


class TraceRow(msgspec.Struct, kw_only=True):
    """What was replayed."""

    name: str
    sha256: str
    programs: int
    calls: int
    is_synthetic: bool


class ArmSummary(msgspec.Struct, kw_only=True):
    """One arm's figures over all its runs.

    Programs and calls that failed or were interrupted are counted, and are in no distribution.
    `cached_share` is cached over prompt tokens where the server reported both; it and
    `cached_tokens` are None where it never did. `run_jct_s` has the mean of each run, for the
    spread. `jct_ratio` is the median over programs of this arm's JCT over the first arm's in the
    same repeat, None for the first arm.
    """

    arm: str
    programs: dict[str, int]
    calls: int
    errors: int
    retries: int
    jct_s: Spread
    run_jct_s: list[float]
    jct_ratio: float | None
    ttft_s: Spread
    latency_s: Spread
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    cached_share: float | None
    prompt_error: float | None
    attribution: Attribution | None


class Result(msgspec.Struct, kw_only=True):
    """The whole of a replay, as it lies in the file."""

    schema: str
    command: list[str]
    seed: int
    versions: dict[str, str]
    trace: TraceRow
    options: dict[str, object]
    arms: list[ArmRow]
    runs: list[RunRow] = []
    programs: list[ProgramRow] = []
    calls: list[CallRow] = []
    summary: list[ArmSummary] = []
    is_complete: bool = False


class Recorder:
    """Collects rows and keeps the file up to date: at most `every_s` of measurements are ever lost.

    The file is replaced as a whole, so that whoever reads it, at any time, reads a valid one.
    """

    def __init__(self, result: Result, *, path: Path | None, every_s: float = 5.0) -> None:
        self.result = result
        self._path = path
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def add_call(self, row: CallRow) -> None:
        self.result.calls.append(row)
        self._save_if_due()

    def add_program(self, row: ProgramRow) -> None:
        self.result.programs.append(row)
        self._save_if_due()

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved_at >= self._every_s:
            self.save()

    def save(self) -> None:
        """Bring the summary up to date and write the file, if there is one."""
        self.result.summary = summarise(self.result)
        self._saved_at = time.monotonic()
        if self._path is not None:
            write_result(self.result, self._path)


def write_result(result: Result, path: Path) -> None:
    """Replace `path` with `result`, or leave it as it was. Raises OSError."""
    write_whole(path, msgspec.json.encode(result))


def read_result(path: Path) -> Result:
    """Read a result. Raises AgentschedError, naming the file, if it is none of ours."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.MsgspecError) as error:
        raise AgentschedError(f"{path}: not a replay's result: {error}") from error
    if result.schema != SCHEMA:
        raise AgentschedError(f"{path}: schema {result.schema!r}, this version reads {SCHEMA!r}")
    return result


def summarise(result: Result) -> list[ArmSummary]:
    """The figures of every arm, in the order of the arms."""
    baseline = result.arms[0].name if result.arms else ""
    return [_summarise_arm(arm.name, result, baseline=baseline) for arm in result.arms]


def _summarise_arm(name: str, result: Result, *, baseline: str) -> ArmSummary:
    calls = [row for row in result.calls if row.arm == name]
    programs = [row for row in result.programs if row.arm == name]
    done = [row for row in calls if not row.error]
    counted = [row for row in done if row.prompt_tokens and row.cached_tokens is not None]
    prompts = sum(row.prompt_tokens or 0 for row in done)
    planned = sum(row.planned_prompt_tokens for row in done if row.prompt_tokens)
    known = sum(row.prompt_tokens or 0 for row in counted)
    cached = sum(row.cached_tokens or 0 for row in counted)
    outcomes = (COMPLETED, FAILED, INTERRUPTED)
    return ArmSummary(
        arm=name,
        programs={o: sum(row.outcome == o for row in programs) for o in outcomes},
        calls=len(calls),
        errors=sum(bool(row.error) and row.error != INTERRUPTED for row in calls),
        retries=sum(max(0, row.attempts - 1) for row in calls),
        jct_s=spread(row.jct_s for row in programs if row.jct_s is not None),
        run_jct_s=_run_means(programs),
        jct_ratio=None if name == baseline else _jct_ratio(name, result, baseline=baseline),
        ttft_s=spread(row.ttft_s for row in done if row.ttft_s is not None),
        latency_s=spread(row.latency_s for row in done),
        prompt_tokens=prompts,
        cached_tokens=cached if known else None,
        output_tokens=sum(row.output_tokens or 0 for row in done),
        cached_share=cached / known if known else None,
        prompt_error=prompts / planned - 1 if planned else None,
        attribution=attribute(calls),
    )


def attribute(calls: Iterable[CallRow]) -> Attribution | None:
    """How well the calls were attributed to programs; None if the other side never said."""
    answered = [row for row in calls if not row.error]
    if all(row.label is None for row in answered):
        return None
    # Runs are apart: the same program is replayed in each, and is another one there.
    return attribution(
        Attributed(
            truth=f"{row.run}/{row.program}",
            label=row.label,
            is_main=row.conversation == row.program,
        )
        for row in answered
    )


def _run_means(programs: Sequence[ProgramRow]) -> list[float]:
    times: dict[int, list[float]] = {}
    for row in programs:
        if row.jct_s is not None:
            times.setdefault(row.run, []).append(row.jct_s)
    return [sum(values) / len(values) for _, values in sorted(times.items())]


def _jct_ratio(name: str, result: Result, *, baseline: str) -> float | None:
    repeats = {row.run: row.repeat for row in result.runs}
    times: dict[tuple[str, int, str], float] = {
        (row.arm, repeats.get(row.run, 0), row.program): row.jct_s
        for row in result.programs
        if row.jct_s is not None
    }
    ratios = [
        jct_s / times[baseline, repeat, program]
        for (arm, repeat, program), jct_s in times.items()
        if arm == name and times.get((baseline, repeat, program))
    ]
    return spread(ratios).p50 if ratios else None
