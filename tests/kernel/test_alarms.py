from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched.kernel.alarms import Alarms
from agentsched.model import Instant

MOVES = st.lists(st.tuples(st.sampled_from(["set", "cancel", "ring"]), st.integers(0, 9)))


@given(moves=MOVES, instants=st.lists(st.integers(0, 50), min_size=1))
def test_rings_like_a_plain_dict(moves: list[tuple[str, int]], instants: list[int]) -> None:
    """Against the obvious model: a dict that is searched in full."""
    alarms: Alarms[int] = Alarms()
    model: dict[int, int] = {}
    for count, (move, key) in enumerate(moves):
        at = instants[count % len(instants)]
        if move == "set":
            alarms.set(key, Instant(at))
            model.pop(key, None)
            model[key] = at
        elif move == "cancel":
            alarms.cancel(key)
            model.pop(key, None)
        else:
            due = sorted((k for k, v in model.items() if v <= at), key=model.__getitem__)
            assert alarms.ring(now=Instant(at)) == due
            for rung in due:
                del model[rung]
        assert alarms.earliest() == min(model.values(), default=None)
        assert len(alarms) == len(model)


def test_memory_is_bounded_by_the_alarms_that_are_set() -> None:
    alarms: Alarms[str] = Alarms()
    for instant in range(10_000):
        alarms.set("a", Instant(instant))
    assert len(alarms._heap) < 100
    alarms.cancel("a")
    assert alarms.earliest() is None
