"""Log lines written on a thread of their own.

Whoever reads them may be slow: a pipe that is full, a journal on a disk that does not answer. What
logs is the data path, and does not wait for that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

_LINES_MAX: Final = 10_000
#: How long the end waits for the last lines to be taken.
_END_S: Final = 2.0


class BesideHandler(logging.Handler):
    """Formats where something is logged, and calls `write` with each line elsewhere.

    With `lines_max` waiting, further lines are dropped; how many is written once there is room.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        lines_max: int = _LINES_MAX,
        end_s: float = _END_S,
    ) -> None:
        super().__init__()
        self._write = write
        self._lines_max = lines_max
        self._end_s = end_s
        #: Appended to by whoever logs, taken from by the thread; both are atomic.
        self._waiting: deque[str] = deque()
        self._dropped = self._told = 0
        self._called = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record in; it is written as soon as lines are taken."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if len(self._waiting) < self._lines_max:
            self._waiting.append(line)
        else:
            self._dropped += 1
        self._called.set()

    def close(self) -> None:
        """Write what waits, and end; lines that nobody takes in time are lost."""
        self._is_over = True
        self._called.set()
        self._thread.join(self._end_s)
        super().close()

    def _run(self) -> None:
        while not (self._is_over and not self._waiting):
            self._called.wait()
            self._called.clear()
            while self._waiting:
                self._put(self._waiting.popleft())
            lost = self._dropped - self._told
            if lost:
                self._told += lost
                self._put(f"{lost} lines of the log are missing here: nobody took them")

    def _put(self, line: str) -> None:
        # What cannot be written cannot be told, either.
        with contextlib.suppress(OSError):
            self._write(line + "\n")


def to_stderr(text: str) -> None:
    """Write to standard error, past the buffers that the process' end would wait for.

    Raises:
        OSError: nobody reads there any more.
    """
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    while left:
        left = left[os.write(2, left) :]
