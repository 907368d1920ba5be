"""What the scheduler is told of programs that this process has not seen before."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import MINUTE, Instant, StepArrived
from agentsched_bench.clients.acting import said, user

HISTORY = [user("fix it"), said("done"), user("go on")]


@pytest.mark.parametrize(
    ("messages", "headers", "goes_on"),
    [
        ([user("fix it")], {}, False),
        (HISTORY, {}, True),
        ([user("fix it")], {"x-agentsched-program": "kid", "x-agentsched-parent": "gone"}, True),
        ([user("fix it")], {"x-agentsched-program": "kid", "x-agentsched-parent": "known"}, False),
    ],
)
async def test_requests_show_whether_they_go_on(
    proxy: Any, messages: list[Any], headers: dict[str, str], goes_on: bool
) -> None:
    await proxy.chat(headers={"x-agentsched-program": "known"})
    await proxy.chat(headers=headers, messages=messages)
    first, asked = proxy.turns.events(StepArrived)
    assert (first.goes_on, asked.goes_on) == (False, goes_on)
    known = proxy.scheduler.programs[asked.program]
    assert known.was_served


@pytest.mark.parametrize(("previous", "goes_on"), [("resp_1", True), (None, False)])
async def test_a_response_that_is_gone_on_from_was_before(
    proxy: Any, previous: str | None, goes_on: bool
) -> None:
    body = {"model": "m", "input": "and now?", "previous_response_id": previous}
    await proxy.client.post("/v1/responses", json=body)
    [asked] = proxy.turns.events(StepArrived)
    assert asked.goes_on is goes_on


async def test_what_requests_show_is_not_believed_for_ever(proxy: Any) -> None:
    """A history costs nothing to make up."""
    scheduler = proxy.scheduler
    scheduler._books.began_at = Instant(proxy.gateway.host.now() - 10 * MINUTE - 1)
    await proxy.chat(messages=HISTORY)
    await proxy.chat(headers={"x-agentsched-program": "kid", "x-agentsched-parent": "gone"})
    assert [asked.goes_on for asked in proxy.turns.events(StepArrived)] == [False, False]
