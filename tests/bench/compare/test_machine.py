"""What a machine did to a run, from made-up clocks and looks: gaps, waits, shares, and words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentsched_bench.compare.machine import (
    TICK_S,
    Look,
    MachineWatch,
    Used,
    keep_watching,
    machine_watched,
    why_shared,
    why_stalled,
)
from agentsched_bench.compare.results import Machine


def look(at_s: float, **more: object) -> Look:
    return Look(at_s=at_s, **more)  # type: ignore[arg-type]


def used(cpu_s: float, waited_s: float | None = 0.0, name: str = "vllm") -> Used:
    return Used(name=name, cpu_s=cpu_s, waited_s=waited_s)


class Clock:
    """A clock that moves when somebody waits: as long as asked, or as the next of `stalls`."""

    def __init__(self, waits: list[float]) -> None:
        self.now_s = 100.0
        self._waits = waits

    def __call__(self) -> float:
        return self.now_s

    def wait(self, _asked_s: float) -> bool:
        if not self._waits:
            return True
        self.now_s += self._waits.pop(0)
        return False


def test_only_waking_a_second_late_is_a_gap() -> None:
    clock = Clock([TICK_S, 0.9, TICK_S, 31.25, TICK_S, 1.5])
    watch = MachineWatch(look(100.0))

    keep_watching(watch, lambda: look(clock()), clock.wait, clock)

    seen = watch.seen()
    assert seen.gaps == 2
    assert seen.longest_gap_s == pytest.approx(31.0)
    assert seen.gaps_s == pytest.approx(32.25)
    assert seen.watched_s == pytest.approx(34.4)


def test_the_kernel_is_asked_now_and_then_and_seldom_where_asking_takes_long() -> None:
    def asked(took_s: float) -> int:
        clock = Clock([TICK_S] * 120)
        asked = 0

        def slow() -> Look:
            nonlocal asked
            asked += 1
            clock.now_s += took_s
            return look(clock())

        keep_watching(MachineWatch(look(100.0)), slow, clock.wait, clock)
        return asked

    # Half a minute: every two seconds; where a look takes 0.2 s, every ten.
    assert asked(0.0) == 15
    assert asked(0.2) == 3


def test_a_process_that_was_starved_is_named_and_many_short_waits_are_none() -> None:
    engine, proxy = (7, 1), (8, 1)
    watch = MachineWatch(look(0.0, own={engine: used(1), proxy: used(1, name="serve")}))

    # Ready all the time and short of a CPU for nearly all of it, but never for long.
    watch.looked(look(2.0, own={engine: used(1, 1.9), proxy: used(1, 1.9, "serve")}))
    assert watch.seen().longest_wait_s == 0

    watch.looked(look(4.0, own={engine: used(1, 1.9), proxy: used(1, 36.9, "serve")}))
    watch.looked(look(6.0, own={engine: used(1, 9.9), proxy: used(1, 36.9, "serve")}))

    seen = watch.seen()
    assert (seen.longest_wait_s, seen.waiting) == (pytest.approx(33.0), "serve")


def test_a_process_of_the_same_number_is_another_one() -> None:
    watch = MachineWatch(look(0.0, own={(7, 1): used(1, 0.0)}))

    watch.looked(look(2.0, own={(7, 55): used(0, 40.0)}))

    assert watch.seen().longest_wait_s == 0


def test_what_others_took_is_what_was_busy_without_the_run_itself() -> None:
    first = look(
        0.0, total_s=100.0, busy_s=50.0, steal_s=1.0, own={(7, 1): used(5), (8, 1): used(2)}
    )
    watch = MachineWatch(first)

    # Of 40 CPU seconds 24 were busy: 14 of its own (a child that ended counts with its parent).
    own = {(7, 1): used(5 + 12 + 4)}
    watch.looked(look(20.0, total_s=140.0, busy_s=74.0, steal_s=4.0, own=own))

    seen = watch.seen()
    assert seen.others_share == pytest.approx((24 - 14) / 40)
    assert seen.steal_share == pytest.approx(3 / 40)
    assert (
        why_shared(seen)
        == "other processes had 25% of the CPUs, the hypervisor took 8% of the CPUs"
    )


def test_nothing_is_claimed_that_nobody_knows() -> None:
    silent = MachineWatch(look(0.0))
    silent.looked(look(10.0))
    assert silent.seen() == Machine(watched_s=10.0)

    foreign = MachineWatch(look(0.0, total_s=0.0, busy_s=0.0, steal_s=0.0), knows_own=False)
    foreign.looked(look(10.0, total_s=20.0, busy_s=20.0, steal_s=0.0))
    assert foreign.seen().others_share is None
    assert foreign.seen().steal_share == 0
    assert why_stalled(None) == why_shared(None) == ""


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Machine(watched_s=250, gaps=1, gaps_s=1.2, longest_gap_s=1.2), ""),
        (
            Machine(watched_s=30, gaps=1, gaps_s=1.2, longest_gap_s=1.2),
            "the machine stood still for 1 s",
        ),
        (
            Machine(watched_s=250, gaps=2, gaps_s=60, longest_gap_s=40),
            "the machine stood still for 60 s, in 2 gaps",
        ),
        (
            Machine(watched_s=250, longest_wait_s=34, waiting="vllm", kernel_stalls=1),
            "vllm got no CPU for 34 s, the kernel reported a stall once",
        ),
        (Machine(watched_s=250, others_share=0.9, steal_share=0.9, kernel_stalls=0), ""),
    ],
)
def test_a_stall_is_what_took_two_hundredths_of_the_run(seen: Machine, words: str) -> None:
    assert why_stalled(seen) == words


def test_the_watcher_looks_when_it_begins_and_when_it_has_ended() -> None:
    def looks() -> Iterator[Look]:
        yield look(0.0, kernel_stalls=0)
        while True:
            yield look(50.0, kernel_stalls=3)

    source = looks()
    with machine_watched(lambda: next(source), knows_own=True, clock=lambda: 0.0) as watch:
        assert watch.seen().kernel_stalls == 0

    assert watch.seen() == Machine(watched_s=50.0, kernel_stalls=3)
