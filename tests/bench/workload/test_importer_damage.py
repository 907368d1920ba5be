"""Files that broke off, and files in other wrappings: what stands before the break is kept."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest
from trace_files import imported

from agentsched_bench.workload.trace import TraceError, read_trace

PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}


def words(dice: random.Random, count: int) -> str:
    """Text that packs badly, so that a part of the packed file is a part of the text."""
    return " ".join(f"{dice.randrange(1 << 40):010x}, [x] {{" for _ in range(count))


def trajectory(steps: int = 12, size: int = 400, name: str = "t") -> dict[str, Any]:
    """A SWE-agent trajectory whose texts have brackets and commas in them."""
    dice = random.Random(name)
    told = [{"role": "system", "content": "s"}]
    done = []
    for _ in range(steps):
        answer, seen = words(dice, size), words(dice, size)
        done.append({"response": answer, "thought": "", "action": "ls", "observation": seen})
        told += [{"role": "assistant", "content": answer}, {"role": "user", "content": seen}]
    return {"instance_id": name, "environment": "e", "trajectory": done, "history": told}


def conversation(name: str = "c") -> dict[str, Any]:
    messages = [{"role": "user", "content": "do"}, {"role": "assistant", "content": "done"}]
    return {"id": name, "messages": messages}


def instance(name: str = "i") -> dict[str, Any]:
    """An instance of OpenHands'."""
    run = {"action": "run", "args": {"command": "ls"}, "source": "agent", "id": 1}
    return {"instance_id": name, "history": [run]}


def weka(name: str = "w") -> dict[str, Any]:
    calls = [{"t": float(n), "type": "n", "in": 128, "out": 3, "hash_ids": [1]} for n in (0, 1)]
    return {"id": name, "block_size": 64, "hash_id_scope": "local", "requests": calls}


@pytest.mark.parametrize("packing", ["gz", "xz"])
@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_packed_document_that_was_cut_keeps_what_came_before(
    packing: str, share: float, tmp_path: Path
) -> None:
    """The format was not even known: less than a part of 1 MiB was read as nothing."""
    whole = trajectory()
    data = PACKERS[packing](json.dumps(whole).encode())
    path = tmp_path / f"run.traj.{packing}"
    path.write_bytes(data[: int(len(data) * share)])

    (row,), report = imported(path, tmp_path / "t.jsonl")

    assert row.is_cut
    assert len(row.steps) >= int(12 * share)
    assert report.errors_count == 1
    assert "decompress" in report.errors[0].message or "cut short" in report.errors[0].message


def recording(name: str) -> dict[str, Any]:
    """One of our own."""
    step = {"step": 0, "input_tokens": 5, "output_tokens": 1}
    return {"session_id": name, "source": "s", "steps": [step]}


@pytest.mark.parametrize("made", [conversation, recording])
def test_lines_of_a_packed_file_that_was_cut_are_kept_to_the_last_whole_one(
    made: Any, tmp_path: Path
) -> None:
    dice = random.Random(7)
    rows = [made(f"c{n}") | {"note": words(dice, 200)} for n in range(20)]
    data = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    path = tmp_path / "runs.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])

    found, report = imported(path, tmp_path / "t.jsonl")

    assert [row.session_id for row in found] == [f"c{n}" for n in range(len(found))]
    assert 8 <= len(found) <= 11
    assert report.errors_count == 1, "the line that broke off is no second error"
    assert report.errors[0].line == len(found) + 1


