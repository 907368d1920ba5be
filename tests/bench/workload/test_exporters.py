"""Exports: another tool reads the same programs out of them as we put in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentsched.model import ConfigError
from agentsched_bench.workload.exporters import Format, export_trace
from agentsched_bench.workload.exporters import mooncake as mooncake_export
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.importers import ImportOptions, import_trace
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_program,
    plan_programs,
)
from agentsched_bench.workload.trace import (
    RecordedProgram,
    RecordedStep,
    RecordedTool,
    Recording,
    group_programs,
    read_trace,
)


def exported(rows: list[Recording], out: Path, format_: Format, **more: bool) -> list[Recording]:
    programs = group_programs(rows)
    export_trace(programs, out, format_, shared=SharedPrompts.learn(rows), **more)
    report = import_trace(
        [out], out.with_suffix(".back"), options=ImportOptions(keeps_text=bool(more))
    )
    assert report.errors_count == 0
    return list(read_trace(out.with_suffix(".back")))


@pytest.fixture
def rows() -> list[Recording]:
    found = list(generate(programs=24, seed=7, steps_max=14))
    assert any(row.parent for row in found)
    return found


@pytest.mark.parametrize(
    "format_", [Format.AGENTIC_MOONCAKE, Format.AGENTIC_MOONCAKE_2, Format.OTEL]
)
def test_programs_come_back_as_they_were(
    format_: Format, rows: list[Recording], tmp_path: Path
) -> None:
    back = exported(rows, tmp_path / "e.jsonl", format_)
    assert len(back) == len(rows)
    sizes = sorted(tuple((s.input_tokens, s.output_tokens) for s in row.steps) for row in rows)
    assert sizes == sorted(
        tuple((s.input_tokens, s.output_tokens) for s in row.steps) for row in back
    )
    mine = {p.main.steps[0].input_tokens: p for p in group_programs(rows)}
    for program in group_programs(back):
        other = mine[program.main.steps[0].input_tokens]
        assert len(program.children) == len(other.children)
        _assert_alike(program, other, has_tools=format_ is not Format.AGENTIC_MOONCAKE_2)


def _assert_alike(mine: RecordedProgram, other: RecordedProgram, *, has_tools: bool) -> None:
    assert mine.main.start_s == pytest.approx(other.main.start_s, abs=2e-3)
    waits = any(child.steps for child in other.children)
    for one, two in zip(mine.main.steps[:-1], other.main.steps[:-1], strict=True):
        assert one.gap_s == pytest.approx(two.gap_s, abs=2e-3)
        if has_tools and not waits:
            assert [tool.name for tool in one.tools] == [tool.name for tool in two.tools]
            assert [tool.result_tokens for tool in one.tools] == [
                tool.result_tokens for tool in two.tools
            ]


_TRUE_SIZE = ShapeOptions(scale_tokens=1, scale_time=1, gap_cap_s=1e9)


def _row(name: str, *starts: float, **more: Any) -> Recording:
    """A recording whose calls begin then, and take a second each."""
    steps = tuple(
        RecordedStep(
            step=index,
            input_tokens=1000 + 100 * index + len(name),
            output_tokens=10,
            t_s=at,
            llm_s=1.0,
            gap_s=None if index + 1 == len(starts) else starts[index + 1] - at - 1,
        )
        for index, at in enumerate(starts)
    )
    return Recording(session_id=name, source="test", steps=steps, **more)


def _links(plan: PlannedProgram) -> list[tuple[object, ...]]:
    """What a plan says of each conversation, the main one first, by its place."""
    place = {c.conversation: index for index, c in enumerate(plan.conversations)}
    return [
        (
            place.get(one.parent or "none"),
            one.parent_call,
            round(one.start_delay_s, 3),
            one.joins,
            [round(call.pause_s, 3) for call in one.calls[:-1]],
        )
        for one in plan.conversations
    ]


def _plans(rows: list[Recording]) -> list[PlannedProgram]:
    return plan_programs(group_programs(rows), _TRUE_SIZE, shared=SharedPrompts())


def _family() -> list[Recording]:
    """Sub-agents that only say when they began, one of them of another."""
    return [
        _row("main", 0.0, 10.0, 120.0, 130.0, start_s=500.0),
        _row("child", 0.0, 60.0, start_s=512.5, parent="main"),
        _row("grandchild", 0.0, 3.0, start_s=515.0, parent="child"),
    ]


def test_sub_agents_that_say_only_when_they_began_come_back(tmp_path: Path) -> None:
    rows = _family()
    back = exported(rows, tmp_path / "e.jsonl", Format.OTEL)
    assert [row.parent_t_s for row in back] == [None, 12.5, 2.5]
    (mine,), (other,) = _plans(back), _plans(rows)
    assert _links(mine) == _links(other)
    assert [link[1:4] for link in _links(mine)[1:]] == [(1, 1.5, True), (0, 1.5, True)]


@pytest.mark.parametrize("told", ["start_s", "parent_t_s"])
def test_mooncake_rows_of_sub_agents_are_at_their_time(told: str, tmp_path: Path) -> None:
    rows = _family()
    if told == "parent_t_s":
        changes = [{}, {"parent_t_s": 12.5, "start_s": None}, {"parent_t_s": 2.5, "start_s": None}]
        rows = [msgspec.structs.replace(r, **c) for r, c in zip(rows, changes, strict=True)]
    out = tmp_path / "m.jsonl"
    export_trace(group_programs(rows), out, Format.MOONCAKE, shared=SharedPrompts())
    found = [json.loads(line) for line in out.read_text().splitlines()]
    at_s = {row["input_length"]: row["timestamp"] / 1000 for row in found}
    assert (at_s[1004], at_s[1005], at_s[1010]) == (500.0, 512.5, 515.0)


@pytest.mark.parametrize("format_", [Format.AGENTIC_MOONCAKE, Format.OTEL])
def test_sub_agents_told_by_their_calls_come_back(format_: Format, tmp_path: Path) -> None:
    """As agentic Mooncake tells them: no instants, and pauses behind the joins."""
    rows = [
        msgspec.structs.replace(
            row,
            steps=tuple(
                msgspec.structs.replace(step, t_s=None, llm_s=None, gap_s=gap_s)
                for step, gap_s in zip(row.steps, (2.0, 3.0, 4.0), strict=False)
            ),
        )
        for row in (_row("main", 0, 0, 0), _row("child", 0, 0), _row("grandchild", 0, 0, 0))
    ]
    rows[1] = msgspec.structs.replace(rows[1], parent="main", parent_step=1, join_step=1)
    rows[2] = msgspec.structs.replace(rows[2], parent="child", parent_step=0, join_step=0)
    back = exported(rows, tmp_path / "e.jsonl", format_)
    (mine,), (other,) = _plans(back), _plans(rows)
    assert _links(mine) == _links(other)
    assert _links(mine)[0][4] == [2.0, 3.0]


@pytest.mark.parametrize(
    "format_", [Format.AGENTIC_MOONCAKE, Format.AGENTIC_MOONCAKE_2, Format.OTEL]
)
def test_a_sub_agent_without_its_program_awaits_nothing(format_: Format, tmp_path: Path) -> None:
    out = tmp_path / "e.jsonl"
    (back,) = exported([_row("a", 0.0, 9.0, parent="gone", start_s=4.0)], out, format_)
    assert (back.parent, back.start_s, len(back.steps)) == (None, 0.0, 2)
    assert "gone" not in out.read_text()


def _cycles(first: int) -> list[Recording]:
    tools = (RecordedTool(name="bash", command="ls", result_tokens=7), RecordedTool(name="read"))
    steps = tuple(
        RecordedStep(
            step=first + index,
            input_tokens=2000 + 500 * index,
            output_tokens=60,
            reasoning_tokens=60,
            cycle_s=32.0 + index,
            tools=tools if index < 3 else (),
        )
        for index in range(4)
    )
    return [Recording(session_id="M", source="test", start_s=0.0, steps=steps)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("format_", list(Format))
def test_cycles_keep_their_pauses_and_tools(format_: Format, first: int, tmp_path: Path) -> None:
    """Of some sources the time of a call and its tools is known together, and of no tool its own.

    Some number their steps from 1.
    """
    rows = _cycles(first)
    back = exported(rows, tmp_path / "e.jsonl", format_)
    if format_ is Format.MOONCAKE:
        found = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
        assert [row["timestamp"] for row in found] == [0, 32_001, 65_002, 99_003]
        return
    (mine,), (other,) = _plans(back), _plans(rows)
    assert _links(mine) == _links(other)
    assert _links(mine)[0][4] == [30.0, 31.0, 32.0]
    if format_ is not Format.AGENTIC_MOONCAKE_2:
        assert [
            [(t.name, t.duration_s, t.result_tokens) for t in s.tools] for s in back[0].steps
        ] == [[(t.name, t.duration_s, t.result_tokens) for t in s.tools] for s in rows[0].steps]
    if format_ is not Format.OTEL:
        requests = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
        ids = [row["request_id"] for row in requests if "request_id" in row]
        awaited = [
            [one["request_id"] for one in row["dependencies"]]
            if "dependencies" in row
            else row.get("wait_for", [])
            for row in requests
            if "request_id" in row
        ]
        assert awaited == [[], *([name] for name in ids[:-1])]


def test_a_program_is_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each step and each of its sub-agents."""
    starts = [10.0 * index for index in range(50)]
    children = [_row(f"c{n}", 0.0, parent="main", parent_t_s=100.0 * n + 2) for n in range(4)]
    planned: list[str] = []

    def plan(program: RecordedProgram, *more: Any, **named: Any) -> PlannedProgram:
        planned.append(program.main.session_id)
        return plan_program(program, *more, **named)

    monkeypatch.setattr(mooncake_export, "plan_program", plan)
    rows = [_row("main", *starts, start_s=0.0), *children]
    back = exported(rows, tmp_path / "e.jsonl", Format.AGENTIC_MOONCAKE_2)
    assert [row.parent_step for row in back[1:]] == [0, 10, 20, 30]
    assert [row.join_step for row in back[1:]] == [0, 10, 20, 30]
    assert planned == ["main"]


