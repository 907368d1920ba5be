"""What the agents keep of their sessions on disk, imported: the calls that the engine answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from agentsched_bench.clients.agents import AGENTS, CODEX_OPTIONS, TITLE, Agent, codex_exec, say
from agentsched_bench.clients.command_lines import Installed, run
from agentsched_bench.clients.stand import Stand
from agentsched_bench.engine.playback import Script, ScriptedCall
from agentsched_bench.workload.importers import import_trace
from agentsched_bench.workload.trace import Recording, read_trace

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 150.0
TASK = "Look at the barn"
DONE = "The-barn-is-fine"
LOOKS = ("echo hello", "echo again")
KEEPING = [a for a in AGENTS if a.name in ("claude-code", "codex", "opencode", "qwen")]
FORMATS = {"qwen": "qwen-code"}


def answered_by(here: Stand) -> Counter[tuple[int, ...]]:
    """What the proxy saw of the engine's answers; titles and what keeps a memory among them."""
    usages = (finished["usage"] for finished in here.events("StepFinished"))
    keys = ("prompt_tokens", "cached_tokens", "output_tokens")
    return Counter(tuple(usage[key] for key in keys) for usage in usages)


def kept_by(*rows: Recording) -> Counter[tuple[int, ...]]:
    return Counter(
        (step.input_tokens, step.prefix_tokens or 0, step.output_tokens)
        for row in rows
        for step in row.steps
    )


@pytest.mark.parametrize("agent", KEEPING, ids=lambda agent: agent.name)
async def test_what_an_agent_keeps_are_the_calls_that_were_answered(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    scripts = agent.script(TASK, LOOKS, last_word=DONE)
    async with stand(scripts) as here:
        line = agent.line(installed, here.relay.url, here.home)
        done = await run(line, *agent.task(TASK), folder=here.folder, limit_s=LIMIT_S)
    assert done.status == 0, (done.output, done.errors)

    trace = here.folder / "trace.jsonl"
    report = import_trace([here.home], trace)
    assert report.errors == []
    assert set(report.files) == {FORMATS.get(agent.name, agent.name)}
    row = next(row for row in read_trace(trace) if row.parent is None)
    assert kept_by(row) - answered_by(here) == Counter()
    assert len(row.steps) == len(LOOKS) + 1
    shell = agent.shell("").name
    called = [[(tool.name, tool.command) for tool in step.tools] for step in row.steps]
    assert called == [[(shell, "echo")], [(shell, "echo")], []]
    ids = {c["call_id"] for f in here.events("StepFinished") for c in f["tool_calls"]}
    assert {tool.call_id for step in row.steps for tool in step.tools} == ids
    assert all(tool.duration_s is not None for step in row.steps for tool in step.tools)
    assert all(step.llm_s is not None for step in row.steps)


async def test_codex_keeps_its_helper_its_fork_and_its_compaction(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    helper = ScriptedCall(name="spawn_agent", arguments={"message": "Count the hens"})
    until_go = codex_exec("while [ ! -e go ]; do sleep 0.1; done; sleep 1")
    looks = (say("A helper.", helper), say("It needs a moment.", until_go), say(DONE))
    summary = say("The barn was looked at, and all of the hens were counted.")
    scripts = (
        Script(last="CONTEXT CHECKPOINT COMPACTION", answers=(summary,)),
        Script(last="Another language model started", answers=(say("And on it goes."),)),
        Script(last="Count the hens", answers=(say("Twelve."),)),
        Script(last=TASK, answers=looks),
        Script(last="<subagent_notification>", answers=looks),
        Script(last="And elsewhere?", answers=(say("There, too."),)),
        Script(last="Go on", answers=(say("Going."),)),
    )
    compacts = ("-c", "model_auto_compact_token_limit=9000")
    async with stand(scripts) as here:
        line = installed.codex(here.relay.url, here.home)

        async def ask(*arguments: str) -> str:
            done = await run(line, "exec", *arguments, folder=here.folder, limit_s=LIMIT_S)
            assert done.status == 0, (done.output, done.errors)
            return str(done.events()[0]["thread_id"])

        async with asyncio.TaskGroup() as helpers:
            helpers.create_task(here.let_go("Twelve."))
            thread = await ask(*CODEX_OPTIONS, TASK)
        fork = await ask("fork", *CODEX_OPTIONS, thread, "And elsewhere?")
        assert await ask("resume", thread, *CODEX_OPTIONS, *compacts, "Go on") == thread

    trace = here.folder / "trace.jsonl"
    report = import_trace([here.home], trace)
    assert report.errors == []
    main, child, forked = read_trace(trace)
    assert kept_by(main, child, forked) == answered_by(here)
    assert (main.session_id, forked.session_id) == (thread, fork)
    assert (child.parent, forked.parent) == (thread, None)
    assert main.steps[0].tools[0].child == child.session_id
    assert len(forked.steps) == 1
    assert sum(step.is_compaction for step in main.steps) >= 1


HENS = "Count the hens in the yard, please"
HELPERS = {
    "opencode": ScriptedCall(
        name="task",
        arguments={"description": "count", "prompt": HENS, "subagent_type": "general"},
    ),
    "qwen": ScriptedCall(
        name="agent",
        arguments={
            "description": "count",
            "prompt": HENS,
            "subagent_type": "general-purpose",
            "run_in_background": False,
        },
    ),
}
FORKS = {
    "opencode": ("run", "--format", "json", "--continue", "--fork", "And elsewhere?"),
    "qwen": ("--continue", "--fork-session", "-p", "And elsewhere?"),
}


@pytest.mark.parametrize(
    "agent", [a for a in KEEPING if a.name in HELPERS], ids=lambda agent: agent.name
)
async def test_an_agent_keeps_its_helper_and_its_fork(
    agent: Agent, installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    looks = (say("A helper.", HELPERS[agent.name]), say(DONE), say("There, too."))
    counts = (say("One.", agent.shell("echo 12")), say("Twelve."))
    scripts = (TITLE, Script(match=HENS, answers=counts), Script(match=TASK, answers=looks))
    async with stand(scripts) as here:
        line = agent.line(installed, here.relay.url, here.home)
        for arguments in (agent.task(TASK), FORKS[agent.name]):
            done = await run(line, *arguments, folder=here.folder, limit_s=LIMIT_S)
            assert done.status == 0, (done.output, done.errors)

    trace = here.folder / "trace.jsonl"
    report = import_trace([here.home], trace)
    assert report.errors == []
    rows = list(read_trace(trace))
    main, child, forked = (row for row in rows if "memory" not in (row.agent or ""))
    assert kept_by(*rows) - answered_by(here) == Counter()
    assert (child.parent, forked.parent) == (main.session_id, None)
    assert main.steps[0].tools[0].child == child.session_id
    assert [len(row.steps) for row in (main, child, forked)] == [2, 2, 1]
