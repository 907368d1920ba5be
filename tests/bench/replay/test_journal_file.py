from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.kernel import JournalEntry, JournalError
from agentsched.model import Instant, ProgramId, ProgramOpened, TenantId, TimerFired
from agentsched_bench.replay import JournalWriter, open_journal, replay_file

CONFIG = SchedulerConfig(profile="fcfs")


def write(path: Path, *, entries: int = 3) -> list[JournalEntry]:
    scheduler = build_scheduler(CONFIG)
    written = []
    with JournalWriter(path, journal_header(CONFIG)) as journal:
        for number in range(entries):
            opened = ProgramOpened(program=ProgramId(f"p{number}"), tenant=TenantId("t"))
            scheduler.handle(opened, now=Instant(number))
            assert scheduler.latest is not None
            journal.write(scheduler.latest)
            written.append(scheduler.latest)
    return written


@pytest.mark.parametrize("name", ["j.ndjson", "j.ndjson.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    written = write(tmp_path / name)
    with open_journal(tmp_path / name) as journal:
        assert journal.header == journal_header(CONFIG)
        assert list(journal) == written
        assert not journal.is_cut
    assert replay_file(tmp_path / name) is None


def test_gz_is_gzip_and_equal_journals_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz", "plain"):
        write(tmp_path / name)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == (tmp_path / "plain").read_bytes()
    # A gzip header holds the file's name, too.
    assert (tmp_path / "a.gz").read_bytes()[20:] == (tmp_path / "b.gz").read_bytes()[20:]


@pytest.mark.parametrize("name", ["j.ndjson", "j.ndjson.gz"])
def test_a_line_that_a_crash_cut_is_left_out(tmp_path: Path, name: str) -> None:
    written = write(tmp_path / name)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-12])
    with open_journal(path) as journal:
        read = list(journal)
        assert journal.is_cut
    assert read == written[: len(read)]
    assert len(read) < 3


def test_errors_name_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    write(path)
    path.write_bytes(path.read_bytes().replace(b'"seq":1', b'"seq":"one"'))
    with (
        open_journal(path) as journal,
        pytest.raises(JournalError, match=r"j\.ndjson, line 3: not a journal line"),
    ):
        list(journal)


def test_entries_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    write(path)
    path.write_bytes(path.read_bytes().replace(b'"seq":1', b'"seq":7'))
    with (
        open_journal(path) as journal,
        pytest.raises(JournalError, match="line 3: entry 7 where 1 was to come"),
    ):
        list(journal)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty", b"", "empty"),
        ("cut", b'{"journal":1', "cut off"),
        ("other", b"hello\n", "line 1: not the header"),
        ("plain.gz", b"not gzip\n", "plain.gz"),
    ],
)
def test_what_is_no_journal(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JournalError, match=says), open_journal(tmp_path / name):
        pass


def test_what_is_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson.gz"
    packed = bytearray(gzip.compress(b'{"journal":1}\n' * 500, mtime=0))
    packed[20] ^= 0x77
    path.write_bytes(bytes(packed))

    with pytest.raises(JournalError, match="invalid bit length"), open_journal(path):
        pass


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_journal(tmp_path / "none"):
        pass


def test_a_line_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched_bench.replay.journal_file.LINE_BYTES_MAX", 2_000)
    path = tmp_path / "j.ndjson"
    write(path)
    path.write_bytes(path.read_bytes() + b"x" * 4_000)
    with open_journal(path) as journal, pytest.raises(JournalError, match="line 5: too long"):
        list(journal)


def test_an_entry_made_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    entry = JournalEntry(seq=0, now=Instant(5), event=TimerFired(), commands=())
    with JournalWriter(path, journal_header(CONFIG)) as journal:
        journal.write(entry)
    assert path.read_text().count("\n") == 2
    assert replay_file(path) is None
