"""Coverage of branches by room: what `scripts/coverage` shows of a `coverage json` report."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Covered:
    """Branches and statements of one room, and how many of each a run took."""

    branches: int = 0
    taken: int = 0
    statements: int = 0
    run: int = 0

    def add(self, summary: dict[str, Any]) -> None:
        """Count one file."""
        self.branches += summary["num_branches"]
        self.taken += summary["covered_branches"]
        self.statements += summary["num_statements"]
        self.run += summary["covered_lines"]

    def shown(self) -> dict[str, Any]:
        """As JSON, shares of one; a room without branches has them all."""
        return {
            "branches": self.branches,
            "branches_taken": round(self.taken / self.branches, 4) if self.branches else 1.0,
            "statements": self.statements,
            "statements_run": round(self.run / self.statements, 4) if self.statements else 1.0,
        }


def covered(report: Path, *, rooms: tuple[str, ...], below: float = 0.9) -> dict[str, Any]:
    """What a report says of these folders, and the files under a share of branches.

    Raises:
        ValueError: a folder is not in the report: its name is wrong, or nothing of it was run.
    """
    files: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["files"]
    by_room: dict[str, Covered] = defaultdict(Covered)
    whole, thin = Covered(), {}
    for name, one in sorted(files.items()):
        room = next((room for room in rooms if name.startswith(room + "/")), None)
        if room is None:
            continue
        by_room[room].add(one["summary"])
        whole.add(one["summary"])
        alone = Covered()
        alone.add(one["summary"])
        if alone.shown()["branches_taken"] < below:
            thin[name] = {
                "branches_taken": alone.shown()["branches_taken"],
                "not_taken": one.get("missing_branches", []),
            }
    if absent := [room for room in rooms if room not in by_room]:
        raise ValueError(f"not in the report: {', '.join(absent)}")
    return {
        "whole": whole.shown(),
        "rooms": {room: by_room[room].shown() for room in rooms},
        "thin": thin,
    }


def to_lines(found: dict[str, Any], *, least: float) -> list[str]:
    """The same for people: rooms, then files that are thin, then whether it is enough."""
    lines = [f"{'branches':>9} {'statements':>11}  room"]
    for room, one in [*found["rooms"].items(), ("together", found["whole"])]:
        lines.append(f"{one['branches_taken']:9.1%} {one['statements_run']:11.1%}  {room}")
    for name, one in sorted(found["thin"].items(), key=lambda item: item[1]["branches_taken"]):
        ways = ", ".join(f"{a}->{b if b > 0 else 'exit'}" for a, b in one["not_taken"][:12])
        lines.append(f"{one['branches_taken']:9.1%}  {name}: {ways}")
    is_enough = found["whole"]["branches_taken"] >= least
    lines.append(f"coverage: {'enough' if is_enough else 'NOT ENOUGH'}, the least is {least:.0%}")
    return lines
