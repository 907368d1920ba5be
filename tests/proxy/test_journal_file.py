"""The journal as a file: complete, bounded, never in the way."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from agentsched.compose import SchedulerConfig, journal_header
from agentsched.kernel import JournalEntry, encode_header
from agentsched.model import ConfigError, Instant, TimerFired
from agentsched.proxy.journal_file import JournalFile
from agentsched_bench.replay import open_journal

HEADER = encode_header(journal_header(SchedulerConfig(profile="fcfs")))


def entry(seq: int) -> JournalEntry:
    return JournalEntry(seq=seq, now=Instant(seq), event=TimerFired(), commands=())


@pytest.mark.parametrize("name", ["j", "j.gz"])
async def test_all_is_there_after_the_end(tmp_path: Path, name: str) -> None:
    async with JournalFile(tmp_path / name, header=HEADER, backlog_max=1_000) as journal:
        for seq in range(500):
            journal.write(entry(seq))
    with open_journal(tmp_path / name) as read:
        assert [e.seq for e in read] == list(range(500))
    assert journal.dropped == 0


async def test_a_full_backlog_drops_and_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with JournalFile(tmp_path / "j", header=HEADER, backlog_max=10) as journal:
        for seq in range(15):
            journal.write(entry(seq))
        assert journal.dropped == 5
    assert "lacks 5 entries" in caplog.text
    with open_journal(tmp_path / "j") as read:
        assert len(list(read)) == 10


async def test_a_full_disk_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: JournalFile, batch: list[JournalEntry]) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(JournalFile, "_write_batch", full)
    async with JournalFile(tmp_path / "j", header=HEADER, backlog_max=10) as journal:
        journal.write(entry(0))
    assert journal.dropped == 1
    assert "no space" in caplog.text


async def test_the_disk_is_waited_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    write = JournalFile._write_batch

    def noting(self: JournalFile, batch: list[JournalEntry]) -> None:
        threads.append(threading.get_ident())
        write(self, batch)

    monkeypatch.setattr(JournalFile, "_write_batch", noting)
    async with JournalFile(tmp_path / "j", header=HEADER, backlog_max=10) as journal:
        journal.write(entry(0))
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("name", ["taken", "no/such/folder"])
async def test_where_none_can_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match=name.rsplit("/", 1)[-1]):
        async with JournalFile(tmp_path / name, header=HEADER, backlog_max=1):
            pytest.fail("it was made")
