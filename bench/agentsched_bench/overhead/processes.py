"""Processes that are measured: started on given CPUs, read by the kernel's own clocks, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentsched.model import EngineTimeout, EngineUnreachable
from agentsched_bench.live.processes import stop_group

_POLL_S: Final = 0.05
_TAIL_BYTES: Final = 600
#: Ended by the kernel when we are killed; then becomes the command.
_BOOT: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A running process and its children."""

    name: str
    process: Process
    port: int = 0

    def cpu_s(self) -> float:
        """CPU time of all its processes since they began, in seconds, exact to the microsecond."""
        # Linux makes the CPU clock of any process a clock of its own: finer than /proc's ticks.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self._pids())

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        page = os.sysconf("SC_PAGE_SIZE")
        sizes = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self._pids()]
        return sum(int(size) for size in sizes) * page

    def _pids(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                # The name in brackets may hold spaces; what follows it does not.
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found


@contextlib.asynccontextmanager
async def started(
    command: Sequence[str],
    *,
    name: str,
    cpus: frozenset[int],
    port: int = 0,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> AsyncIterator[Measured]:
    """Run a command on `cpus`; its output goes to `log`, or comes through a pipe without one."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("wb")) if log is not None else PIPE
        with _on(cpus):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _BOOT,
                str(os.getpid()),
                *command,
                stdin=PIPE if log is None else DEVNULL,
                stdout=out,
                stderr=out if log is not None else None,
                env={**os.environ, **(environment or {})},
                limit=16 << 20,
                process_group=0,
            )
        try:
            yield Measured(name=name, process=process, port=port)
        finally:
            await stop_group(process)


async def until_healthy(running: Measured, path: str, *, log: Path, within_s: float) -> None:
    """Wait until it answers 200 at `path`.

    Raises:
        EngineUnreachable: it ended; the text has its last words.
        EngineTimeout: not in time.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if running.process.returncode is not None:
            raise EngineUnreachable(f"{running.name} did not start; it said: {_tail(log)}")
        if await _is_healthy(running.port, path):
            return
        await asyncio.sleep(_POLL_S)
    raise EngineTimeout(f"{running.name} was not ready in {within_s:g} s; it said: {_tail(log)}")


async def _is_healthy(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        async with asyncio.timeout(5):
            return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def _tail(log: Path) -> str:
    data = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    return " | ".join(line.strip() for line in data.splitlines() if line.strip()) or "nothing"


@contextlib.contextmanager
def _on(cpus: frozenset[int]) -> Iterator[None]:
    """What is started inside begins on these CPUs; ours stay as they were."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
