"""Traces for Mooncake's and Dynamo's replayers: requests with prefix blocks, and what they await.

Where a recording has no blocks, they are made from what its prompts share: equal tokens of the plan
are equal blocks, so an answer that comes back in the next prompt is a block of it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.blocks import Numbers, blocks_of
from agentsched_bench.workload.importers.kv_cache_tester import TOOLS
from agentsched_bench.workload.shape import (
    PlannedConversation,
    ShapeOptions,
    SharedPrompts,
    plan_program,
)
from agentsched_bench.workload.text import values
from agentsched_bench.workload.trace import RecordedProgram, RecordedStep, RecordedTool, Recording

#: Mooncake's published block size, and that of Dynamo's agentic traces.
MOONCAKE_BLOCK: Final = 512
AGENTIC_BLOCK: Final = 64
AGENTIC_SCHEMA: Final = "dynamo.agentic_mooncake"
_TRUE_SIZE: Final = ShapeOptions(scale_tokens=1.0, scale_time=1.0, gap_cap_s=1e12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request with its instant, if known, and its blocks."""

    step: RecordedStep
    at_s: float | None
    blocks: list[int]


class BlockMaker:
    """Block numbers for the prompts of many programs: the same for the same beginning."""

    def __init__(self, block_size: int, *, shared: SharedPrompts) -> None:
        self.block_size = block_size
        self._shared = shared
        self._numbers = Numbers()

    def blocks(self, program: RecordedProgram) -> dict[str, list[list[int]]]:
        """For each conversation the blocks of each of its prompts."""
        plan = plan_program(_unloaded(program), _TRUE_SIZE, shared=self._shared)
        known = {row.session_id: row for row in (program.main, *program.children)}
        planned = {c.conversation: c for c in plan.conversations}
        return {name: self._of(row, planned.get(name)) for name, row in known.items()}

    def _of(self, row: Recording, plan: PlannedConversation | None) -> list[list[int]]:
        if row.block_size == self.block_size and all(s.hash_ids is not None for s in row.steps):
            scope = row.hash_scope or row.source
            return [
                [self._numbers.number((scope, block)) for block in blocks_of(step.hash_ids or ())]
                for step in row.steps
            ]
        if plan is None:
            return [[] for _ in row.steps]
        return self._from_plan(plan)

    def _from_plan(self, plan: PlannedConversation) -> list[list[int]]:
        prompts: list[list[int]] = []
        found: list[list[int]] = []
        for call in plan.calls:
            prompt: list[int] = []
            if call.base is not None:
                prompt = prompts[call.base][: call.keep_tokens]
                stream = f"answer/{plan.conversation}/{call.base}"
                prompt += values(stream, start=0, count=call.echo_tokens)
            for piece in call.pieces:
                prompt += values(piece.stream, start=piece.start, count=piece.tokens)
            prompts.append(prompt)
            found.append(self._hashed(prompt))
        return found

    def _hashed(self, prompt: Sequence[int]) -> list[int]:
        chain, blocks = hashlib.blake2b(digest_size=16), []
        for start in range(0, len(prompt), self.block_size):
            part = prompt[start : start + self.block_size]
            chain.update(b"".join(value.to_bytes(2, "little") for value in part))
            chain.update(len(part).to_bytes(4, "little"))
            blocks.append(self._numbers.number(chain.digest()))
        return blocks


def _unloaded(program: RecordedProgram) -> RecordedProgram:
    """Without a composed workload's scales: what is exported is at its true size."""
    if program.main.load is None:
        return program
    bare = [msgspec.structs.replace(row, load=None) for row in (program.main, *program.children)]
    return RecordedProgram(main=bare[0], children=tuple(bare[1:]))


def mooncake_lines(
    programs: Iterable[RecordedProgram], *, block_size: int, shared: SharedPrompts
) -> Iterator[bytes]:
    """Mooncake rows in the order of their timestamps; all are held to sort them.

    Requests without any time are put one millisecond after the one before them.
    """
    maker = BlockMaker(block_size, shared=shared)
    rows: list[tuple[float, int, bytes]] = []
    for program in programs:
        blocks = maker.blocks(program)
        for row in (program.main, *program.children):
            for at_s, step, own in _timed(row, program, blocks[row.session_id]):
                line = msgspec.json.encode(
                    {
                        "timestamp": round(at_s * 1000),
                        "input_length": step.input_tokens,
                        "output_length": step.output_tokens,
                        "hash_ids": own,
                    }
                )
                rows.append((at_s, len(rows), line))
    rows.sort()
    for _, _, line in rows:
        yield line + b"\n"


def _timed(
    row: Recording, program: RecordedProgram, blocks: list[list[int]]
) -> Iterator[tuple[float, RecordedStep, list[int]]]:
    start_s = (program.main.start_s or 0.0) + (row.parent_t_s or 0.0)
    clock = start_s
    for step, own in zip(row.steps, blocks, strict=False):
        clock = max(clock, start_s + step.t_s) if step.t_s is not None else clock
        yield clock, step, own
        clock += (step.llm_s or 0.0) + (step.gap_s or step.cycle_s or 0.0) + 0.001


