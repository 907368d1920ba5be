"""What forecasts are asked about: tool sequences and gaps out of recordings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched.model import SECOND, Nanos, ToolName
from agentsched.proxy.tools import tool_name
from agentsched_bench.workload.trace import (
    RecordedStep,
    Recording,
    group_programs,
    read_lines,
    read_trace,
)
from agentsched_graphs.templates import END

#: Of ten programs, so many are learnt from; the others are held out.
_LEARNT_OF_TEN: Final = 7
_COMMAND: Final = re.compile(r"```(?:bash|sh)\n(.*?)\n```", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One conversation: its tools in order, and for each the gap after it where one is known.

    The program's last answer has the tool `(end)`, where its recording is whole.
    """

    program: str
    agent: str
    tools: tuple[ToolName, ...]
    gaps: tuple[Nanos | None, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether it is for the examination."""
        return is_held_out(self.program)


def is_held_out(program: str) -> bool:
    """By a hash of the program's id, so that no program is on both sides."""
    return hashlib.sha256(program.encode()).digest()[0] % 10 >= _LEARNT_OF_TEN


def read_cases(path: Path) -> list[Case]:
    """The cases of a trace, or of a file of whole texts (`.jsonl.xz` of chat messages).

    Raises:
        TraceError: it is neither.
    """
    texts = read_texts(path)
    if texts is not None:
        return texts
    rows = list(read_trace(path))
    # A sub-agent's own sub-agents are of its program; one whose parent is missing, of that one's.
    programs = {
        row.session_id: program.main.parent or program.main.session_id
        for program in group_programs(rows)
        for row in (program.main, *program.children)
    }
    return [case for row in rows if (case := _of(row, programs[row.session_id])).tools]


def read_texts(path: Path) -> list[Case] | None:
    """The cases of a file of whole texts; None for any other file."""
    first = next(iter(read_lines(path)), None)
    if first is not None and b'"messages"' in first[1][:4096] and b'"steps"' not in first[1][:4096]:
        return [_of_text(msgspec.json.decode(line)) for _, line in read_lines(path)]
    return None


def _of(recording: Recording, program: str) -> Case:
    steps = [step for step in recording.steps if step.tools or step is recording.steps[-1]]
    return Case(
        program=program,
        agent=recording.agent or "",
        tools=tuple(_tool(step) for step in steps),
        gaps=tuple(_gap(step) for step in steps),
    )


def _tool(step: RecordedStep) -> ToolName:
    return ToolName(step.tools[0].name) if step.tools else END


def _gap(step: RecordedStep) -> Nanos | None:
    """From the answer to the next request; where only tools were timed, how long they took."""
    if step.gap_kind != "tool":
        return None
    seconds = step.gap_s
    if seconds is None:
        timed = [tool.duration_s for tool in step.tools if tool.duration_s is not None]
        seconds = max(timed) if timed else None
    return None if seconds is None else Nanos(round(seconds * SECOND))


def _of_text(row: dict[str, Any]) -> Case:
    """Commands out of a shell agent's answers, named as the proxy names tool calls."""
    tools = []
    for message in row["messages"]:
        if message["role"] != "assistant":
            continue
        found = _COMMAND.search(message["content"])
        arguments = json.dumps({"command": found[1]}) if found else ""
        tools.append(tool_name("bash", arguments) if found else END)
    return Case(
        program=row["session_id"],
        agent="mini-swe-agent",
        tools=tuple(tools),
        gaps=(None,) * len(tools),
    )


def split(cases: list[Case]) -> tuple[list[Case], list[Case]]:
    """Those to learn from and those held out."""
    return [c for c in cases if not c.is_held_out], [c for c in cases if c.is_held_out]


def contexts(case: Case) -> Iterator[tuple[tuple[ToolName, ...], ToolName]]:
    """Each tool of a case with the two before it."""
    for index, tool in enumerate(case.tools):
        yield case.tools[max(0, index - 2) : index], tool
