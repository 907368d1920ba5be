"""What every agent must live with behind the proxy: waiting, refusals, broken streams, a twin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from agentsched_bench.clients.agents import AGENTS, Agent
from agentsched_bench.clients.command_lines import MODEL, Installed, Run, run
from agentsched_bench.clients.relay import Trouble
from agentsched_bench.clients.stand import Stand

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 150.0
ONE_PLACE = "[limits]\nrunning_steps_per_engine_max = 1\n"
TASK = "Look at the barn"
DONE = "The-barn-is-fine"
LOOKS = ("echo hello", "echo again")

each = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)


async def carry_out(agent: Agent, installed: Installed, here: Stand) -> Run:
    line = agent.line(installed, here.relay.url, here.home)
    return await run(line, *agent.task(TASK), folder=here.folder, limit_s=LIMIT_S)


def main_steps(here: Stand) -> list[int]:
    """The steps' numbers, without titles; a retry has its step's number again."""
    return [row.step for row in here.attributions() if row.step > 0]


@each
async def test_a_first_step_may_wait(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    scripts = agent.script(TASK, LOOKS, last_word=DONE)
    async with stand(scripts, settings=ONE_PLACE) as here:
        async with here.occupied():
            running = asyncio.create_task(carry_out(agent, installed, here))
            await here.until_held()
        done = await running

    assert done.status == 0, (done.output, done.errors)
    assert DONE in done.output
    assert here.mistakes() == []
    assert main_steps(here) == [1, 2, 3]


@each
async def test_refused_and_cut_steps_are_tried_again_as_themselves(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    scripts = agent.script(TASK, LOOKS, last_word=DONE)
    refused, broken = Trouble(fault="status=429"), Trouble(fault="cut-after=9")
    # Slowly, so that the client's connection breaks while the engine still speaks. An answer that
    # is not streamed has left the proxy whole by then.
    cut = Trouble(fault="slow=50", cut_after_bytes=1_500) if agent.streams else None
    async with stand(scripts) as here:
        here.relay.spoil(refused, broken, None, cut, model=MODEL)
        done = await carry_out(agent, installed, here)

    assert done.status == 0, (done.output, done.errors)
    assert DONE in done.output
    assert here.mistakes() == []
    statuses = [exchange.status for exchange in here.relay.generated()]
    assert 429 in statuses
    for exchange in here.relay.generated():
        if exchange.status == 429:
            assert 0 < int(exchange.answer_headers["retry-after"]) <= 60
    steps = main_steps(here)
    assert sorted(set(steps)) == [1, 2, 3]
    assert steps == sorted(steps)
    retried = [steps.count(step) for step in (1, 2, 3)]
    # A whole answer that broke on its way may also be fetched again by the proxy itself.
    assert retried in ([[3, 2, 1]] if agent.streams else [[2, 1, 1], [3, 1, 1]])


@each
async def test_the_proxys_own_refusal_is_waited_out(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    scripts = agent.script(TASK, LOOKS[:1], last_word=DONE)
    async with stand(scripts, settings=ONE_PLACE + 'max_wait = "500ms"\n') as here:
        async with here.occupied():
            running = asyncio.create_task(carry_out(agent, installed, here))
            await here.until_refused(MODEL)
        done = await running

    assert done.status == 0, (done.output, done.errors)
    assert DONE in done.output
    assert here.mistakes() == []
    steps = main_steps(here)
    assert steps.count(1) >= 2
    assert sorted(set(steps)) == [1, 2]


@pytest.mark.parametrize(
    "agent",
    [a for a in AGENTS if a.name in ("claude-code", "mini-swe-agent")],
    ids=lambda a: a.name,
)
async def test_two_with_one_task_are_two(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    """Without ids their first prompts are equal to the byte; only the answers' call ids differ."""
    scripts = agent.script(TASK, LOOKS, last_word=DONE)
    async with stand(scripts, strips_ids=True) as here:
        one = carry_out(agent, installed, here)
        other = replace(here, home=here.home.with_name("other-home"))
        other.home.mkdir()
        both = await asyncio.gather(one, carry_out(agent, installed, other))
        programs = await here.programs()

    assert [done.status for done in both] == [0, 0]
    assert [p["steps_done"] for p in programs] == [3, 3]
    if agent.name == "claude-code":
        assert here.mistakes() == []