def agentic_lines(
    programs: Iterable[RecordedProgram], *, block_size: int, shared: SharedPrompts, version: int
) -> Iterator[bytes]:
    """Agentic Mooncake rows: version 1 has `wait_for`, version 2 a header and `dependencies`."""
    maker = BlockMaker(block_size, shared=shared)
    if version == 2:
        header = {
            "schema": AGENTIC_SCHEMA,
            "version": 2,
            "block_size": block_size,
            "hash_id_scope": "local",
            "source": {"format": "agentsched", "digest": ""},
        }
        yield msgspec.json.encode(header) + b"\n"
    for program in programs:
        blocks = maker.blocks(program)
        make = _agentic_v2 if version == 2 else _agentic_v1
        for row in (program.main, *program.children):
            for line in make(row, program, blocks[row.session_id]):
                yield msgspec.json.encode(line) + b"\n"


def _agentic_v1(
    row: Recording, program: RecordedProgram, blocks: list[list[int]]
) -> Iterator[dict[str, Any]]:
    for index, (step, own) in enumerate(zip(row.steps, blocks, strict=False)):
        line = _common(row, step, own)
        waits = [wait["request_id"] for wait in _awaited(row, program, index)]
        if waits:
            line["wait_for"] = waits
        before = row.steps[index - 1] if index else None
        if index == 0 and row.parent is None:
            line["timestamp"] = round((program.main.start_s or 0.0) * 1000, 3)
        if before is not None:
            pause_ms = _pause_s(before) * 1000
            is_tool = bool(before.tools)
            line["tool_wait_ms" if is_tool else "delay"] = round(pause_ms, 3)
            if is_tool:
                events = [_event(row, index, i, tool) for i, tool in enumerate(before.tools)]
                line["tool_events"] = [event for event in events if event]
        if index and step.new_input_tokens is None and step.is_compaction:
            line["prefix_reset"] = True
        yield line


def _agentic_v2(
    row: Recording, program: RecordedProgram, blocks: list[list[int]]
) -> Iterator[dict[str, Any]]:
    for index, (step, own) in enumerate(zip(row.steps, blocks, strict=False)):
        line = _common(row, step, own)
        line["play_id"] = program.main.session_id
        line["model"] = step.model or row.model or "model"
        line["not_before_ms"] = (
            round((program.main.start_s or 0.0) * 1000, 3)
            if index == 0 and row.parent is None
            else 0.0
        )
        waits = _awaited(row, program, index)
        if waits:
            line["dependencies"] = waits
        yield line


def _common(row: Recording, step: RecordedStep, blocks: list[int]) -> dict[str, Any]:
    return {
        "request_id": f"{row.session_id}:{step.step}",
        "session_id": row.session_id,
        "input_length": step.input_tokens,
        "output_length": step.output_tokens,
        "hash_ids": blocks,
    }


def _awaited(row: Recording, program: RecordedProgram, index: int) -> list[dict[str, Any]]:
    """What a request waits for: the one before it, its parent, its children."""
    if index == 0:
        if row.parent is None:
            return []
        return [_dependency(f"{row.parent}:{_parent_step(row, program)}", 0.0, "spawn")]
    pause_ms = round(_pause_s(row.steps[index - 1]) * 1000, 3)
    waits = [_dependency(f"{row.session_id}:{index - 1}", pause_ms, "sequence")]
    for child in program.children:
        if child.parent == row.session_id and _join_step(child, program) == index - 1:
            waits.append(_dependency(f"{child.session_id}:{len(child.steps) - 1}", 0.0, "join"))
    return waits


def _dependency(request: str, delay_ms: float, relation: str) -> dict[str, Any]:
    return {
        "request_id": request,
        "trigger": "completion",
        "delay_ms": delay_ms,
        "relation": relation,
    }


def _parent_step(child: Recording, program: RecordedProgram) -> int:
    if child.parent_step is not None:
        return child.parent_step
    plan = plan_program(_unloaded(program), _TRUE_SIZE, shared=SharedPrompts())
    found = next((c for c in plan.children if c.conversation == child.session_id), None)
    return 0 if found is None or found.parent_call is None else found.parent_call


def _join_step(child: Recording, program: RecordedProgram) -> int | None:
    if child.parent_step is not None:
        return child.join_step
    plan = plan_program(_unloaded(program), _TRUE_SIZE, shared=SharedPrompts())
    found = next((c for c in plan.children if c.conversation == child.session_id), None)
    return found.parent_call if found is not None and found.joins else None


def _pause_s(step: RecordedStep) -> float:
    if step.gap_s is not None:
        return step.gap_s
    known = [tool.duration_s for tool in step.tools if tool.duration_s is not None]
    return max(known, default=0.0)


def _event(row: Recording, index: int, place: int, tool: RecordedTool) -> dict[str, Any]:
    """A tool's span; its instants count from the session's start, for the source's are unknown."""
    if tool.name == TOOLS or tool.duration_s is None:
        return {}
    ended_ms = round(((row.steps[index].t_s or 0.0) + (row.start_s or 0.0)) * 1000)
    took_ms = round(tool.duration_s * 1000, 3)
    event: dict[str, Any] = {
        "tool_call_id": tool.call_id or f"{row.session_id}:{index - 1}:{place}",
        "tool_class": tool.name,
        "started_at_unix_ms": max(0, round(ended_ms - took_ms)),
        "ended_at_unix_ms": ended_ms,
        "duration_ms": took_ms,
        "status": "error" if tool.is_error else "succeeded",
    }
    if tool.result_tokens is not None:
        event["output_tokens"] = tool.result_tokens
    return event