def test_blocks_tell_what_prompts_share(rows: list[Recording], tmp_path: Path) -> None:
    back = exported(rows, tmp_path / "e.jsonl", Format.AGENTIC_MOONCAKE)
    mains = [row for row in back if row.parent is None]
    # What was appended to is kept, block by block; so is the agent's own prompt, by all of a kind.
    first = [row.steps[0].hash_ids for row in mains]
    heads = {runs[0][0] for runs in first if runs}
    assert 2 <= len(heads) < len(mains) / 3
    by_id = {row.session_id: row for row in rows}
    for row in back:
        for before, step, other in zip(
            row.steps, row.steps[1:], by_id[row.session_id].steps[1:], strict=False
        ):
            if other.new_input_tokens is not None:
                assert (step.prefix_tokens or 0) >= before.input_tokens - 64


def test_mooncake_rows_are_in_order_and_whole(rows: list[Recording], tmp_path: Path) -> None:
    out = tmp_path / "m.jsonl"
    export_trace(group_programs(rows), out, Format.MOONCAKE, shared=SharedPrompts.learn(rows))
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["timestamp"] for row in found] == sorted(row["timestamp"] for row in found)
    assert len(found) == sum(len(row.steps) for row in rows)
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 512) for row in found)
    assert all(
        set(row) == {"timestamp", "input_length", "output_length", "hash_ids"} for row in found
    )