def test_what_breaks_inside_of_a_text_costs_what_comes_after_it_alone(tmp_path: Path) -> None:
    """A disk's zeros, in a text with brackets of its own: nothing at all was left."""
    data = json.dumps(trajectory()).encode()
    at = data.index(b"{ ", data.index(b'"history"') // 2) + 2
    path = tmp_path / "run.traj"
    path.write_bytes(data[:at] + b"\0" * 64 + data[at + 64 :])

    (row,), report = imported(path, tmp_path / "t.jsonl")

    assert row.is_cut
    assert 4 <= len(row.steps) <= 7
    assert "control character" in report.errors[0].message


@pytest.mark.parametrize(
    ("made", "known"),
    [
        (trajectory, "swe-agent"),
        (conversation, "mini-swe-agent"),
        (instance, "openhands"),
        (weka, "kv-cache-tester"),
    ],
)
def test_recordings_in_one_list_are_read(made: Any, known: str, tmp_path: Path) -> None:
    """As `json.dump` of many at once, or `jq -s`, writes them."""
    path = tmp_path / "all.json"
    path.write_text(json.dumps([made(name="a"), made(name="b")]))

    rows, report = imported(path, tmp_path / "t.jsonl")

    assert dict(report.files) == {known: 1}
    assert report.errors_count == 0
    assert [row.session_id for row in rows] == ["a", "b"]
    assert not any(row.is_cut for row in rows)


def test_of_a_list_that_was_cut_the_last_recording_is_cut(tmp_path: Path) -> None:
    text = json.dumps([trajectory(4, 20, name) for name in ("a", "b", "c")])
    path = tmp_path / "all.json"
    path.write_text(text[: text.index('"instance_id": "c"')])

    rows, report = imported(path, tmp_path / "t.jsonl")

    assert [(row.session_id, row.is_cut) for row in rows] == [("a", False), ("b", True)]
    assert report.errors_count == 1


@pytest.mark.parametrize("layout", ["list", "indented"])
@pytest.mark.parametrize("known", ["mooncake", "agentic-mooncake"])
def test_rows_of_mooncake_need_no_lines(known: str, layout: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"timestamp": n, "input_length": 600 + n, "output_length": 5, "hash_ids": [n, n + 1]}
        for n in (0, 10)
    ]
    if known == "agentic-mooncake":
        rows = [row | {"request_id": f"r{n}", "wait_for": []} for n, row in enumerate(rows)]
    path = tmp_path / "rows.json"
    indented = "\n".join(json.dumps(row, indent=2) for row in rows)
    path.write_text(json.dumps(rows) if layout == "list" else indented)

    found, report = imported(path, tmp_path / "t.jsonl")

    assert dict(report.files) == {known: 1}
    assert (report.calls, report.errors_count) == (2, 0)
    assert sum(step.input_tokens for row in found for step in row.steps) == 1210


def test_a_list_of_messages_is_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(conversation()["messages"]))
    stranger = tmp_path / "people.json"
    stranger.write_text(json.dumps([{"name": "x", "role": "admin"}]))

    (row,), report = imported([path], tmp_path / "t.jsonl")
    assert (row.session_id, len(row.steps), report.errors_count) == ("chat", 1, 0)
    path.write_text(json.dumps([conversation()["messages"]] * 2))
    rows, _ = imported([path], tmp_path / "t.jsonl")
    assert [row.session_id for row in rows] == ["chat/1", "chat/2"]
    _, whole = imported(tmp_path, tmp_path / "t.jsonl")
    assert (whole.errors_count, whole.recordings) == (0, 2)


@pytest.mark.parametrize("content", [b"", b"\n \n"], ids=["nothing", "white space"])
def test_an_empty_file_is_called_so(content: bytes, tmp_path: Path) -> None:
    """It was said to be JSON that is cut short, as a file that lost its end is."""
    path = tmp_path / "x.traj"
    path.write_bytes(content)
    for format_name in ("auto", "swe-agent"):
        _, report = imported(path, tmp_path / "out.jsonl", format_name=format_name)
        said = [error.message.rpartition("; ")[2] for error in report.errors]
        assert said == ["there is nothing in it"]


def test_who_imports_on_the_way_is_told_how_the_rest_is_kept(tmp_path: Path) -> None:
    """One broken file among many ended `simulate FOLDER`, and nothing said what to do about it."""
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "whole.traj").write_text(json.dumps(trajectory()))
    text = json.dumps(trajectory())
    (folder / "broken.traj").write_text(text[: len(text) // 2])
    with pytest.raises(TraceError) as raised:
        list(read_trace(folder))
    assert raised.value.path == str(folder / "broken.traj")
    assert raised.value.line == 1
    assert "agentsched trace import auto FILES -o OUT keeps the rest" in str(raised.value)
