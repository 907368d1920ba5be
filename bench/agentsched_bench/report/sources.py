"""What a report can be made of, each read into one shape: that of a comparison."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched.kernel import JournalEntry, JournalError
from agentsched.kernel.journal import decode, subjects
from agentsched.model import AgentschedError, ConfigError, Pin, Prefetch, Unpin
from agentsched_bench.compare import results as compared
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.inference import LOST_SHARE_MAX, Ratio, Verdict, paired_ratio
from agentsched_bench.compare.journals import tell
from agentsched_bench.compare.measure import call_of, program_of
from agentsched_bench.compare.results import ArmFigures, ArmRow, Call, CompareResult, Run
from agentsched_bench.live.results import SCHEMA as REPLAY
from agentsched_bench.live.results import Result, TraceRow
from agentsched_bench.replay.journal_file import open_journal
from agentsched_bench.sim.results import SCHEMA as SIMULATION
from agentsched_bench.sim.results import SimResult, SimRow
from agentsched_bench.workload.statistics import Spread

_KINDS: Final = "a result of compare, replay or simulate, or a journal"
PROXY: Final = "proxy"
#: A journal's header has its version; a result may well be called so, or have an arm that is.
_JOURNAL: Final = re.compile(rb'"journal":\s*\d')


def load(path: Path) -> CompareResult:
    """Read a result or a journal.

    Raises:
        AgentschedError: it is none of them, or damaged; the text names the file.
    """
    try:
        head = _beginning(path)
    except (OSError, EOFError, zlib.error) as error:
        # The system's words hold the path once more, and a number; gzip's have no others.
        said = error.strerror if isinstance(error, OSError) else None
        raise AgentschedError(f"{path}: {said or error}") from error
    if head.startswith(b'{"agentsched"') or _JOURNAL.search(head.partition(b"\n")[0][:4000]):
        return from_journal_file(path)
    schema = _schema(path)
    if schema == compared.SCHEMA:
        result = compared.read(path)
        # An interrupted comparison has whatever was finished.
        result.summary = result.summary or summarise(result)
        return result
    if schema == REPLAY:
        return from_replay(_decode(path, Result))
    if schema == SIMULATION:
        return from_simulation(_decode(path, SimResult))
    raise AgentschedError(f"{path}: schema {schema!r} is not {_KINDS}")


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        return bytes(file.read(65_536))


def _data(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


class _Head(msgspec.Struct):
    schema: str = ""


def _schema(path: Path) -> str:
    try:
        return msgspec.json.decode(_data(path), type=_Head).schema
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError) as error:
        raise AgentschedError(f"{path}: not {_KINDS}: {error}") from error


def _decode(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(_data(path), type=kind)
    except msgspec.MsgspecError as error:
        raise AgentschedError(f"{path}: damaged: {error}") from error


def from_replay(result: Result) -> CompareResult:
    """A replay as a comparison of its arms with the first one."""
    runs = []
    for row in result.runs:
        runs.append(
            Run(
                arm=row.arm,
                repeat=row.repeat,
                seed=result.seed,
                started_at=row.started_at,
                duration_s=row.duration_s,
                is_complete=row.is_complete,
                calls=_with_known([call_of(c) for c in result.calls if c.run == row.run]),
                programs=[program_of(p) for p in result.programs if p.run == row.run],
            )
        )
    made = _comparison(
        name=result.trace.name,
        how="live",
        trace=result.trace,
        arms=[ArmRow(name=a.name, text=a.url, about=a.url, ids=a.ids) for a in result.arms],
        spec=dict(result.options),
        versions=result.versions,
        command=result.command,
    )
    made.runs = runs
    made.started_at = result.runs[0].started_at if result.runs else ""
    made.is_complete = result.is_complete
    made.summary = summarise(made)
    return made


def _with_known(calls: list[Call]) -> list[Call]:
    """A replay does not keep its plan; each call had brought at least the prompt before it."""
    before: dict[tuple[str, str], int] = {}
    for call in sorted(calls, key=lambda call: call.sent_s):
        key = (call.program, call.conversation)
        prompt = call.prompt_tokens or 0
        call.known_tokens = min(before.get(key, 0), prompt)
        before[key] = prompt
    return calls


def from_simulation(result: SimResult) -> CompareResult:
    """A simulation's rows as a comparison. It keeps no calls, so there are no timelines."""
    names = list(dict.fromkeys(row.arm for row in result.rows))
    made = _comparison(
        name=result.trace.name,
        how="simulated",
        trace=result.trace,
        arms=[ArmRow(name=name, text=name) for name in names],
        spec=dict(result.options),
        versions=result.versions,
        command=result.command,
    )
    made.is_complete = True
    base = {row.seed: row for row in result.rows if row.arm == names[0]} if names else {}
    for name in names:
        rows = [row for row in result.rows if row.arm == name]
        made.summary.append(_simulated(name, rows, base, baseline=made.baseline))
    made.notes.append("The intervals are over seeds alone: a simulation's result has no programs.")
    return made


