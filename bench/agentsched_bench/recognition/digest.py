"""What a test of recognition found, small enough to keep: figures and a row for each program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from agentsched_bench.live.attribution import Attribution
from agentsched_bench.live.results import COMPLETED, Result, TraceRow, attribute

SCHEMA: Final = "agentsched.recognition/1"


class Verdict(msgspec.Struct, kw_only=True):
    """One convention in one dialect.

    `evidence` counts the calls by what the proxy went by. `wrong` has the programs that were not
    recognised as one, or were taken for another: for each the number of its calls by label.
    """

    convention: str
    dialect: str
    programs: int
    completed: int
    calls: int
    errors: int
    duration_s: float
    attribution: Attribution | None
    evidence: dict[str, int]
    wrong: dict[str, list[int]]


class Digest(msgspec.Struct, kw_only=True):
    """The whole measurement. `programs` has each program's calls, those of sub-agents included."""

    schema: str
    command: list[str]
    measured_at: str
    versions: dict[str, str]
    engine: str
    traces: list[TraceRow]
    options: dict[str, object]
    verdicts: list[Verdict]
    programs: dict[str, int]


def verdicts(result: Result, *, dialect: str) -> list[Verdict]:
    """One verdict for each arm of a replay."""
    return [_verdict(result, arm=arm.name, ids=arm.ids, dialect=dialect) for arm in result.arms]


def _verdict(result: Result, *, arm: str, ids: str, dialect: str) -> Verdict:
    calls = [row for row in result.calls if row.arm == arm]
    programs = [row for row in result.programs if row.arm == arm]
    evidence: dict[str, int] = {}
    for row in calls:
        name = _field(row.decision or "", "as")
        evidence[name] = evidence.get(name, 0) + 1
    return Verdict(
        convention=ids,
        dialect=dialect,
        programs=len(programs),
        completed=sum(row.outcome == COMPLETED for row in programs),
        calls=len(calls),
        errors=sum(bool(row.error) for row in calls),
        duration_s=round(sum(row.duration_s for row in result.runs if row.arm == arm), 1),
        attribution=attribute(calls),
        evidence=dict(sorted(evidence.items())),
        wrong=_wrong([(row.program, row.label) for row in calls if not row.error]),
    )


def _wrong(pairs: Sequence[tuple[str, str | None]]) -> dict[str, list[int]]:
    counts: dict[str, dict[str | None, int]] = {}
    owners: dict[str | None, set[str]] = {}
    for program, label in pairs:
        labels = counts.setdefault(program, {})
        labels[label] = labels.get(label, 0) + 1
        owners.setdefault(label, set()).add(program)
    return {
        program: sorted(labels.values(), reverse=True)
        for program, labels in sorted(counts.items())
        if len(labels) > 1 or None in labels or any(len(owners[label]) > 1 for label in labels)
    }


def _field(decision: str, name: str) -> str:
    """The value of `name` in a decision header, or `unknown`."""
    for word in decision.split():
        key, _, value = word.partition("=")
        if key == name:
            return value
    return "unknown"
