"""Whether the machine itself spoiled a run: it stood still, or others had its CPUs.

A kernel that starves processes, a hypervisor that takes the CPUs away, or another job beside it
make a run slower than its arm is, and nothing in the run's own rows tells. So the harness watches
while it measures: a thread wakes four times a second and notes when it was late by a second, and
every few seconds the kernel is asked who had the CPUs and who waited for one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from agentsched_bench.compare.results import CompareResult, Machine, Run

#: How often the watcher wakes, and from what lateness on it counts as a gap.
TICK_S: Final = 0.25
GAP_S: Final = 1.0
#: How often the kernel is asked. Where asking takes long (thousands of processes), less often.
LOOK_S: Final = 2.0
_LOOK_SHARE_MAX: Final = 0.02
#: A run in which this share of the time stood still says nothing about its arm.
STALLED_SHARE: Final = 0.02
#: What others may take of all CPUs' time, and the hypervisor, before a run is called disturbed.
OTHERS_SHARE_MAX: Final = 0.10
STEAL_SHARE_MAX: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """A process of the run: CPU seconds so far, its ended children's included, and how long its
    main thread has waited for a CPU; None where the kernel does not say."""

    name: str
    cpu_s: float
    waited_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the kernel says at one moment; everything counts up from the machine's start.

    `total_s`, `busy_s` and `steal_s` are over all CPUs, None where the kernel does not say. `own`
    has the harness and all that it started, by process id and start time. `kernel_stalls` counts
    from the first look on.
    """

    at_s: float
    total_s: float | None = None
    busy_s: float | None = None
    steal_s: float | None = None
    own: Mapping[tuple[int, int], Used] = field(default_factory=dict)
    kernel_stalls: int | None = None


class Watching(Protocol):
    """Whoever watches the machine."""

    def seen(self) -> Machine:
        """What it has seen so far."""


class MachineWatch:
    """Adds up what was seen. Not to be shared between threads while they watch."""

    def __init__(self, first: Look, *, knows_own: bool = True) -> None:
        self._first = self._last = first
        self._knows_own = knows_own
        self._woke_s = first.at_s
        self._gaps: list[float] = []
        self._longest_wait_s = 0.0
        self._waiting = ""

    def woke(self, *, at_s: float) -> None:
        """The watcher woke; it had meant to do so `TICK_S` after the last time."""
        late_s = at_s - self._woke_s - TICK_S
        if late_s >= GAP_S:
            self._gaps.append(late_s)
        self._woke_s = at_s

    def looked(self, look: Look) -> None:
        """The kernel was asked again."""
        window_s = look.at_s - self._last.at_s
        for key in sorted(look.own):
            now, before = look.own[key], self._last.own.get(key)
            if before is None or now.waited_s is None or before.waited_s is None:
                continue
            # The kernel adds a wait when it ends: what is more than the time since the last look
            # was one wait that began before it. Many short waits never come to so much.
            wait_s = now.waited_s - before.waited_s - window_s
            if wait_s >= GAP_S and wait_s > self._longest_wait_s:
                self._longest_wait_s, self._waiting = wait_s, now.name
        self._last = look

    def seen(self) -> Machine:
        """All of it so far."""
        first, last = self._first, self._last
        steal = others = None
        if None not in (first.total_s, last.total_s):
            total_s = _grown(first.total_s, last.total_s)
            if total_s > 0:
                steal = _grown(first.steal_s, last.steal_s) / total_s
                if self._knows_own:
                    busy_s = _grown(first.busy_s, last.busy_s)
                    others = max(0.0, busy_s - _cpu(last) + _cpu(first)) / total_s
        return Machine(
            watched_s=max(self._woke_s, last.at_s) - first.at_s,
            gaps=len(self._gaps),
            gaps_s=sum(self._gaps),
            longest_gap_s=max(self._gaps, default=0.0),
            longest_wait_s=self._longest_wait_s,
            waiting=self._waiting,
            steal_share=None if steal is None else min(1.0, steal),
            others_share=None if others is None else min(1.0, others),
            kernel_stalls=last.kernel_stalls,
        )


