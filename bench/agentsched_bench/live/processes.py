"""Our own commands as subprocesses: started, awaited until ready, stopped whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from agentsched.model import EngineTimeout, EngineUnreachable

_URL: Final = re.compile(r"https?://[^\s/()]+:\d+")
_TAIL_LINES: Final = 15
_STOP_S: Final = 10.0
#: How often we look at what is left of a group without its first process, before it is killed.
_LOOKS: Final = 40
_LOOK_S: Final = 0.05
#: The command line, ended by the kernel (Linux) when the process that started it is killed.
_BOOT: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit(1)
else:
    sys.argv.pop(1)
from agentsched.cli import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A process that serves: where, the line in which it said so, and its number."""

    url: str
    line: str
    pid: int = 0


@contextlib.asynccontextmanager
async def running(*arguments: str, name: str, ready_s: float = 60.0) -> AsyncIterator[Ready]:
    """Run `agentsched ARGUMENTS`; yields what it said when it was ready.

    The process is in a group of its own, so that Ctrl-C reaches it through us alone.

    Raises:
        EngineUnreachable: it ended before it was ready; the text has its last words.
        EngineTimeout: it was not ready in time.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _BOOT,
        str(os.getpid()),
        *arguments,
        stdout=PIPE,
        stderr=STDOUT,
        process_group=0,
    )
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    url: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    reader = asyncio.create_task(_follow(process, tail, url), name=f"output of {name}")
    try:
        yield await _ready(url, tail, name=name, ready_s=ready_s)
    finally:
        await stop_group(process)
        await reader


async def _follow(process: Process, tail: deque[str], url: asyncio.Future[Ready]) -> None:
    """Read all that the process writes, so that it never waits for us."""
    assert process.stdout is not None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:
            # A line longer than the buffer: what was read of it is gone.
            continue
        if not line:
            break
        text = line.decode(errors="replace").rstrip()
        tail.append(text)
        found = _URL.search(text)
        if found and "ready" in text and not url.done():
            url.set_result(Ready(url=found[0], line=text, pid=process.pid))
    if not url.done():
        url.cancel()


async def _ready(
    url: asyncio.Future[Ready], tail: Sequence[str], *, name: str, ready_s: float
) -> Ready:
    done, _ = await asyncio.wait([url], timeout=ready_s)
    said = " | ".join(line for line in tail if line.strip()) or "nothing"
    if not done:
        raise EngineTimeout(f"{name} was not ready within {ready_s:g} s; it said: {said}")
    if url.cancelled():
        raise EngineUnreachable(f"{name} did not start; it said: {said}")
    return url.result()


async def stop_group(process: Process) -> None:
    """End a process and all of its group: politely, and then not, also what is left of the group
    when the process itself has ended.

    It is told to before anything is awaited, so also where this is cancelled.
    """
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        # Shielded: a second Ctrl-C must not leave the process behind.
        await asyncio.shield(asyncio.wait_for(process.wait(), _STOP_S))
    for _ in range(_LOOKS):
        if process.returncode is None or not _signal_group(process, 0):
            break
        await asyncio.sleep(_LOOK_S)
    _signal_group(process, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.shield(asyncio.wait_for(process.wait(), _STOP_S))


def _signal_group(process: Process, number: int) -> bool:
    """Whether there was anyone to be told."""
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is not None and _is_there(process.pid):
            # It has ended, and its number is given away only once nothing is left of the group.
            return False
        os.killpg(process.pid, number)
        return True
    return False


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