def test_texts_survive_as_spans(tmp_path: Path) -> None:
    call = {"id": "c", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}
    messages = [
        {"role": "user", "content": "do"},
        {"role": "assistant", "content": "ok", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "a b"},
        {"role": "assistant", "content": "done"},
    ]
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"session_id": "s", "messages": messages}))
    import_trace([path], tmp_path / "t.jsonl", options=ImportOptions(keeps_text=True))
    rows = list(read_trace(tmp_path / "t.jsonl"))
    (back,) = exported(rows, tmp_path / "e.jsonl", Format.OTEL, keeps_text=True)
    said = [
        [back.messages[n].text for a, b in s.prompt or () for n in range(a, b + 1)]
        for s in back.steps
    ]
    assert said == [["do"], ["do", "ok", "a b"]]
    assert back.messages[back.steps[0].answer or 0].tool_calls[0].name == "bash"


def test_thoughts_survive_as_spans(tmp_path: Path) -> None:
    steps = [
        RecordedStep(step=0, input_tokens=100, output_tokens=50, reasoning_tokens=30),
        RecordedStep(step=1, input_tokens=200, output_tokens=50),
    ]
    row = Recording(session_id="s", source="test", start_s=0.0, steps=tuple(steps))
    (back,) = exported([row], tmp_path / "e.jsonl", Format.OTEL)
    assert [step.reasoning_tokens for step in back.steps] == [30, 0]
    assert [step.new_input_tokens for step in back.steps] == [None, None]


def test_a_block_size_needs_blocks(rows: list[Recording], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="otel has no blocks"):
        export_trace([], tmp_path / "x", Format.OTEL, shared=SharedPrompts(), block_size=4)