def _simulated(
    name: str, rows: Sequence[SimRow], base: Mapping[int, SimRow], *, baseline: str
) -> ArmFigures:
    jct: Ratio | None = None
    failed = sum(row.failed for row in rows)
    if name != baseline:
        own = {(row.seed, "all"): row.jct_s.mean for row in rows}
        jct = paired_ratio(own, {(s, "all"): row.jct_s.mean for s, row in base.items()})
    verdict, sentence = _said(jct, rows, base, baseline=baseline)
    prompts = sum(row.prompt_tokens for row in rows)
    cached = sum(row.cached_share * row.prompt_tokens for row in rows)
    time_s = sum(row.makespan_s for row in rows)
    outputs = sum(row.output_tokens for row in rows)
    return ArmFigures(
        arm=name,
        runs=len(rows),
        completed=sum(row.programs for row in rows),
        failed=failed,
        calls=sum(row.calls for row in rows),
        errors=failed,
        # Whoever is turned away tries again, until it gives up.
        retries=max(0, sum(row.rejected for row in rows) - failed),
        jct_s=_mean_spread([row.jct_s for row in rows]),
        run_jct_s=[row.jct_s.mean for row in rows],
        slowdown=_known([row.slowdown for row in rows]),
        ttft_s=_mean_spread([row.first_token_wait_s for row in rows]),
        held_s=_known([row.held_s for row in rows]),
        bypassed_max=None,
        prompt_tokens=prompts,
        cached_tokens=round(cached),
        cached_share=cached / prompts if prompts else None,
        computed_tokens=round(prompts - cached),
        again_tokens=sum(row.again_tokens for row in rows),
        output_tokens=outputs,
        preemptions=None,
        busy_share=sum(row.busy_share for row in rows) / len(rows),
        throughput_tokens_s=outputs / time_s if time_s else 0.0,
        recognised_share=None,
        tenants=[],
        jain=None,
        share_gap_tokens=None,
        jct=jct,
        ttft=None,
        noise=None,
        verdict=verdict,
        sentence=sentence,
    )


def _said(
    jct: Ratio | None, rows: Sequence[SimRow], base: Mapping[int, SimRow], *, baseline: str
) -> tuple[Verdict | None, str]:
    """The verdict and it in words: none where too many programs gave up on either arm."""
    if jct is None:
        return None, "what the others are compared with"
    sentence = jct.sentence("mean job completion time", against=baseline)
    both = [(row, base[row.seed]) for row in rows if row.seed in base]
    gave_up = sum(own.failed + other.failed for own, other in both)
    programs = sum(own.programs + own.failed for own, _ in both)
    if gave_up > LOST_SHARE_MAX * programs:
        text = f"cannot be said: of {programs} programs {sum(r.failed for r, _ in both)} gave up"
        on_other = sum(other.failed for _, other in both)
        return Verdict.UNKNOWN, f"{text}, and {on_other} on {baseline} (it would be: {sentence})"
    return jct.verdict, sentence


def _mean_spread(spreads: Sequence[Spread]) -> Spread:
    """The mean of the seeds' figures, where they have any; the greatest of their maxima."""
    spreads = [each for each in spreads if each.count]

    def mean(values: Iterable[float]) -> float:
        known = list(values)
        return sum(known) / len(known) if known else 0.0

    return Spread(
        count=sum(s.count for s in spreads),
        mean=mean(s.mean for s in spreads),
        p50=mean(s.p50 for s in spreads),
        p90=mean(s.p90 for s in spreads),
        p95=mean(s.p95 for s in spreads),
        p99=mean(s.p99 for s in spreads),
        max=max((s.max for s in spreads), default=0.0),
    )


def _known(spreads: Sequence[Spread]) -> Spread | None:
    """As `_mean_spread`; None where no seed has any figure."""
    found = _mean_spread(spreads)
    return found if found.count else None


def from_journal_file(path: Path, *, program: str | None = None) -> CompareResult:
    """A proxy's journal as a comparison with one arm. `program`: that program's entries alone.

    Raises:
        AgentschedError: it cannot be read.
    """
    try:
        with open_journal(path) as reader:
            profile = reader.header.profile
            entries = list(reader)
    except (JournalError, OSError, EOFError) as error:
        raise AgentschedError(f"{path}: {error}") from error
    made = from_entries(entries, name=path.name, profile=profile, program=program)
    if reader.is_cut:
        made.notes.append("The journal was cut off; what was whole is shown.")
    return made