def _grown(before: float | None, after: float | None) -> float:
    return max(0.0, (after or 0.0) - (before or 0.0))


def _cpu(look: Look) -> float:
    return sum(used.cpu_s for used in look.own.values())


@contextlib.contextmanager
def machine_watched(
    look: Callable[[], Look],
    *,
    knows_own: bool,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[MachineWatch]:
    """Watch from a thread of its own until the block ends; ask `seen()` after that.

    `knows_own`: all that works for the run was started by this process, so that what others took
    can be told. An event loop that stands still is no matter: the thread is not of it.
    """
    watch = MachineWatch(look(), knows_own=knows_own)
    done = threading.Event()
    thread = threading.Thread(
        target=keep_watching, args=(watch, look, done.wait, clock), name="machine", daemon=True
    )
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()
        watch.looked(look())


def keep_watching(
    watch: MachineWatch,
    look: Callable[[], Look],
    wait: Callable[[float], bool],
    clock: Callable[[], float],
) -> None:
    """Wake and look until `wait`, which is given the seconds to wait for, says that it is over."""
    due_s = clock() + LOOK_S
    while not wait(TICK_S):
        at_s = clock()
        watch.woke(at_s=at_s)
        if at_s >= due_s:
            watch.looked(look())
            took_s = clock() - at_s
            due_s = at_s + max(LOOK_S, took_s / _LOOK_SHARE_MAX)
    watch.woke(at_s=clock())


def why_stalled(machine: Machine | None) -> str:
    """In what way the machine stood still for too much of a run; empty when it did not."""
    if machine is None:
        return ""
    least_s = STALLED_SHARE * machine.watched_s
    reasons = []
    if machine.gaps and machine.gaps_s >= least_s:
        count = f", in {machine.gaps} gaps" if machine.gaps > 1 else ""
        reasons.append(f"the machine stood still for {machine.gaps_s:.0f} s{count}")
    if machine.longest_wait_s and machine.longest_wait_s >= least_s:
        reasons.append(f"{machine.waiting} got no CPU for {machine.longest_wait_s:.0f} s")
    if machine.kernel_stalls:
        times = "once" if machine.kernel_stalls == 1 else f"{machine.kernel_stalls} times"
        reasons.append(f"the kernel reported a stall {times}")
    return ", ".join(reasons)


def why_shared(machine: Machine | None) -> str:
    """Who else had the CPUs during a run, where that was more than a little."""
    if machine is None:
        return ""
    others, steal = machine.others_share or 0.0, machine.steal_share or 0.0
    reasons = []
    if others >= OTHERS_SHARE_MAX:
        reasons.append(f"other processes had {others:.0%} of the CPUs")
    if steal >= STEAL_SHARE_MAX:
        reasons.append(f"the hypervisor took {steal:.0%} of the CPUs")
    return ", ".join(reasons)


def is_stalled(run: Run) -> bool:
    """Whether a run says nothing about its arm because the machine stood still."""
    return bool(why_stalled(run.machine))


def sound(runs: Sequence[Run]) -> Sequence[Run]:
    """The runs in which the machine did not stand still."""
    return [run for run in runs if not is_stalled(run)]


def disturbances(result: CompareResult) -> list[str]:
    """A sentence for each finished run that the machine disturbed, or that replaces such a one."""
    found = []
    for run in result.runs:
        if not run.is_complete:
            continue
        stalled, shared = why_stalled(run.machine), why_shared(run.machine)
        parts = [f"{stalled} (in no figure where there is another run)"] if stalled else []
        parts += [shared] if shared else []
        if run.replaced is not None:
            was = run.replaced.jct_mean_s
            mean = "" if was is None else f", its mean was {was:.1f} s"
            parts.append(f"made again, for {why_stalled(run.replaced.machine)}{mean}")
        if parts:
            found.append(f"{run.arm}, repeat {run.repeat + 1}: {'; '.join(parts)}")
    return found
