"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

_COLUMNS: Final = (
    "scenario",
    "programs",
    "calls",
    "failed: whole / stream",
    "streams cut (told / broken)",
    "hung",
    "p95 s before / during / after",
    "answer after",
    "known: ids / none / at a switch",
    "the greedy tenant's share",
    "gap of bound before / during / after",
)


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line for each run of ours."""
    return _markdown(_COLUMNS, [_row(result) for result in results])


def comparison(results: Sequence[dict[str, Any]]) -> str:
    """Failed, cut and hung calls of each router, scenario by scenario."""
    names = list(dict.fromkeys(r["target"] for r in results))
    common = [
        name
        for name in dict.fromkeys(r["scenario"] for r in results)
        if len({r["target"] for r in results if r["scenario"] == name}) > 1
    ]
    rows = []
    for scenario in common:
        row = [scenario]
        for target in names:
            found = [r for r in results if (r["scenario"], r["target"]) == (scenario, target)]
            row.append(_short(found[-1]) if found else "-")
        rows.append(row)
    return _markdown(["failed / cut / hung of calls; failed attempts; silence", *names], rows)


def _row(r: dict[str, Any]) -> list[str]:
    spans = r["latency_s"].values()
    p95 = " / ".join(f"{span['p95']:g}" if span else "-" for span in spans)
    cuts = r["cut_by_kind"]
    return [
        r["scenario"],
        f"{r['programs_completed']} of {r['programs']}",
        str(r["calls"]),
        f"{r['failed_whole']} / {r['failed_streams']}",
        f"{r['streams_cut']} ({cuts.get('told', 0)} / {cuts.get('broken', 0)})",
        str(r["hung"]),
        p95,
        _first_answer(r),
        _known(r.get("recognition")),
        _share(r.get("shares") if r.get("is_greedy") else None),
        _gap(r.get("gap")),
    ]


def _first_answer(r: dict[str, Any]) -> str:
    """How long after the fault somebody was answered who asked after it."""
    if "first_answer_after_s" not in r:
        return "-"
    after_s = r["first_answer_after_s"]
    return "never" if after_s is None else f"{after_s:g} s"


def _known(found: dict[str, dict[str, int]] | None) -> str:
    if not found:
        return "-"
    ids, none = found["with_ids"], found["without_ids"]
    switched = f"{none['kept_switched']} of {none['switched']}"
    return f"{ids['kept']} of {ids['followed']} / {none['kept']} of {none['followed']} / {switched}"


def _share(found: dict[str, dict[str, float]] | None) -> str:
    if not found:
        return "-"
    return " / ".join(f"{part['red']:.2f}" if "red" in part else "-" for part in found.values())


def _gap(found: dict[str, Any] | None) -> str:
    """Where the tenants' accounts came nearest to the bound, in each part of the run."""
    if not found:
        return "-"
    nearest = [span.get("nearest") for span in found["spans"].values()]
    text = " / ".join(f"{n['gap']} of {n['bound']}" if n else "-" for n in nearest)
    if not found["is_shown"]:
        return f"not shown ({text})"
    return text if found["is_within"] else f"EXCEEDED: {text}"


def _short(r: dict[str, Any]) -> str:
    failed, cut, hung = r["calls_failed"], r["streams_cut"], r["hung"]
    bad = r["attempts"] - r["attempts_by_outcome"].get("200", 0)
    return f"{failed} / {cut} / {hung} of {r['calls']}; {bad}; {r['longest_silence_s']:g} s"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
