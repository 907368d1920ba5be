"""What every agent must live with behind the proxy: waiting, refusals, broken streams, a twin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from agentsched.model import StepClass
from agentsched_bench.clients.agents import AGENTS, Agent
from agentsched_bench.clients.command_lines import MODEL, Installed, Run, run
from agentsched_bench.clients.relay import Exchange, Trouble
from agentsched_bench.clients.stand import Stand

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 150.0
ONE_PLACE = "[limits]\nrunning_steps_per_engine_max = 1\n"
TASK = "Look at the barn"
DONE = "The-barn-is-fine"
LOOKS = ("echo hello", "echo again")

each = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
streaming = [agent for agent in AGENTS if agent.streams]


async def carry_out(agent: Agent, installed: Installed, here: Stand) -> Run:
    if not agent.is_installed(installed):
        pytest.skip(f"{agent.name} is not installed (see scripts/install-clients)")
    line = agent.line(installed, here.relay.url, here.home)
    return await run(line, *agent.task(TASK), folder=here.folder, limit_s=LIMIT_S)


def main_steps(here: Stand) -> list[int]:
    """The steps' numbers; a retry has its step's number again.

    Without titles: one that is asked for after the first step has that step's number.
    """
    rows = [r for r in here.attributions() if r.truth.step_class is not StepClass.AUXILIARY]
    return [row.step for row in rows if row.step > 0]


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


@pytest.mark.parametrize("agent", streaming, ids=lambda agent: agent.name)
async def test_a_first_step_may_wait_on_a_stream_that_is_kept_alive(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    scripts = agent.script(TASK, LOOKS[:1], last_word=DONE)
    kept = ONE_PLACE + '[http]\nkeep_alive = "500ms"\n'

    def has_heard(exchange: Exchange) -> bool:
        return not exchange.is_whole and exchange.answer.count(b"\n\n") >= 3

    async with stand(scripts, settings=kept) as here:
        async with here.occupied():
            running = asyncio.create_task(carry_out(agent, installed, here))
            await here.until_told(has_heard)
            early = [e for e in here.relay.exchanges if has_heard(e)]
            assert all("early" in exchange.said["decision"] for exchange in early)
        done = await running

    assert done.status == 0, (done.output, done.errors)
    assert DONE in done.output
    assert here.mistakes() == []
    # It took the no-ops for signs of life, and asked for each step once.
    assert main_steps(here) == [1, 2]


@pytest.mark.parametrize(
    ("agent", "ids"),
    [(a, ids) for a in AGENTS for ids in ("ids", "none") if ids == "none" or a.sends_ids],
    ids=lambda value: getattr(value, "name", value),
)
async def test_the_proxy_is_killed_while_a_tool_runs(
    agent: Agent,
    installed: Installed,
    stand: Callable[..., AbstractAsyncContextManager[Stand]],
    ids: str,
) -> None:
    scripts = agent.script(
        TASK, ("while [ ! -e go ]; do sleep 0.1; done", LOOKS[1]), last_word=DONE
    )

    def is_answered(exchange: Exchange) -> bool:
        return exchange.body.get("model") == MODEL and exchange.is_whole

    async with stand(scripts, strips_ids=ids == "none", has_store=True) as here:
        running = asyncio.create_task(carry_out(agent, installed, here))
        await asyncio.wait(
            {running, asyncio.create_task(here.until_told(is_answered))},
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not running.done():
            await here.until_stored()
            await here.restart()
            (here.folder / "go").touch()
        done = await running
        programs = await here.programs()

    assert done.status == 0, (done.output, done.errors)
    assert DONE in done.output
    assert here.mistakes() == []
    assert main_steps(here) == [1, 2, 3]
    assert 3 in [p["steps_done"] for p in programs]


@each
async def test_refused_and_cut_steps_are_tried_again_as_themselves(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    scripts = agent.script(TASK, LOOKS, last_word=DONE)
    refused, broken = Trouble(fault="status=429"), Trouble(fault="cut-after=9")
    # Slowly, so that the client's connection breaks while the engine still speaks. An answer that
    # is not streamed has left the proxy whole by then.
    is_cut = agent.streams and not agent.continues_cut
    cut = Trouble(fault="slow=500", cut_after_bytes=1_500) if is_cut else None
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
    assert retried in ([[3, 2, 1]] if is_cut else [[2, 1, 1], [3, 1, 1]])


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
