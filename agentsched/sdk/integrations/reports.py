"""What adapters tell of tools that a framework runs: started here, finished there."""

from __future__ import annotations

import time
from collections import OrderedDict
from threading import Lock
from typing import Final

from agentsched.sdk.context import Program
from agentsched.sdk.reporter import reporter

#: Tool calls whose end never came are forgotten beyond so many.
_OPEN_MAX: Final = 10_000


class OpenCalls:
    """Tool calls that run, by a key of the framework's. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        #: When each began, whose it is, its tool and the model's id of the call.
        self._calls: OrderedDict[object, tuple[float, Program, str, str]] = OrderedDict()

    def start(self, key: object, program: Program, tool: str, call_id: str) -> None:
        """Tell that a tool has started."""
        if not reporter().is_on:
            return
        with self._lock:
            self._calls[key] = (time.monotonic(), program, tool, call_id)
            if len(self._calls) > _OPEN_MAX:
                self._calls.popitem(last=False)
        _tell("started", program, tool, call_id)

    def finish(self, key: object, *, is_error: bool = False) -> None:
        """Tell that it has ended; one that nobody knows is no error."""
        with self._lock:
            known = self._calls.pop(key, None)
        if known is None:
            return
        began, program, tool, call_id = known
        took = round(time.monotonic() - began, 6)
        more: dict[str, object] = {"took_s": took}
        if is_error:
            more["is_error"] = True
        _tell("finished", program, tool, call_id, **more)

    def forget(self, key: object) -> None:
        """It has not ended, but whoever goes on with it will start another one by its key."""
        with self._lock:
            self._calls.pop(key, None)


def _tell(event: str, program: Program, tool: str, call_id: str, **more: object) -> None:
    report: dict[str, object] = {"event": event, "program": program.name, "tool": tool}
    if call_id:
        report["call_id"] = call_id
    reporter().put(report | more, sender=program.sender())
