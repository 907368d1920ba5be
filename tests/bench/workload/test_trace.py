"""The trace reader: what it accepts, and errors that say where."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from agentsched_bench.workload.trace import (
    Recording,
    TraceError,
    group_programs,
    read_trace,
    sha256_of,
    write_trace,
)

_LINE = {
    "session_id": "a",
    "source": "test",
    "unknown field": {"kept": False},
    "steps": [{"step": 0, "input_tokens": 10, "output_tokens": 2, "hash_ids": [[1, 4]]}],
}


def _write(path: Path, *lines: object) -> Path:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_what_is_written_is_read(
    suffix: str, tmp_path: Path, recording: Callable[..., Recording]
) -> None:
    rows = [recording((100, 10, None), (150, 20, 40), name=name) for name in ("a", "b")]
    path = tmp_path / f"t{suffix}"

    assert write_trace(rows, path) == 2
    assert list(read_trace(path)) == rows


def test_equal_recordings_give_equal_bytes(
    tmp_path: Path, recording: Callable[..., Recording]
) -> None:
    rows = [recording((100, 10, None))]
    write_trace(rows, tmp_path / "one.jsonl.gz")
    write_trace(rows, tmp_path / "two.jsonl.gz")

    assert sha256_of(tmp_path / "one.jsonl.gz") == sha256_of(tmp_path / "two.jsonl.gz")


def test_unknown_fields_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    (row,) = read_trace(_write(tmp_path / "t.jsonl", "", _LINE, "  "))

    assert row.steps[0].hash_ids == ((1, 4),)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "truncated"),
        ("[]", "object"),
        ({**_LINE, "session_id": 7}, "$.session_id"),
        ({**_LINE, "steps": []}, "no steps"),
        ({"session_id": "a", "source": "s"}, "steps"),
        ({**_LINE, "steps": [{"step": 0, "input_tokens": "10", "output_tokens": 1}]}, "$.steps[0]"),
        ({**_LINE, "steps": [{"step": 0, "input_tokens": -1, "output_tokens": 1}]}, ">= 0"),
        ({**_LINE, "steps": [{"step": 0, "input_tokens": 1}]}, "output_tokens"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    line: object, complaint: str, tmp_path: Path
) -> None:
    path = _write(tmp_path / "t.jsonl", _LINE, line, {**_LINE, "session_id": "c"})

    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert complaint in str(caught.value)


def test_the_rest_is_kept_when_asked(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.jsonl", _LINE, "{", {**_LINE, "session_id": "c"}, "nonsense")
    errors: list[TraceError] = []

    rows = list(read_trace(path, on_error=errors.append))

    assert [row.session_id for row in rows] == ["a", "c"]
    assert [error.line for error in errors] == [2, 4]


def test_invalid_utf8_is_an_error_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"session_id": "\xff", "source": "s", "steps": []}\n')

    with pytest.raises(TraceError, match=r"t\.jsonl:1: "):
        list(read_trace(path))


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_file_cut_short_gives_what_came_before(suffix: str, tmp_path: Path) -> None:
    lines = b"".join(
        json.dumps({**_LINE, "session_id": f"{i}-{i * 7919 % 997}"}).encode() + b"\n"
        for i in range(4000)
    )
    packed = gzip.compress(lines) if suffix == ".gz" else lzma.compress(lines)
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    errors: list[TraceError] = []

    rows = list(read_trace(path, on_error=errors.append))

    assert 0 < len(rows) < 4000
    assert [(error.path, error.line) for error in errors] == [(str(path), len(rows) + 1)]
    assert "cut short" in str(errors[0])


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_file_that_is_not_compressed_is_refused(suffix: str, tmp_path: Path) -> None:
    path = _write(tmp_path / f"t.jsonl{suffix}", _LINE)

    with pytest.raises(TraceError, match="cannot decompress"):
        list(read_trace(path))


def test_a_missing_file_is_an_error_even_when_the_rest_is_to_be_kept(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        list(read_trace(tmp_path / "none.jsonl", on_error=lambda _: None))


def test_sub_agents_join_their_programs(recording: Callable[..., Recording]) -> None:
    rows = [
        recording((10, 1, None), name="main"),
        recording((10, 1, None), name="child", parent="main"),
        recording((10, 1, None), name="grandchild", parent="child"),
        recording((10, 1, None), name="orphan", parent="not in the file"),
        recording((10, 1, None), name="loop", parent="loop"),
    ]

    programs = group_programs(rows)

    assert [p.main.session_id for p in programs] == ["main", "orphan", "loop"]
    assert [c.session_id for c in programs[0].children] == ["child", "grandchild"]
    assert programs[0].calls == 3


def test_no_recording_is_lost_or_doubled_by_its_parents(
    recording: Callable[..., Recording],
) -> None:
    def row(name: str, parent: str | None = None) -> Recording:
        return recording((10, 1, None), name=name, parent=parent)

    ring = [row("below", "b"), row("a", "c"), row("b", "a"), row("c", "b")]
    twice = [row("p"), row("p"), row("k", "p")]

    programs = group_programs([*ring, *twice])

    assert [
        (program.main.session_id, [child.session_id for child in program.children])
        for program in programs
    ] == [("a", ["below", "b", "c"]), ("p", []), ("p", ["k"])]


def test_a_null_counts_as_left_out(tmp_path: Path) -> None:
    """Other tools write every field; what must be there must be there."""
    step = {"step": 0, "input_tokens": 9, "output_tokens": 3.0, "tools": None, "gap_kind": None}
    line = {"session_id": "s", "source": "x", "token_source": None, "synthetic": None}
    path = tmp_path / "t.jsonl"
    path.write_text(
        json.dumps(line | {"steps": [step]})
        + "\n"
        + json.dumps(line | {"steps": [step | {"output_tokens": None}]})
    )
    told: list[TraceError] = []
    (row,) = read_trace(path, on_error=told.append)
    assert (row.steps[0].output_tokens, row.steps[0].gap_kind) == (3, "unknown")
    assert [error.line for error in told] == [2]
    assert "output_tokens" in str(told[0])


def test_a_trace_of_another_version_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"agentsched_trace":2}\n' + json.dumps(_LINE) + "\n")
    told: list[TraceError] = []
    with pytest.raises(TraceError, match=r"t\.jsonl: trace version 2; this reads 1"):
        list(read_trace(path, on_error=told.append))
    assert told == []


def test_a_header_that_is_none_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"agentsched_trace":"one"}\n' + json.dumps(_LINE) + "\n")
    told: list[TraceError] = []
    assert len(list(read_trace(path, on_error=told.append))) == 1
    assert [error.line for error in told] == [1]
