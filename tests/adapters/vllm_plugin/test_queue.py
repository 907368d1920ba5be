"""The waiting queue by itself: vLLM's verbs, the order, the two bounds, the budget of time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.model import MILLISECOND, SECOND, Instant, Nanos
from agentsched_adapters.vllm_plugin.queue import ProgramQueue


@dataclass(eq=False)
class Request:
    request_id: str


class Bench:
    """A queue, a clock for waits and one for costs, and ranks by name."""

    def __init__(self, *, wait_s: int = 100, bypasses_max: int = 1_000) -> None:
        self.now = Instant(SECOND)
        self.spent = 0
        self.rank_costs = 0
        self.ranks: dict[str, float] = {}
        self.failed: list[str] = []
        self.queue = ProgramQueue(
            rank=self.rank,
            failed=self.failed.append,
            wait_max=Nanos(wait_s * SECOND),
            bypasses_max=bypasses_max,
            budget=MILLISECOND,
            now=lambda: self.now,
            clock=lambda: self.spent,
        )

    def rank(self, request: str, now: Instant) -> tuple[float, ...]:
        self.spent += self.rank_costs
        return (self.ranks[request],)

    def add(self, name: str, rank: float = 0.0) -> Request:
        self.ranks[name] = rank
        request = Request(name)
        self.queue.add_request(request)
        return request

    def refresh(self, seconds: float = 0.0) -> list[str]:
        self.now = Instant(self.now + round(seconds * SECOND))
        self.queue.refresh(now=self.now)
        self.queue.check()
        return [request.request_id for request in self.queue]


def test_smaller_ranks_go_first_and_ties_as_they_came() -> None:
    bench = Bench()
    for name, rank in (("a", 2.0), ("b", 1.0), ("c", 1.0), ("d", 0.5)):
        bench.add(name, rank)
    assert bench.refresh() == ["d", "b", "c", "a"]
    assert bench.queue.peek_request().request_id == "d"
    assert bench.queue.pop_request().request_id == "d"
    assert len(bench.queue) == 3


def test_what_changes_in_the_world_changes_the_order() -> None:
    bench = Bench()
    bench.add("a", 1.0)
    bench.add("b", 2.0)
    assert bench.refresh() == ["a", "b"]
    bench.ranks["b"] = 0.0
    assert bench.refresh() == ["a", "b"]  # nobody said so, and ranks are young
    bench.queue.world_changed()
    assert bench.refresh() == ["b", "a"]


def test_a_preempted_request_comes_first_the_latest_before_the_others() -> None:
    bench = Bench()
    bench.add("a", -9.0)
    bench.queue.prepend_request(Request("p1"))
    bench.queue.prepend_request(Request("p2"))
    assert bench.refresh() == ["p2", "p1", "a"]


def test_a_request_that_was_skipped_keeps_its_place_and_its_wait() -> None:
    bench = Bench(wait_s=10)
    skipped = bench.add("a", 1.0)
    bench.add("b", 2.0)
    bench.refresh()
    assert bench.queue.pop_request() is skipped
    bench.queue.prepend_requests([skipped])
    assert bench.refresh() == ["a", "b"]
    bench.ranks["a"] = 5.0
    bench.queue.world_changed()
    assert bench.refresh() == ["b", "a"]
    assert bench.refresh(11) == ["a", "b"]  # both waited too long: as they came


def test_a_request_that_waited_long_enough_is_next() -> None:
    bench = Bench(wait_s=10)
    bench.add("old", 9.0)
    bench.now = Instant(bench.now + 5 * SECOND)
    bench.add("new", 1.0)
    assert bench.refresh() == ["new", "old"]
    assert bench.refresh(6) == ["old", "new"]
    assert bench.queue.forced_total == 1


def test_a_request_that_was_overtaken_often_enough_is_next() -> None:
    bench = Bench(bypasses_max=3)
    bench.add("old", 9.0)
    for number in range(3):
        bench.add(f"n{number}", 1.0)
        assert bench.refresh()[0] == f"n{number}"
        bench.queue.pop_request()
    bench.add("n3", 1.0)
    assert bench.refresh() == ["old", "n3"]


def test_those_that_came_before_do_not_count_as_overtaking() -> None:
    bench = Bench(bypasses_max=1)
    bench.add("first", 2.0)
    bench.add("second", 3.0)
    bench.add("third", 2.5)
    bench.refresh()
    bench.queue.pop_request()
    assert bench.refresh() == ["third", "second"]


def test_removal_leaves_the_rest_in_order() -> None:
    bench = Bench()
    requests = [bench.add(f"r{n}", float(n)) for n in range(5)]
    bench.refresh()
    bench.queue.remove_requests([requests[1], requests[3], Request("stranger")])
    bench.queue.remove_request(requests[0])
    assert bench.refresh() == ["r2", "r4"]


def test_beyond_its_budget_it_is_first_come_first_served_until_it_recovers() -> None:
    bench = Bench()
    for number in range(40):
        bench.add(f"r{number}", float(-number))
    bench.rank_costs = 2 * MILLISECOND
    for _ in range(20):
        bench.queue.world_changed()
        order = bench.refresh(0.01)
    assert not bench.queue.is_ordered
    assert bench.queue.fallbacks_total == 1
    assert order == [f"r{number}" for number in range(40)]
    bench.rank_costs = 0
    assert bench.refresh(1.1) == [f"r{number}" for number in reversed(range(40))]
    assert bench.queue.is_ordered


def test_ranking_stops_at_a_quarter_of_the_budget() -> None:
    bench = Bench()
    for number in range(200):
        bench.add(f"r{number}", float(-number))
    bench.rank_costs = MILLISECOND // 64
    bench.refresh()
    assert bench.spent <= MILLISECOND // 4 + bench.rank_costs
    # The rest is ranked in later steps.
    for _ in range(20):
        bench.queue.world_changed()
        order = bench.refresh(0.01)
    assert order[0] == "r199"


def test_a_rank_that_raises_leaves_arrival_order() -> None:
    bench = Bench()
    bench.add("a", 2.0)
    bench.add("b", 1.0)
    del bench.ranks["b"]
    assert bench.refresh() == ["a", "b"]
    assert bench.failed == ["order.rank"]
    bench.add("c", 0.0)
    assert bench.refresh() == ["a", "b", "c"]


def test_after_it_gave_up_it_keeps_nobody_that_went() -> None:
    """Nobody refreshes it any more, and a request that comes back is at the front, as in vLLM's."""
    bench = Bench()
    bench.add("before", 1.0)
    bench.queue.pop_request()
    bench.queue.give_up()
    went = [bench.add(f"r{number}") for number in range(50)]
    for request in went:
        assert bench.queue.pop_request() is request
    assert not bench.queue._taken
    assert not bench.queue._went
    bench.add("waits")
    bench.queue.prepend_request(went[3])
    bench.queue.prepend_request(went[7])
    assert [request.request_id for request in bench.queue] == ["r7", "r3", "waits"]
    bench.queue.check()


