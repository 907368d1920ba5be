from __future__ import annotations

from agentsched.dashboard.seats import Seats


def test_tenants_leave_a_quarter_to_operators_and_three_to_each_other() -> None:
    seats = Seats()
    for tenant in ("a", "a", "b", "b", "c", "c"):
        assert seats.has_room(tenant, most=8)
        seats.take(tenant)
    assert not seats.has_room("d", most=8)
    for _ in range(2):
        assert seats.has_room(None, most=8)
        seats.take(None)
    assert not seats.has_room(None, most=8)
    seats.leave("a")
    assert not seats.has_room("b", most=8)
    assert seats.has_room("a", most=8)
    assert len(seats) == 7


def test_of_few_seats_everybody_may_have_one() -> None:
    for tenant in ("a", None):
        seats = Seats()
        assert seats.has_room(tenant, most=1)
        seats.take(tenant)
        assert not seats.has_room(tenant, most=1)
        seats.leave(tenant)
        assert not seats
