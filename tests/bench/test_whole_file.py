"""Results are whole or not there, and what is no file is written to and never replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.whole_file import only_writer, refuse_unwritable, write_whole


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


def test_a_disk_that_is_full_is_named() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write_whole(Path("/dev/full"), b"x")


def test_one_process_at_a_time_writes_a_file(tmp_path: Path) -> None:
    """Two comparisons at once would each write their own runs over the other's."""
    path, link = tmp_path / "r.json", tmp_path / "latest.json"
    link.symlink_to(path)
    with only_writer(path):
        text = r"latest\.json is being written by another"
        with pytest.raises(ConfigError, match=text), only_writer(link):
            pass
        with only_writer(tmp_path / "other.json"), only_writer(None), only_writer(Path(os.devnull)):
            write_whole(path, b"one")
        with pytest.raises(ConfigError), only_writer(path):
            pass
    with only_writer(path):
        pass
    link.unlink()

    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_who_cannot_be_written_is_called_as_it_was_asked_for(tmp_path: Path) -> None:
    """Not as the draft or the lock beside it, of which nobody has heard."""
    away = tmp_path / "nowhere" / "r.json"
    for fails in (
        lambda: refuse_unwritable(away),
        lambda: write_whole(away, b"x"),
        lambda: only_writer(away).__enter__(),
    ):
        with pytest.raises(FileNotFoundError) as raised:
            fails()
        assert raised.value.filename == str(away)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_whole(tmp_path, b"x")
