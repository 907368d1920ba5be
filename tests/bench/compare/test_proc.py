"""What is read of a /proc that was made up, and of a kernel's log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentsched_bench.compare.proc import KernelLog, look, looking

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def process(
    proc: Path, pid: int, *, parent: int, name: str, ticks: int, waited_ns: int | None = None
) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    # state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime cutime
    # cstime priority nice threads itrealvalue starttime: proc(5).
    words = f"S {parent} 1 1 0 -1 0 0 0 0 0 {ticks} 1 2 3 20 0 1 0 {1000 + pid} 0 0"
    (folder / "stat").write_text(f"{pid} ({name}) {words}\n")
    if waited_ns is not None:
        (folder / "schedstat").write_text(f"5 {waited_ns} 9\n")


def test_the_run_is_the_harness_and_all_below_it(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 400 50 6 7 8 90 10\ncpu0 1 1\n")
    process(tmp_path, 50, parent=1, name="harness", ticks=10, waited_ns=1_500_000_000)
    process(tmp_path, 51, parent=50, name="vllm: a) b", ticks=20, waited_ns=0)
    process(tmp_path, 52, parent=51, name="core", ticks=30)
    process(tmp_path, 60, parent=1, name="other", ticks=99)
    (tmp_path / "61").mkdir()

    seen = look(tmp_path, root=50, kernel_stalls=None)

    assert {key: one.name for key, one in seen.own.items()} == {
        (50, 1050): "harness",
        (51, 1051): "vllm: a) b",
        (52, 1052): "core",
    }
    harness, engine, core = (seen.own[pid, 1000 + pid] for pid in (50, 51, 52))
    assert harness.cpu_s == pytest.approx(16 * TICK_S)
    assert (harness.waited_s, engine.waited_s, core.waited_s) == (1.5, 0.0, None)
    # A guest's time is in user's already; waiting for a disk is not being busy.
    assert seen.total_s == pytest.approx(621 * TICK_S)
    assert seen.busy_s == pytest.approx(163 * TICK_S)
    assert seen.steal_s == pytest.approx(8 * TICK_S)


@pytest.mark.parametrize("text", [None, "", "cpu  1 2\n", "cpu  0 0 0 0 0 0 0 0\n", "gpu x\n"])
def test_a_kernel_that_says_nothing_is_taken_at_its_word(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "stat").write_text(text)

    seen = look(tmp_path / "stat" if text is None else tmp_path, root=1, kernel_stalls=None)

    assert (seen.total_s, seen.busy_s, seen.steal_s, dict(seen.own)) == (None, None, None, {})


def test_stalls_are_counted_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("3,1,1,-;BUG: workqueue lockup - pool cpus=0 stuck for 31s!\n")
    log = KernelLog(path)
    assert log.count() == 0

    for line, count in [
        ("3,2,9,-;BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 52s!", 1),
        ("6,3,9,-;usb 1-1: new device", 1),
        ("3,4,9,-;rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", 2),
        ("3,5,9,-;watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python:1]", 3),
        ("3,6,9,-;INFO: task python:77 blocked for more than 122 seconds.", 4),
    ]:
        with path.open("a") as file:
            file.write(line + "\n")
        assert log.count() == count, line
    log.close()
    assert log.count() is None
    assert KernelLog(tmp_path / "none").count() is None


def test_this_process_is_found_on_the_machine_itself() -> None:
    with looking() as ask:
        first = ask()
        second = ask()

    assert os.getpid() in {pid for pid, _ in first.own}
    assert first.total_s is not None
    assert second.total_s is not None
    assert second.total_s >= first.total_s
