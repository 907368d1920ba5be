"""Recorded files written by hand, and what an import makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentsched_bench.workload.importers import ImportOptions, ImportReport, import_trace
from agentsched_bench.workload.trace import Recording, read_trace
from agentsched_bench.workload.validate import validate_trace


def imported(
    path: Path | list[Path], out: Path, *, text: bool = False, format_name: str = "auto"
) -> tuple[list[Recording], ImportReport]:
    """The recordings of these files, which are without a fault, and the report."""
    paths = path if isinstance(path, list) else [path]
    report = import_trace(
        paths, out, format_name=format_name, options=ImportOptions(keeps_text=text)
    )
    if not report.recordings:
        return [], report
    checked = validate_trace(out)
    assert (checked.errors, checked.warnings) == (0, 0), checked.findings
    return list(read_trace(out)), report


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def agentic() -> list[dict[str, Any]]:
    """Rows of agentic Mooncake: a program whose second step awaits a sub-agent and a tool."""

    def row(name: str, session: str, prompt: int, **more: Any) -> dict[str, Any]:
        base = {"request_id": name, "session_id": session, "input_length": prompt}
        return base | {"output_length": 10, "hash_ids": list(range(prompt // 64 + 1))} | more

    tool = {"tool_call_id": "t", "tool_class": "bash", "status": "succeeded", "duration_ms": 1500}
    times = {"started_at_unix_ms": 0, "ended_at_unix_ms": 1500}
    return [
        row("r1", "main", 128, timestamp=5000.0, branches=["c1"]),
        row("c1", "child", 64, wait_for=["r1"], delay=250),
        row("c2", "child", 200, wait_for=["c1"], tool_wait_ms=100, prefix_reset=True),
        row(
            "r2", "main", 300, wait_for=["r1", "c2"], tool_wait_ms=1500, tool_events=[tool | times]
        ),
    ]