def test_an_empty_queue_says_so() -> None:
    bench = Bench()
    assert not bench.queue
    with pytest.raises(IndexError):
        bench.queue.peek_request()
    with pytest.raises(IndexError):
        bench.queue.pop_request()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(-3, 3)),
            st.tuples(st.sampled_from(["pop", "skip", "preempt", "refresh"]), st.integers(0, 9)),
        ),
        max_size=60,
    )
)
def test_every_request_leaves_exactly_once(actions: list[tuple[str, int]]) -> None:
    bench = Bench(bypasses_max=2)
    names = 0
    left: list[str] = []
    for action, number in actions:
        if action == "add":
            names += 1
            bench.add(f"r{names}", float(number))
        elif action == "refresh":
            bench.refresh(number / 10)
        elif action == "pop" and bench.queue:
            left.append(bench.queue.pop_request().request_id)
        elif action == "skip" and bench.queue:
            bench.queue.prepend_requests([bench.queue.pop_request()])
        elif action == "preempt" and left:
            bench.queue.prepend_request(Request(left.pop()))
        bench.queue.check()
    while bench.queue:
        left.append(bench.queue.pop_request().request_id)
    assert sorted(left) == sorted(f"r{n}" for n in range(1, names + 1))


class Sorted:
    """What the order should be, by looking at everybody each time."""

    def __init__(self, *, wait_s: int, bypasses_max: int) -> None:
        self.wait, self.bypasses_max = wait_s * SECOND, bypasses_max
        #: Of those that wait: number, since when, how often overtaken, and how they came back.
        self.waiting: dict[str, list[int]] = {}
        self.due: set[str] = set()
        self.numbers = 0
        self.fronts = 0

    def add(self, name: str, *, now: Instant, is_front: bool = False) -> None:
        self.numbers += 1
        self.fronts -= is_front
        self.waiting[name] = [self.numbers, now, 0, self.fronts if is_front else 0]
        self.due.discard(name)

    def pop(self, name: str) -> None:
        number = self.waiting.pop(name)[0]
        for other in self.waiting.values():
            other[2] += other[0] < number

    def order(self, ranks: dict[str, float], *, now: Instant) -> list[str]:
        for name, (_, since, bypassed, _front) in self.waiting.items():
            if since <= now - self.wait or bypassed >= self.bypasses_max:
                self.due.add(name)

        def key(name: str) -> tuple[float, ...]:
            number, _since, _bypassed, front = self.waiting[name]
            if front:
                return (0, front)
            return (1, number) if name in self.due else (2, ranks[name], number)

        return sorted(self.waiting, key=key)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(-3, 3)),
            st.tuples(st.sampled_from(["pop", "preempt", "abort", "rank", "skip"]), st.integers()),
            st.tuples(st.just("step"), st.integers(0, 9)),
        ),
        max_size=80,
    )
)
def test_moving_some_gives_the_order_of_sorting_all(actions: list[tuple[str, int]]) -> None:
    bench, model = Bench(wait_s=5, bypasses_max=3), Sorted(wait_s=5, bypasses_max=3)
    left: list[str] = []
    for action, number in actions:
        if action == "add":
            name = f"r{model.numbers + 1}"
            model.add(name, now=bench.now)
            bench.add(name, float(number))
        elif action == "preempt" and left:
            name = left.pop(number % len(left))
            bench.refresh()  # what went in an earlier step, not what was looked at in this one
            model.add(name, now=bench.now, is_front=True)
            bench.queue.prepend_request(Request(name))
        elif action == "step":
            bench.queue.world_changed()
            order = bench.refresh(number / 10)
            if len(model.waiting) > 1:
                assert order == model.order(bench.ranks, now=bench.now)
        elif action == "skip" and len(bench.queue) > 1:
            skipped = [bench.queue.pop_request(), bench.queue.pop_request()]
            bench.queue.prepend_requests(reversed(skipped))
        elif action == "pop" and bench.queue:
            name = bench.queue.pop_request().request_id
            model.pop(name)
            left.append(name)
        elif bench.queue:
            waiting = list(bench.queue)
            request = waiting[number % len(waiting)]
            if action == "abort":
                bench.queue.remove_request(request)
                del model.waiting[request.request_id]
            elif action == "rank":
                bench.ranks[request.request_id] = float(number % 7)
        bench.queue.check()


