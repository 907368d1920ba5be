"""Imports: every raw file, every format in small, and what is kept of broken ones."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_files import agentic, imported, lines, written

from agentsched.model import ConfigError
from agentsched_bench.workload.importers import (
    IMPORTERS,
    detect,
    import_trace,
    importer,
)
from agentsched_bench.workload.importers.files import InputFile, salvage
from agentsched_bench.workload.trace import (
    Recording,
    TraceError,
    header_of,
    read_trace,
    sha256_of,
    write_trace,
)
from agentsched_bench.workload.validate import validate_trace

# -- every raw file ---------------------------------------------------------------------------

RAW = {
    "swe-agent-ctf.traj": ("swe-agent", 12),
    "swe-agent-function-calling.traj": ("swe-agent", 13),
    "swe-agent-gpt4.traj": ("swe-agent", 12),
    "mini-swe-agent-matplotlib__matplotlib-26291.traj.json": ("mini-swe-agent", 34),
    "mini-swe-agent-scikit-learn__scikit-learn-25232.traj.json": ("mini-swe-agent", 46),
    "mini-swe-agent-sympy__sympy-11618.traj.json": ("mini-swe-agent", 44),
    "openhands-output.jsonl": ("openhands", 23),
    "kv-cache-tester-0107.json": ("kv-cache-tester", 4),
    "kv-cache-tester-0355.json": ("kv-cache-tester", 24),
    "kv-cache-tester-0590.json": ("kv-cache-tester", 8),
    "mooncake-conversation-head.jsonl": ("mooncake", 300),
}


@pytest.mark.traces
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", RAW)
def test_raw_files_are_known_and_read_whole(
    name: str, text: bool, traces: Path, tmp_path: Path
) -> None:
    rows, report = imported(traces / "raw" / name, tmp_path / "t.jsonl", text=text)
    assert (*report.files, report.calls) == RAW[name]
    assert report.errors_count == 0
    keeps = text and RAW[name][0] in ("swe-agent", "mini-swe-agent", "openhands")
    assert all(bool(row.messages) == keeps for row in rows)


@pytest.mark.traces
def test_an_import_agrees_with_the_recorded_numbers(traces: Path, tmp_path: Path) -> None:
    """The traces hold the same sessions, counted by others."""
    known = {
        row.session_id: row
        for name in ("weka-claude-code", "miniswe-gemini3-swebench-verified")
        for row in read_trace(traces / f"{name}.jsonl.gz")
    }
    raw = [p for p in (traces / "raw").iterdir() if p.name.startswith(("kv-", "mini-"))]
    rows, _ = imported(raw, tmp_path / "t.jsonl")
    compared = 0
    for row in rows:
        other = known.get(row.session_id)
        if other is None:
            continue
        compared += 1
        for mine, theirs in zip(row.steps, other.steps, strict=True):
            for field in ("input_tokens", "output_tokens", "t_s", "llm_s", "gap_s", "cycle_s"):
                assert getattr(mine, field) == getattr(theirs, field), (row.session_id, field)
            assert mine.hash_ids == theirs.hash_ids
            assert [tool.name for tool in mine.tools] == [tool.name for tool in theirs.tools]
    assert compared >= 4


@pytest.mark.traces
@pytest.mark.parametrize("share", [0.35, 0.8, 0.99])
@pytest.mark.parametrize("name", RAW)
def test_a_raw_file_that_was_cut_keeps_what_came_before(
    name: str, share: float, traces: Path, tmp_path: Path
) -> None:
    data = (traces / "raw" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert report.errors_count >= 1
    assert report.errors[0].line is not None
    assert str(path) in str(report.errors[0])
    if share > 0.9 or (name != "openhands-output.jsonl" and share > 0.7):
        assert rows
        assert report.calls <= RAW[name][1]


# -- broken input -----------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["auto", "claude-code", "openhands"])
def test_a_packed_file_that_is_damaged_inside_is_named(tmp_path: Path, format_name: str) -> None:
    packed = bytearray(gzip.compress(b'{"some": "object"}\n' * 500, mtime=0))
    packed[20] ^= 0x77
    path = tmp_path / "m.json.gz"
    path.write_bytes(bytes(packed))

    rows, report = imported(path, tmp_path / "t.jsonl", format_name=format_name)

    assert not rows
    assert "cannot decompress" in str(report.errors[0])


def test_a_bad_line_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    good = json.dumps(row)
    path.write_text(f"{good}\nnot json\n{good}\n" + '{"timestamp": 3}\n' + good[:20])
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert len(rows) == 2
    assert [error.line for error in report.errors] == [2, 4, 5]
    assert "not JSON" in str(report.errors[0])
    assert "no input_length" in str(report.errors[1])
    assert "cut short" in str(report.errors[2])


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_compression_is_known_by_content_and_its_end_is_missed(pack: Any, tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    data = pack("".join(json.dumps(row | {"timestamp": i}) + "\n" for i in range(3000)).encode())
    path = tmp_path / "oddly-named.bin"
    path.write_bytes(data)
    whole, report = imported(path, tmp_path / "t.jsonl")
    assert report.calls == 3000
    assert whole
    path.write_bytes(data[: len(data) // 2])
    _, report = imported(path, tmp_path / "t2.jsonl")
    assert report.errors_count == 1


def test_zstandard_is_read_and_written(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    rows, _ = imported(lines(tmp_path / "a.jsonl", *agentic()), tmp_path / "t.jsonl.zst")
    assert list(read_trace(tmp_path / "t.jsonl.zst")) == rows
    packed = tmp_path / "b.jsonl.zst"
    packed.write_bytes(zstandard.compress((tmp_path / "a.jsonl").read_bytes()))
    again, _ = imported(packed, tmp_path / "t2.jsonl")
    assert [row.steps for row in again] == [row.steps for row in rows]


def test_odd_texts_are_kept(tmp_path: Path) -> None:
    """Half surrogates, NaN, a byte order mark, bytes that are no UTF-8."""
    path = tmp_path / "odd.json"
    body = (
        '{"messages": [{"role": "user", "content": "\\ud83d half"}, '
        '{"role": "assistant", "content": "caf\xe9", "cost": NaN}]}'
    )
    path.write_bytes(b"\xef\xbb\xbf" + body.encode("latin-1"))
    rows, report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert rows[0].messages[0].text == "? half"


def test_a_folder_is_looked_through_and_strangers_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "deep"
    folder.mkdir(parents=True)
    lines(folder / "a.jsonl", *agentic())
    written(folder / "preds.json", {"x": {"model_patch": "diff"}})
    (folder / "notes.txt").write_text("hello")
    _, report = imported(tmp_path / "runs", tmp_path / "t.jsonl")
    assert dict(report.files) == {"agentic-mooncake": 1}
    assert (report.skipped, report.errors_count) == (1, 0)
    _, report = imported(folder / "preds.json", tmp_path / "t.jsonl")
    assert "no format that is known" in str(report.errors[0])


def test_what_an_import_wrote_is_none_of_its_sources(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    (folder / "spans.jsonl").write_text("\n".join(map(json.dumps, agentic())))
    out = folder / "all.jsonl"
    first = import_trace([folder], out)
    again = import_trace([tmp_path / "sessions" / ".." / "sessions"], out)
    assert (again.recordings, dict(again.files)) == (first.recordings, dict(first.files))
    # Who names it means it.
    assert import_trace([folder, out], out).recordings == 2 * first.recordings


def test_wrong_use_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'nope'"):
        importer("nope")
    with pytest.raises(ConfigError, match="no such file"):
        import_trace([tmp_path / "none"], tmp_path / "t.jsonl")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="nothing to import"):
        import_trace([empty], tmp_path / "t.jsonl")
    assert not (tmp_path / "t.jsonl").exists()


def test_the_header_says_how_it_came_about(tmp_path: Path) -> None:
    imported(lines(tmp_path / "a.jsonl", *agentic()), tmp_path / "t.jsonl")
    [first, *_] = (tmp_path / "t.jsonl").read_bytes().splitlines()
    header = header_of(first, path="t.jsonl")
    assert header.imported is not None
    assert header.imported["formats"] == {"agentic-mooncake": 1}
    assert "agentic-mooncake" in header.imported["token_sources"]


_KEYS = [
    "messages",
    "role",
    "content",
    "history",
    "trajectory",
    "requests",
    "hash_ids",
    "in",
    "action",
    "observation",
    "source",
    "usage",
    "timestamp",
    "input_length",
    "type",
    "resourceSpans",
    "scopeSpans",
    "spans",
    "spanId",
    "attributes",
    "key",
    "value",
    "message",
    "uuid",
    "sessionId",
    "isSidechain",
    "tool_calls",
    "id",
    "args",
    "wait_for",
    "request_id",
    "output_length",
    "startTimeUnixNano",
    "out",
    "steps",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(value=json_values, known=st.sampled_from([one.name for one in IMPORTERS]))
def test_no_json_breaks_an_importer(value: Any, known: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", value)
    report = import_trace([path], tmp_path / "t.jsonl", format_name=known)
    if report.recordings:
        assert validate_trace(tmp_path / "t.jsonl").errors == 0


@settings(max_examples=60, deadline=None)
@given(value=json_values, share=st.floats(0, 1))
def test_what_is_salvaged_is_a_part_of_what_was(value: Any, share: float) -> None:
    data = json.dumps(value).encode()
    cut = data[: int(len(data) * share)]
    kept = salvage(cut) if cut else None
    if isinstance(kept, list):
        assert len(kept) <= len(value)
    elif isinstance(kept, dict):
        assert set(kept) <= set(value)


def test_our_own_traces_are_merged(tmp_path: Path) -> None:
    rows, _ = imported(lines(tmp_path / "a.jsonl", *agentic()), tmp_path / "one.jsonl")
    write_trace(rows, tmp_path / "two.jsonl.gz")
    merged, report = imported(
        [tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"], tmp_path / "t.jsonl"
    )
    assert dict(report.files) == {"agentsched": 2}
    assert [row.session_id for row in merged] == ["main", "child", "main#2", "child#2"]
    assert [msgspec.structs.replace(row, start_s=None).steps for row in merged[:2]] == [
        row.steps for row in rows
    ]


_STEP = ("input_tokens", "output_tokens")
_OWN: list[dict[str, Any]] = [
    {"session_id": name, "source": "test", "steps": [dict.fromkeys(_STEP, 9) | {"step": 0}]}
    for name in ("a", "b")
]
_OWN_LINES = "".join(json.dumps(row) + "\n" for row in _OWN).encode()
_OWN_INDENTED = "\n".join(json.dumps(row, indent=2) for row in _OWN).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bom.jsonl", codecs.BOM_UTF8 + _OWN_LINES),
        ("header.jsonl", codecs.BOM_UTF8 + b'{"agentsched_trace":1}\n' + _OWN_LINES),
        ("windows.jsonl", _OWN_LINES.decode().replace("\n", "\r\n").encode("utf-16")),
        ("inside.jsonl", gzip.compress(_OWN_LINES)),
        ("T.JSONL.GZ", gzip.compress(_OWN_LINES)),
        ("other.jsonl.gz", lzma.compress(_OWN_LINES)),
        ("t.jsonl.bz2", bz2.compress(_OWN_LINES)),
        ("indented.json", _OWN_INDENTED),
        ("list.json", json.dumps(_OWN).encode()),
        ("indented-list.json", json.dumps(_OWN, indent=2).encode()),
        ("all.json", json.dumps([{"agentsched_trace": 1}, *_OWN]).encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_our_own_traces_are_read_however_they_were_written(
    name: str, data: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    wanted = [msgspec.convert(row, Recording) for row in _OWN]
    rows, report = imported(path, tmp_path / "out.jsonl")
    assert (rows, report.errors_count) == (wanted, 0)
    assert list(read_trace(path)) == wanted
    checked = validate_trace(path)
    assert (checked.recordings, checked.errors, checked.warnings) == (2, 0, 0)


def test_an_indented_trace_that_was_cut_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(json.dumps(_OWN, indent=2).encode()[:-90])
    rows, report = imported(path, tmp_path / "out.jsonl")
    assert report.errors_count >= 1
    assert [(row.session_id, row.is_cut) for row in rows][:1] == [("a", False)]


@pytest.mark.parametrize("reader", ["import", "read"])
def test_a_line_too_long_costs_no_other(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched_bench.workload.trace.LINE_BYTES_MAX", 1000)
    path = lines(tmp_path / "t.jsonl", _OWN[0], _OWN[0] | {"agent": "x" * 2000}, _OWN[1])
    told: list[TraceError] = []
    if reader == "import":
        import_trace([path], tmp_path / "out.jsonl", on_error=told.append)
        rows = list(read_trace(tmp_path / "out.jsonl"))
    else:
        rows = list(read_trace(path, on_error=told.append))
    assert [row.session_id for row in rows] == ["a", "b"]
    assert [error.line for error in told] == [2]


def test_a_folder_of_another_format_is_read_like_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    lines(folder / "a.jsonl", *agentic())
    assert [row.session_id for row in read_trace(folder)] == ["main", "child"]
    assert sha256_of(folder) == sha256_of(folder)
    (folder / "b.jsonl").write_text((folder / "a.jsonl").read_text() + "broken\n")
    with pytest.raises(TraceError, match=r"b\.jsonl:5"):
        list(read_trace(folder))
    told: list[TraceError] = []
    assert len(list(read_trace(folder, on_error=told.append))) == 4
    assert len(told) == 1


def _claude(name: str, *, day: int, words: int = 3) -> list[dict[str, Any]]:
    """A session of one call."""
    asked = {"role": "user", "content": "x" * words}
    usage = {"input_tokens": 100, "output_tokens": 5}
    said = {"role": "assistant", "id": f"{name}-m", "content": "ho", "usage": usage}
    return [
        {"type": kind, "uuid": f"{name}-{kind}", "sessionId": name, "message": message}
        | {"timestamp": f"2026-01-{day:02d}T00:00:0{second}Z"}
        for second, (kind, message) in enumerate([("user", asked), ("assistant", said)])
    ]


def test_starts_count_from_the_earliest_of_their_clock(tmp_path: Path) -> None:
    """Some formats count from 1970, some from their own beginning: no half century between them."""
    folder = tmp_path / "runs"
    folder.mkdir()
    lines(folder / "a.jsonl", *_claude("a", day=1))
    lines(folder / "b.jsonl", *_claude("b", day=2))
    row = {"input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    lines(folder / "m.jsonl", *[row | {"timestamp": at, "hash_ids": [at]} for at in (5000, 7000)])
    step = {"step": 0, "input_tokens": 9, "output_tokens": 1}
    own = {"session_id": "own", "source": "x", "start_s": 30.0, "steps": [step]}
    lines(folder / "own1.jsonl", own)
    lines(folder / "own2.jsonl", own | {"session_id": "later", "start_s": 40.0})
    rows, report = imported(folder, tmp_path / "t.jsonl")
    assert report.errors_count == 0
    assert {row.session_id: row.start_s for row in rows} == {
        "a": 0.0,
        "b": 86_400.0,
        "m/0": 0.0,
        "m/1": 2.0,
        # One program's traces that are merged keep their distance.
        "own": 0.0,
        "later": 10.0,
    }


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_texts_too_long_for_a_line_are_left_out(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is kept, and folders can still be looked at."""
    monkeypatch.setattr("agentsched_bench.workload.trace.LINE_BYTES_MAX", 4000)
    folder = tmp_path / "runs"
    folder.mkdir()
    parts = [_claude(f"long-{index}", day=1, words=2500) for index in range(2)]
    for line in parts[1]:
        line["sessionId"], line["parentUuid"] = "long-0", "long-0-assistant"
    lines(folder / "a.jsonl", *parts[0], *parts[1])
    lines(folder / "b.jsonl", *_claude("short", day=1))
    rows, report = imported(folder, tmp_path / f"t.jsonl{suffix}", text=True)
    assert [str(error) for error in report.errors] == [
        f"{folder}: long-0: its texts are left out: more than 64 MiB"
    ]
    assert [(row.session_id, len(row.steps), len(row.messages)) for row in rows] == [
        ("long-0", 2, 0),
        ("short", 1, 3),
    ]
    assert rows[0].steps[0].prompt is None
    assert [row.session_id for row in read_trace(folder)] == ["long-0", "short"]


