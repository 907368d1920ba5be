"""The figures, programs and calls of results as CSV, for spreadsheets and notebooks."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched_bench.compare.results import ArmFigures, CompareResult

#: What a spreadsheet takes for the beginning of a formula. Names and errors are clients' words.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def write_csv(results: Sequence[CompareResult], folder: Path) -> list[Path]:
    """Write `summary.csv`, `programs.csv` and `calls.csv` into `folder`. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "summary.csv": [
            {**_whose(result), **_flat(arm)} for result in results for arm in result.summary
        ],
        "programs.csv": list(_programs(results)),
        "calls.csv": list(_calls(results)),
    }
    paths = []
    for name, rows in tables.items():
        path = folder / name
        _write(path, rows)
        paths.append(path)
    return paths


def _whose(result: CompareResult) -> dict[str, Any]:
    """What tells a row's result from others of the same scenario."""
    return {"comparison": result.name, "how": result.how, "started_at": result.started_at}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)


def _plain(value: Any) -> Any:
    """The value, marked as a text where a spreadsheet would compute it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _flat(arm: ArmFigures) -> dict[str, Any]:
    """One level: `jct_s.p95` for what is inside; lists are left to the other files."""
    flat: dict[str, Any] = {}
    for key, value in msgspec.to_builtins(arm).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{k}": v for k, v in value.items() if not isinstance(v, (list, tuple))}
        elif not isinstance(value, (list, tuple)):
            flat[key] = value
    return flat


def _programs(results: Iterable[CompareResult]) -> Iterable[dict[str, Any]]:
    for result in results:
        for run in result.runs:
            for row in run.programs:
                yield {
                    **_whose(result),
                    "arm": run.arm,
                    "repeat": run.repeat,
                    "is_complete": run.is_complete,
                    "program": row.program,
                    "tenant": row.tenant,
                    "started_s": row.started_s,
                    "jct_s": row.jct_s,
                    "alone_s": result.alone_s.get(row.program),
                    "outcome": row.outcome,
                }


def _calls(results: Iterable[CompareResult]) -> Iterable[dict[str, Any]]:
    for result in results:
        for run in result.runs:
            for call in run.calls:
                row = {name: getattr(call, name) for name in call.__struct_fields__}
                row["tools"] = " ".join(call.tools)
                yield {
                    **_whose(result),
                    "arm": run.arm,
                    "repeat": run.repeat,
                    **row,
                }