def from_story(entries: Sequence[Mapping[str, Any]], *, program: str) -> CompareResult:
    """A program's story, as a running proxy's control plane tells it."""
    lines = [decode(json.dumps(entry).encode()) for entry in entries]
    if not lines:
        raise ConfigError(f"nothing is kept of program {program!r}")
    return from_entries(lines, name=program, profile="", program=program)


def from_entries(
    entries: Iterable[JournalEntry], *, name: str, profile: str, program: str | None = None
) -> CompareResult:
    """Journal entries as a comparison with one arm."""
    kept = list(entries)
    if program is not None:
        kept = _about(kept, program)
        if not kept:
            raise ConfigError(f"{name}: nothing about program {program!r}")
    told = tell(kept)
    run = Run(
        arm=PROXY,
        repeat=0,
        seed=0,
        duration_s=told.length_s,
        is_complete=True,
        calls=told.calls,
        programs=told.programs,
        pins=told.pins,
        decisions=told.decisions,
        decisions_total=told.totals,
    )
    made = _comparison(
        name=name,
        how="journal",
        trace=TraceRow(
            name=name,
            sha256="",
            programs=len(told.programs),
            calls=len(told.calls),
            is_synthetic=False,
        ),
        arms=[ArmRow(name=PROXY, text=PROXY, about=f"profile {profile}" if profile else "")],
        spec={"profile": profile} if profile else {},
        versions=compared.versions(),
        command=[],
    )
    made.runs, made.is_complete = [run], True
    made.summary = summarise(made)
    return made


def _about(entries: Iterable[JournalEntry], program: str) -> list[JournalEntry]:
    """Entries about a program: those that name it or one of its steps or pins."""
    known = {program}
    kept = []
    for entry in entries:
        if known.isdisjoint(subjects(entry)) and known.isdisjoint(_pins(entry)):
            continue
        kept.append(entry)
        # Later entries name the step or the pin only.
        if getattr(entry.event, "program", None) == program:
            known.add(str(getattr(entry.event, "step", program)))
        for command in entry.commands:
            if getattr(command, "program", None) == program:
                known.add(str(getattr(command, "pin", program)))
    return kept


def _pins(entry: JournalEntry) -> set[str]:
    return {str(c.pin) for c in entry.commands if isinstance(c, Pin | Unpin | Prefetch)}


def _comparison(
    *,
    name: str,
    how: Any,
    trace: TraceRow,
    arms: list[ArmRow],
    spec: dict[str, object],
    versions: dict[str, str],
    command: list[str],
) -> CompareResult:
    return CompareResult(
        schema=compared.SCHEMA,
        name=name,
        how=how,
        command=command,
        started_at="",
        versions=versions,
        machine={},
        spec=spec,
        trace=trace,
        arms=arms,
        baseline=arms[0].name if arms else "",
    )


def only_program(result: CompareResult, program: str) -> CompareResult:
    """The result with this program's rows alone. Raises ConfigError when it has none.

    What is known of whole runs only says that it is of all programs, or is left out.
    """
    found = False
    for run in result.runs:
        labels = {call.label for call in run.calls if call.program == program} | {program}
        names = {program} | {c.program for c in run.calls if c.label in labels and c.label}
        run.calls = [call for call in run.calls if call.program in names]
        run.programs = [row for row in run.programs if row.program in names]
        run.pins = [pin for pin in run.pins if pin.program in names]
        run.decisions = [d for d in run.decisions if d.program in names]
        totals = run.decisions_total.items()
        run.decisions_total = {f"{kind} of all programs": count for kind, count in totals}
        run.preemptions = run.busy_share = None
        run.duration_s = _span_s(run.calls)
        found = found or bool(run.calls)
    if not found:
        raise ConfigError(f"{result.name}: no program {program!r} is in it")
    result.name = program
    result.trace = msgspec.structs.replace(
        result.trace,
        programs=max(len({call.program for call in run.calls}) for run in result.runs),
        calls=max(len(run.calls) for run in result.runs),
    )
    result.summary = summarise(result)
    return result


def _span_s(calls: Sequence[Call]) -> float:
    """From the first call to the end of the last."""
    ends = [call.sent_s + call.latency_s for call in calls]
    return max(ends, default=0.0) - min((call.sent_s for call in calls), default=0.0)
