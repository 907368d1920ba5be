"""The spool: in order, bounded, one owner, and whole after a crash."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from agentsched.model import ConfigError
from agentsched.store.database import StoreError
from agentsched.store.records import JournalRecord, Record, TurnRecord
from agentsched.store.spool import Spool


def entry(seq: int, *, line: str = "{}") -> JournalRecord:
    day = date(2026, 11, 21)
    return JournalRecord(
        stream="s", seq=seq, day=day, now=seq, kind="TimerFired", program=None, line=line
    )


Open = Callable[..., Spool]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens spools that are given back at the end."""
    spools: list[Spool] = []

    def open_one(folder: Path, *, bytes_max: int = 1 << 20) -> Spool:
        spools.append(Spool(folder, bytes_max=bytes_max))
        spools[-1].acquire()
        return spools[-1]

    yield open_one
    for spool in spools:
        spool.release()


def drained(spool: Spool) -> list[Record]:
    found: list[Record] = []
    while (segment := spool.oldest()) is not None:
        found += spool.read(segment)
        spool.remove(segment)
    return found


def test_gives_back_what_was_put_in_in_order(opened: Open, tmp_path: Path) -> None:
    spool = opened(tmp_path)
    records: list[Record] = [entry(n) for n in range(5)]
    records.insert(2, TurnRecord(stream="s", handle=7, at_ns=1, data=b"\x00\xff"))
    assert spool.append(records[:3]) == spool.append(records[3:]) == 0
    assert not spool.is_empty
    assert drained(spool) == records
    assert spool.is_empty
    assert spool.size == 0


def test_goes_on_after_a_crash(opened: Open, tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.append([entry(1), entry(2)])
    first.release()
    [segment] = tmp_path.glob("*.ndjson")
    segment.write_bytes(segment.read_bytes()[:-4])
    second = opened(tmp_path)
    second.append([entry(3)])
    assert drained(second) == [entry(1), entry(3)]


def test_is_bounded(opened: Open, tmp_path: Path) -> None:
    spool = opened(tmp_path, bytes_max=1_000)
    lost = spool.append([entry(n, line="x" * 100) for n in range(20)])
    kept = drained(spool)
    assert 0 < len(kept) < 10
    assert lost == 20 - len(kept)
    assert [r.seq for r in kept if isinstance(r, JournalRecord)] == list(range(len(kept)))
    assert spool.append([entry(99)]) == 0


def test_long_spools_are_many_files(opened: Open, tmp_path: Path) -> None:
    spool = opened(tmp_path, bytes_max=1 << 23)
    for number in range(30):
        spool.append([entry(number, line="x" * 100_000)])
    assert len(list(tmp_path.glob("*.ndjson"))) == 3
    assert len(drained(spool)) == 30
    assert not list(tmp_path.glob("*.ndjson"))


def test_one_process_has_it(opened: Open, tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(ConfigError, match=r"another process.*store\.replica"):
        opened(tmp_path)
    first.release()
    assert opened(tmp_path).is_empty


def test_nobody_else_reads_it(opened: Open, tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    spool.append([entry(0)])
    found = [spool.folder, *spool.folder.iterdir()]
    assert {path.name for path in found} == {"spool", "lock", "00000001.ndjson"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in found)


def test_what_cannot_be_read_for_a_moment_is_no_nothing(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    spool.append([entry(0)])
    segment = spool.oldest()
    assert segment is not None

    def fail(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        with pytest.raises(StoreError, match="Too many open files"):
            spool.read(segment)
    assert drained(spool) == [entry(0)]


def test_a_folder_that_cannot_be_made_is_told(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"store\.spool"):
        opened(tmp_path / "file" / "spool")


def test_a_full_disk_costs_what_did_not_fit(opened: Open, tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert spool.append([entry(0)]) == 0

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self.file.close()

    spool._open = Full(spool._open)  # type: ignore[assignment]
    assert spool.append([entry(1), entry(2)]) == 2
    assert spool.append([entry(3)]) == 0
    assert drained(spool) == [entry(0), entry(3)]