def test_a_request_that_is_skipped_in_every_step_leaves_no_traces() -> None:
    bench = Bench()
    bench.add("a", 1.0)
    bench.add("b", 2.0)
    for _ in range(100):
        bench.refresh()
        bench.queue.prepend_requests([bench.queue.pop_request()])
    assert len(bench.queue._ranked) + len(bench.queue._new) == 2
    assert bench.queue._went == []


@pytest.mark.parametrize("waiting", [0, 1, 5])
def test_requests_that_went_are_not_kept_however_few_wait(waiting: int) -> None:
    """An engine that is hardly ever busy has nobody to rank, and serves thousands."""
    bench = Bench()
    for number in range(waiting):
        bench.add(f"w{number}", 9.0)
    bench.rank_costs = MILLISECOND  # no more than one is ranked in each step
    for number in range(1_000):
        bench.queue.remove_request(bench.add(f"r{number}", 1.0))
        bench.queue.remove_request(bench.add(f"q{number}", 1.0))
        bench.refresh(0.01)
    kept = [*bench.queue._ranked, *bench.queue._new]
    assert len(kept) <= 2 * waiting + 64 + 2
    waits = {entry.request.request_id for entry in kept if bench.queue._waits(entry)}
    assert waits == {f"w{number}" for number in range(waiting)}
