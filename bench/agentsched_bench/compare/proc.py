"""What Linux says about its CPUs, the processes of this run and its own stalls.

Sources: proc(5) for `/proc/stat` and `/proc/PID/stat`, Documentation/scheduler/sched-stats.rst for
`/proc/PID/schedstat`, Documentation/ABI/testing/dev-kmsg for `/dev/kmsg`. What is missing, or may
not be read, is left out; nothing here raises.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentsched_bench.compare.machine import Look, MachineWatch, Used, machine_watched

_STALL: Final = re.compile(
    rb"workqueue lockup|soft lockup|hard lockup|detected (?:expedited )?stalls?"
    rb"|self-detected stall|blocked for more than|starved for",
    re.IGNORECASE,
)
#: Records of the kernel's log read at one look, and the size of the longest (CONSOLE_EXT_LOG_MAX).
_RECORDS_MAX: Final = 5_000
_RECORD_BYTES_MAX: Final = 8_192
_KMSG: Final = Path("/dev/kmsg")
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    parent: int
    started: int
    name: str
    ticks: int


class KernelLog:
    """Counts lines about stalls that come after its making. None where it may not be read."""

    def __init__(self, path: Path = _KMSG) -> None:
        self._file: int | None = None
        self._count = 0
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._file, 0, os.SEEK_END)

    def count(self) -> int | None:
        """How many so far; it does not wait for more."""
        if self._file is None:
            return None
        for _ in range(_RECORDS_MAX):
            try:
                record = os.read(self._file, _RECORD_BYTES_MAX)
            except BrokenPipeError:
                continue  # records were overwritten before they were read: the next is the oldest
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return None
            if not record:
                break
            self._count += _STALL.search(record) is not None
        return self._count

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@contextlib.contextmanager
def looking(
    *, root: int | None = None, proc: Path = _PROC, kmsg: Path = _KMSG
) -> Iterator[Callable[[], Look]]:
    """Yields what takes a look at the machine. `root` and all it started count as the run's own;
    without it, this process."""
    log = KernelLog(kmsg)
    pid = os.getpid() if root is None else root
    try:
        yield lambda: look(proc, root=pid, kernel_stalls=log.count())
    finally:
        log.close()


@contextlib.contextmanager
def watching_machine(knows_own: bool) -> Iterator[MachineWatch]:
    """Watch this machine until the block ends. See `machine_watched`."""
    with looking() as ask, machine_watched(ask, knows_own=knows_own) as watch:
        yield watch


def look(proc: Path, *, root: int, kernel_stalls: int | None) -> Look:
    """Read `/proc` once."""
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    cpus = _cpu_line(proc)
    total_s = busy_s = steal_s = None
    if cpus is not None:
        user, nice, system, _idle, _iowait, irq, softirq, steal = cpus
        total_s, steal_s = sum(cpus) * tick_s, steal * tick_s
        busy_s = (user + nice + system + irq + softirq) * tick_s
    processes = _processes(proc)
    own = {
        (pid, one.started): Used(
            name=one.name, cpu_s=one.ticks * tick_s, waited_s=_waited(proc / str(pid))
        )
        for pid, one in processes.items()
        if _is_below(pid, root, processes)
    }
    return Look(
        at_s=time.monotonic(),
        total_s=total_s,
        busy_s=busy_s,
        steal_s=steal_s,
        own=own,
        kernel_stalls=kernel_stalls,
    )


def _cpu_line(proc: Path) -> tuple[int, ...] | None:
    """user, nice, system, idle, iowait, irq, softirq, steal; a guest's time is in user already."""
    try:
        words = (proc / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        numbers = tuple(int(word) for word in words[1:9])
    except (OSError, ValueError):
        return None
    # Where the kernel does not count (some sandboxes), all of it is 0.
    return numbers if len(numbers) == 8 and any(numbers) else None


def _processes(proc: Path) -> dict[int, _Process]:
    try:
        pids = [int(name) for name in os.listdir(proc) if name.isdecimal()]
    except OSError:
        return {}
    return {pid: found for pid in pids if (found := _process(proc / str(pid) / "stat")) is not None}


def _process(path: Path) -> _Process | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        # A name may have blanks and brackets of its own: the last bracket is the end of it.
        head, _, rest = text.rpartition(")")
        words = rest.split()
        return _Process(
            parent=int(words[1]),
            started=int(words[19]),
            name=head.partition("(")[2],
            ticks=sum(int(word) for word in words[11:15]),
        )
    except (OSError, ValueError, IndexError):
        return None


def _is_below(pid: int, root: int, processes: Mapping[int, _Process]) -> bool:
    seen: set[int] = set()
    while pid != root:
        one = processes.get(pid)
        # Reading them takes a moment, in which a number may come to another process.
        if one is None or pid in seen:
            return False
        seen.add(pid)
        pid = one.parent
    return True


def _waited(folder: Path) -> float | None:
    try:
        return int((folder / "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
