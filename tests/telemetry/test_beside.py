"""The log waits for whoever reads it, and nobody waits for the log."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator

import pytest

from agentsched.telemetry.beside import BesideHandler, to_stderr


class Reader:
    """Takes lines once it is told to; or is gone."""

    def __init__(self) -> None:
        self.asked, self.reads = threading.Event(), threading.Event()
        self.is_gone = False
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.asked.set()
        assert self.reads.wait(30)
        if self.is_gone:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self.lines.append(text)


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.reads.set()


def said(handler: logging.Handler, *texts: str) -> None:
    for text in texts:
        handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, text, None, None))


def test_all_is_written_in_order_by_the_end(reader: Reader) -> None:
    reader.reads.set()
    handler = BesideHandler(reader.write)
    said(handler, *map(str, range(100)))
    handler.close()
    assert reader.lines == [f"{number}\n" for number in range(100)]


def test_lines_wait_for_their_reader_and_too_many_are_dropped_and_counted(reader: Reader) -> None:
    handler = BesideHandler(reader.write, lines_max=3)
    said(handler, "0")
    assert reader.asked.wait(30)  # it is out of the queue, and nobody takes it
    said(handler, "1", "2", "3", "4", "5")
    assert reader.lines == []
    reader.reads.set()
    handler.close()
    assert reader.lines == [
        *("0\n", "1\n", "2\n", "3\n"),
        "2 lines of the log are missing here: nobody took them\n",
    ]


def test_the_end_does_not_wait_for_a_reader_that_is_gone(reader: Reader) -> None:
    handler = BesideHandler(reader.write, end_s=0.01)
    said(handler, "0")
    assert reader.asked.wait(30)
    handler.close()
    assert reader.lines == []
    assert handler._thread.daemon, "the process could not end"
    reader.reads.set()
    handler._thread.join(30)
    assert reader.lines == ["0\n"]


def test_a_reader_that_is_gone_and_a_record_that_is_none_cost_nothing(
    reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    reader.reads.set()
    handler = BesideHandler(reader.write)
    handler.handle(logging.LogRecord("n", logging.INFO, "p", 1, "%d", ("x",), None))
    assert "Logging error" in capsys.readouterr().err
    reader.is_gone = True
    said(handler, "lost")
    handler.close()
    assert not handler._thread.is_alive()
    assert reader.lines == []


def test_standard_error_gets_any_text(capfd: pytest.CaptureFixture[str]) -> None:
    to_stderr("half \ud800, whole \N{SNOWMAN}\n")
    assert capfd.readouterr().err == "half \\ud800, whole \N{SNOWMAN}\n"
