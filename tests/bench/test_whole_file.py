"""Results are whole or not there, and what is no file is written to and never replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from agentsched_bench.whole_file import refuse_unwritable, write_whole


def test_a_file_is_replaced_as_a_whole_and_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "r.json", tmp_path / "latest.json"
    link.symlink_to(target)
    write_whole(target, b"one")
    write_whole(link, b"two")

    assert target.read_bytes() == b"two"
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "r.json"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """As `--out /dev/stdout` is: replaced, it would be broken for everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()

    refuse_unwritable(pipe)
    write_whole(pipe, b"all of it")
    reader.join(60)

    assert found == [b"all of it"]
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_said_before_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "gone" / "r.json"):
        with pytest.raises(OSError, match=path.name):
            refuse_unwritable(path)
        with pytest.raises(OSError, match=path.name):
            write_whole(path, b"x")
    refuse_unwritable(None)
    refuse_unwritable(tmp_path / "r.json")

    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