def test_a_recording_too_long_for_a_line_is_left_out_and_no_file_is_spoiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setattr("agentsched_bench.workload.trace.LINE_BYTES_MAX", 2000)
    lines(folder / "a.jsonl", *_claude("short", day=1))
    row = {"session_id": "m", "input_length": 600, "output_length": 5}
    lines(folder / "m.jsonl", *[row | {"timestamp": at * 1000} for at in range(30)])
    rows, report = imported(folder, tmp_path / "t.jsonl")
    assert [row.session_id for row in rows] == ["short"]
    assert [error.message for error in report.errors] == ["m: left out: more than 64 MiB"]
    before = (tmp_path / "t.jsonl").read_bytes()

    def broken(*_: object, **__: object) -> None:
        raise TraceError("no more", path="x")

    monkeypatch.setattr("agentsched_bench.workload.importers.decode_recording", broken)
    with pytest.raises(TraceError, match=r"t\.jsonl: no more"):
        import_trace([folder], tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "t.jsonl"]


def test_every_importer_is_found_by_its_name() -> None:
    for known in IMPORTERS:
        assert importer(known.name) is known
        assert known.title


def test_nothing_is_detected_in_what_is_nothing(tmp_path: Path) -> None:
    for value in ([], {}, [1, 2], {"a": 1}, "text"):
        assert detect(InputFile(path=written(tmp_path / "x.json", value))) is None
