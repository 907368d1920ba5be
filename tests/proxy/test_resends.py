"""A request that is sent again replaces the one before: one step of work, and the same place."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from proxy_upstream import Exchange, Gate, Upstream, answer, chunk

from agentsched.model import MINUTE, StepArrived, StepCancelled, StepFinished, StepId
from agentsched.proxy.identity import match
from agentsched.proxy.resends import Resends

CLAUDE = {"x-claude-code-session-id": "s1", "x-stainless-retry-count": "0"}


def waiting(proxy: Any) -> int:
    return int(proxy.scheduler.statistics().waiting_steps)


@pytest.mark.parametrize("parts", [(), (chunk("hel"),)])
async def test_a_resend_that_overtakes_its_hang_up_ends_the_step_before(
    proxy: Any, upstream: Upstream, parts: tuple[bytes, ...]
) -> None:
    upstream.script = Gate(*parts)
    first = asyncio.create_task(proxy.chat(headers=CLAUDE, stream=bool(parts)))
    exchange = await upstream.exchange()
    upstream.script = answer
    again = await proxy.chat(headers=CLAUDE)
    assert again.status_code == 200
    await exchange.until_gone()
    await first
    one, two = proxy.turns.events(StepArrived)
    assert (one.retries, two.retries) == (None, one.step)
    assert two.conversation == one.conversation
    assert [e.step for e in proxy.turns.events(StepCancelled)] == [one.step]
    assert [e.step for e in proxy.turns.events(StepFinished)] == [two.step]
    assert again.headers["x-agentsched-step"] == "1"
    assert proxy.scheduler.statistics().ignored_total == 0


async def test_a_held_step_gives_its_place_to_its_resend(start: Any, upstream: Upstream) -> None:
    gate = upstream.script = Gate()
    limits = {"running_steps_per_engine_max": 1}
    async with start(upstream.url, profile="fcfs", limits=limits) as proxy:
        busy = asyncio.create_task(proxy.chat("busy"))
        await upstream.exchange()
        first = asyncio.create_task(proxy.chat(headers=CLAUDE))
        await proxy.turns.until(lambda: waiting(proxy) == 1)
        (held,) = [s for s in proxy.scheduler.steps.values() if s.engine is None]
        other = asyncio.create_task(proxy.chat("other"))
        await proxy.turns.until(lambda: waiting(proxy) == 2)
        again = asyncio.create_task(proxy.chat(headers=CLAUDE))
        await proxy.turns.until(lambda: len(proxy.turns.events(StepCancelled)) == 1)
        assert (await first).status_code == 409
        retry = next(s for s in proxy.scheduler.steps.values() if s.arrived.retries == held.step)
        assert retry.arrived_at == held.arrived_at
        gate.open.set()
        for asked in (busy, other, again):
            assert (await asked).status_code == 200
        finished = [e.step for e in proxy.turns.events(StepFinished)]
        assert finished.index(retry.step) == 1


async def test_a_retry_after_a_hang_up_keeps_its_place(start: Any, upstream: Upstream) -> None:
    gate = upstream.script = Gate()
    async with start(upstream.url, limits={"running_steps_per_engine_max": 1}) as proxy:
        busy = asyncio.create_task(proxy.chat("busy"))
        await upstream.exchange()
        first = asyncio.create_task(proxy.chat())
        await proxy.turns.until(lambda: waiting(proxy) == 1)
        (held,) = [s for s in proxy.scheduler.steps.values() if s.engine is None]
        first.cancel()
        await proxy.turns.until(lambda: waiting(proxy) == 0)
        again = asyncio.create_task(proxy.chat())
        await proxy.turns.until(lambda: waiting(proxy) == 1)
        (retry,) = [s for s in proxy.scheduler.steps.values() if s.engine is None]
        assert retry.arrived.retries == held.step
        assert retry.arrived_at == held.arrived_at
        gate.open.set()
        assert {(await busy).status_code, (await again).status_code} == {200}


async def test_two_runs_of_one_prompt_do_not_end_each_other(
    proxy: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long this machine takes to send both, they are sent at once.
    monkeypatch.setattr(match, "_AT_ONCE", MINUTE)
    gate = upstream.script = Gate()
    both = [asyncio.create_task(proxy.chat()) for _ in range(2)]
    await upstream.exchange(1)
    gate.open.set()
    assert [(await one).status_code for one in both] == [200, 200]
    assert [e.retries for e in proxy.turns.events(StepArrived)] == [None, None]
    assert not proxy.turns.events(StepCancelled)


async def test_who_was_refused_and_asks_again_ends_no_twin(proxy: Any, upstream: Upstream) -> None:
    """Two runs of one prompt without ids, as a benchmark makes them."""
    may_refuse = asyncio.Event()

    async def refuse(exchange: Exchange) -> None:
        await may_refuse.wait()
        await exchange.json({"error": {"message": "too much"}}, 429)

    upstream.script = refuse
    refused = asyncio.create_task(proxy.chat())
    await upstream.exchange()
    gate = upstream.script = Gate()
    twin = asyncio.create_task(proxy.chat())
    await upstream.exchange(1)
    may_refuse.set()
    assert (await refused).status_code == 429
    upstream.script = answer
    again = await proxy.chat(headers={"x-stainless-retry-count": "1"})
    assert again.status_code == 200
    gate.open.set()
    assert (await twin).status_code == 200
    assert not proxy.turns.events(StepCancelled)
    first, _, third = proxy.turns.events(StepArrived)
    assert third.retries == first.step


async def test_a_probe_is_nobodys_first_try(proxy: Any, upstream: Upstream) -> None:
    """A request for one token leaves no trace by which another could be the same again."""
    gate = upstream.script = Gate()
    probe = asyncio.create_task(proxy.chat("ping", max_tokens=1))
    await upstream.exchange()
    upstream.script = answer
    assert (await proxy.chat(headers=CLAUDE)).status_code == 200
    gate.open.set()
    assert (await probe).status_code == 200
    assert [e.retries for e in proxy.turns.events(StepArrived)] == [None, None]
    assert not proxy.turns.events(StepCancelled)
    assert not any(proxy.gateway.resends.retried.values())


async def test_several_answers_to_one_prompt_of_a_thread_are_all_given(
    proxy: Any, upstream: Upstream
) -> None:
    gate = upstream.script = Gate()
    headers = {"x-agentsched-program": "p", "x-agentsched-conversation": "c"}
    asked = []
    for number in range(3):
        asked.append(asyncio.create_task(proxy.chat(headers=headers)))
        await upstream.exchange(number)
    gate.open.set()
    assert [(await one).status_code for one in asked] == [200, 200, 200]
    assert not proxy.turns.events(StepCancelled)


async def test_nothing_is_kept_of_what_was_answered(proxy: Any) -> None:
    assert (await proxy.chat(headers=CLAUDE)).status_code == 200
    assert len(proxy.gateway.resends) == 0
    assert (await proxy.chat(headers=CLAUDE)).status_code == 200
    assert [e.retries for e in proxy.turns.events(StepArrived)] == [None, None]


def test_resends_are_bounded_in_number() -> None:
    resends = Resends()
    for turn in range(1, 10_051):
        resends.begin(turn, StepId(str(turn)), lambda: None)
    assert len(resends) == 10_000
    assert resends.take(50) is None
    sent = resends.take(51)
    assert sent is not None
    assert sent.step == "51"
    assert resends.take(51) is None


def test_a_step_that_ended_has_nothing_to_give_way() -> None:
    resends = Resends()
    resends.begin(1, StepId("s"), lambda: None)
    resends.failed(1)
    sent = resends.take(1)
    assert sent is not None
    assert sent.give_way is None
    resends.failed(2)
    resends.answered(2)
