"""Exports: another tool reads the same programs out of them as we put in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.workload.exporters import Format, export_trace
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.importers import ImportOptions, import_trace
from agentsched_bench.workload.shape import SharedPrompts
from agentsched_bench.workload.trace import RecordedProgram, Recording, group_programs, read_trace


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


def test_a_block_size_needs_blocks(rows: list[Recording], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="otel has no blocks"):
        export_trace([], tmp_path / "x", Format.OTEL, shared=SharedPrompts(), block_size=4)
