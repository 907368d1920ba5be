"""Traces for Mooncake's and Dynamo's replayers: requests with prefix blocks, and what they await.

Where a recording has no blocks, they are made from what its prompts share: equal tokens of the plan
are equal blocks, so an answer that comes back in the next prompt is a block of it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentsched_bench.workload.exporters.clock import TRUE_SIZE, Clock
from agentsched_bench.workload.importers.blocks import Numbers, blocks_of
from agentsched_bench.workload.importers.kv_cache_tester import TOOLS
from agentsched_bench.workload.shape import (
    PlannedConversation,
    PlannedProgram,
    SharedPrompts,
    pause_after_s,
    plan_program,
)
from agentsched_bench.workload.text import values
from agentsched_bench.workload.trace import RecordedProgram, RecordedTool, Recording

#: Mooncake's published block size, and that of Dynamo's agentic traces.
MOONCAKE_BLOCK: Final = 512
AGENTIC_BLOCK: Final = 64
AGENTIC_SCHEMA: Final = "dynamo.agentic_mooncake"
#: Between two requests without any time.
_BETWEEN_S: Final = 0.001


class BlockMaker:
    """Block numbers for the prompts of many programs: the same for the same beginning."""

    def __init__(self, block_size: int, *, shared: SharedPrompts) -> None:
        self.block_size = block_size
        self._shared = shared
        self._numbers = Numbers()

    def plan(self, program: RecordedProgram) -> PlannedProgram:
        """The program at its true size."""
        return plan_program(_unloaded(program), TRUE_SIZE, shared=self._shared)

    def blocks(self, program: RecordedProgram, plan: PlannedProgram) -> dict[str, list[list[int]]]:
        """For each conversation the blocks of each of its prompts."""
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
        blocks = maker.blocks(program, maker.plan(program))
        clock, start_s = Clock(program, between_s=_BETWEEN_S), program.main.start_s or 0.0
        for row in (program.main, *program.children):
            calls = zip(row.steps, clock.calls(row), blocks[row.session_id], strict=False)
            for step, (begun_s, _), own in calls:
                at_s = start_s + begun_s
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


@dataclass(frozen=True, slots=True)
class _Links:
    """Which requests of a program await which: planned once."""

    program: RecordedProgram
    #: For each sub-agent the call of its parent that it begins behind.
    begins: Mapping[str, int]
    #: The sub-agents that the pause behind a call awaits.
    joins: Mapping[tuple[str, int], Sequence[Recording]]

    @classmethod
    def of(cls, program: RecordedProgram, plan: PlannedProgram) -> _Links:
        planned = {child.conversation: child for child in plan.children}
        begins: dict[str, int] = {}
        joins: dict[tuple[str, int], list[Recording]] = {}
        for child in program.children:
            found = planned.get(child.session_id)
            call = None if found is None else found.parent_call
            join = call if found is not None and found.joins else None
            if child.parent_step is not None:
                call, join = child.parent_step, child.join_step
            begins[child.session_id] = call or 0
            if join is not None:
                joins.setdefault((child.parent or "", join), []).append(child)
        return cls(program, begins, joins)


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
        plan = maker.plan(program)
        blocks, links = maker.blocks(program, plan), _Links.of(program, plan)
        make = _agentic_v2 if version == 2 else _agentic_v1
        for row in (program.main, *program.children):
            for line in make(row, links, blocks[row.session_id]):
                yield msgspec.json.encode(line) + b"\n"


def _agentic_v1(row: Recording, links: _Links, blocks: list[list[int]]) -> Iterator[dict[str, Any]]:
    for index, (step, own) in enumerate(zip(row.steps, blocks, strict=False)):
        line = _common(row, index, own)
        waits = [wait["request_id"] for wait in _awaited(row, links, index)]
        if waits:
            line["wait_for"] = waits
        before = row.steps[index - 1] if index else None
        if index == 0 and row is links.program.main:
            line["timestamp"] = round((links.program.main.start_s or 0.0) * 1000, 3)
        if before is not None:
            pause_ms = pause_after_s(before, TRUE_SIZE) * 1000
            is_tool = bool(before.tools)
            line["tool_wait_ms" if is_tool else "delay"] = round(pause_ms, 3)
            if is_tool:
                events = [_event(row, index, i, tool) for i, tool in enumerate(before.tools)]
                line["tool_events"] = [event for event in events if event]
        if index and step.new_input_tokens is None and step.is_compaction:
            line["prefix_reset"] = True
        yield line


def _agentic_v2(row: Recording, links: _Links, blocks: list[list[int]]) -> Iterator[dict[str, Any]]:
    for index, (step, own) in enumerate(zip(row.steps, blocks, strict=False)):
        line = _common(row, index, own)
        line["play_id"] = links.program.main.session_id
        line["model"] = step.model or row.model or "model"
        line["not_before_ms"] = (
            round((links.program.main.start_s or 0.0) * 1000, 3)
            if index == 0 and row is links.program.main
            else 0.0
        )
        waits = _awaited(row, links, index)
        if waits:
            line["dependencies"] = waits
        yield line


def _common(row: Recording, index: int, blocks: list[int]) -> dict[str, Any]:
    step = row.steps[index]
    return {
        "request_id": f"{row.session_id}:{index}",
        "session_id": row.session_id,
        "input_length": step.input_tokens,
        "output_length": step.output_tokens,
        "hash_ids": blocks,
    }


def _awaited(row: Recording, links: _Links, index: int) -> list[dict[str, Any]]:
    """What a request waits for: the one before it, its parent, its children."""
    if index == 0:
        if row is links.program.main:
            return []
        return [_dependency(f"{row.parent}:{links.begins.get(row.session_id, 0)}", 0.0, "spawn")]
    pause_ms = round(pause_after_s(row.steps[index - 1], TRUE_SIZE) * 1000, 3)
    waits = [_dependency(f"{row.session_id}:{index - 1}", pause_ms, "sequence")]
    for child in links.joins.get((row.session_id, index - 1), ()):
        waits.append(_dependency(f"{child.session_id}:{len(child.steps) - 1}", 0.0, "join"))
    return waits


def _dependency(request: str, delay_ms: float, relation: str) -> dict[str, Any]:
    return {
        "request_id": request,
        "trigger": "completion",
        "delay_ms": delay_ms,
        "relation": relation,
    }


def _event(row: Recording, index: int, place: int, tool: RecordedTool) -> dict[str, Any]:
    """A tool's span; its instants count from the session's start, for the source's are unknown."""
    if tool.name == TOOLS:
        return {}
    event: dict[str, Any] = {
        "tool_call_id": tool.call_id or f"{row.session_id}:{index - 1}:{place}",
        "tool_class": tool.name,
        "status": "error" if tool.is_error else "succeeded",
    }
    if tool.duration_s is not None:
        ended_ms = round(((row.steps[index].t_s or 0.0) + (row.start_s or 0.0)) * 1000)
        took_ms = round(tool.duration_s * 1000, 3)
        event["started_at_unix_ms"] = max(0, round(ended_ms - took_ms))
        event["ended_at_unix_ms"] = ended_ms
        event["duration_ms"] = took_ms
    if tool.result_tokens is not None:
        event["output_tokens"] = tool.result_tokens
    return event
