"""The journal as a file: complete, bounded, never in the way."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import threading
from pathlib import Path

import pytest

from agentsched.compose import SchedulerConfig, journal_header
from agentsched.kernel import JournalEntry, decode, encode, encode_header
from agentsched.model import ConfigError, Instant, TimerFired
from agentsched.proxy.journal_file import JournalFile, WholeLines
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


class TightFile(io.FileIO):
    """A file on a disk with so much room; writes what fits, as disks do."""

    room = 1 << 20

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(data[: self.room])
        self.room -= written
        return written

    def truncate(self, size: int | None = None) -> int:
        at = self.tell() if size is None else size
        self.room += self.seek(0, io.SEEK_END) - at
        self.seek(at)
        return super().truncate(at)


@pytest.mark.parametrize("packs", [False, True])
def test_what_does_not_fit_leaves_no_trace(tmp_path: Path, *, packs: bool) -> None:
    path = tmp_path / ("j.gz" if packs else "j")
    file = TightFile(path, "x")
    lines = WholeLines(file, packs=packs)
    lines.write(HEADER + b"\n")
    told: list[int] = []
    for seq in range(40):
        # Every other time there is room for a part of it only.
        room, file.room = file.room, 7 if seq % 2 else file.room
        line = encode(entry(seq)) + b"\n"
        if seq % 2:
            before = path.read_bytes()
            with pytest.raises(OSError, match="No space"):
                lines.write(line)
            assert path.read_bytes() == before
            assert file.room == 7
            file.room = room
        else:
            lines.write(line)
            told.append(seq)
    lines.close()
    with (gzip.open if packs else open)(path, "rb") as read:
        assert [decode(line).seq for line in read.read().splitlines()[1:]] == told


class StuckFile(io.FileIO):
    """A file whose disk does not answer until it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x")
        self.asked, self.answers = threading.Event(), threading.Event()
        self.thread = threading.current_thread()

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self.thread = threading.current_thread()
        self.asked.set()
        assert self.answers.wait(30)
        return super().write(data)


class StuckJournal(JournalFile):
    """The journal on such a disk, opened before it stopped to answer."""

    def __init__(self, path: Path, *, close_s: float) -> None:
        super().__init__(path, header=HEADER, backlog_max=10, close_s=close_s)
        self.disk = StuckFile(path)

    def _open(self) -> WholeLines:
        lines = WholeLines(self.disk)
        self.disk.answers.set()
        lines.write(HEADER + b"\n")
        self.disk.answers.clear()
        self.disk.asked.clear()
        return lines


async def test_while_the_disk_does_not_answer_entries_wait_and_then_are_counted(
    tmp_path: Path,
) -> None:
    async with StuckJournal(tmp_path / "j", close_s=30) as journal:
        journal.write(entry(0))
        assert await asyncio.to_thread(journal.disk.asked.wait, 30)
        for seq in range(1, 15):
            journal.write(entry(seq))
        assert journal.dropped == 4
        # The end has begun before the disk answers: what it was writing stays in front.
        asyncio.get_running_loop().call_soon(journal.disk.answers.set)
    with open_journal(tmp_path / "j") as read:
        assert [e.seq for e in read] == list(range(11))


async def test_the_end_does_not_wait_for_a_disk_that_does_not_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with StuckJournal(tmp_path / "j", close_s=0.01) as journal:
        journal.write(entry(0))
        assert await asyncio.to_thread(journal.disk.asked.wait, 30)
    assert "does not answer" in caplog.text
    assert journal.disk.thread.daemon, "the process could not end"
    journal.disk.answers.set()
    await asyncio.to_thread(journal.disk.thread.join, 30)
    assert not journal.disk.thread.is_alive()
    journal.disk.close()


async def test_a_journal_that_could_not_be_begun_is_not_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: WholeLines, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(WholeLines, "write", full)
        with pytest.raises(ConfigError, match="No space left"):
            async with JournalFile(tmp_path / "j", header=HEADER, backlog_max=1):
                pytest.fail("it was made")
    async with JournalFile(tmp_path / "j", header=HEADER, backlog_max=1):
        pass
