"""Claude Code: a whole day of it, with its ids, with its hints, and with neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from agentsched_bench.clients.agents import claude_bash, say
from agentsched_bench.clients.command_lines import Installed, Run, run
from agentsched_bench.clients.stand import Stand
from agentsched_bench.engine.playback import Script, ScriptedCall

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 120.0
HINTS = {"CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"}


def sub_agent(prompt: str, **more: Any) -> ScriptedCall:
    arguments = {"description": "look", "prompt": prompt, "subagent_type": "general-purpose"}
    return ScriptedCall(name="Agent", arguments={**arguments, **more})


SUMMARY = "<analysis>We looked.</analysis><summary>All of the barn was looked at, twice.</summary>"
HELP = "Count the hens in the yard and report"
SCRIPTS = (
    Script(match=HELP, answers=(say("Counting.", claude_bash("echo 12")), say("Twelve hens."))),
    Script(last="create a detailed summary of the conversation", answers=(say(SUMMARY),)),
    Script(match="All of the barn was looked at", answers=(say("And on it goes."),)),
    Script(
        match="Look at the barn",
        answers=(
            say("Let me look. \n", claude_bash("echo hello")),
            say("Twice at once.", claude_bash("sleep 0.3; echo slow"), claude_bash("echo fast")),
            say(
                "Two helpers with one task.",
                sub_agent(HELP, run_in_background=False),
                sub_agent(HELP, run_in_background=False),
            ),
            say("The barn is fine."),
            say("It still is."),
        ),
    ),
)


def result(done: Run) -> str:
    assert done.status == 0, (done.output, done.errors)
    said: dict[str, Any] = json.loads(done.output)
    assert said["is_error"] is False, said
    return str(said["result"])


@pytest.mark.parametrize("ids", ["ids", "hints", "none"])
async def test_a_program_is_one_over_helpers_resume_and_compaction(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]], ids: str
) -> None:
    async with stand(SCRIPTS, strips_ids=ids == "none") as here:
        hints = HINTS if ids == "hints" else {}
        line = installed.claude_code(here.relay.url, here.home, environment=hints)

        async def ask(*arguments: str) -> str:
            return result(await run(line, *arguments, folder=here.folder, limit_s=LIMIT_S))

        assert await ask("-p", "Look at the barn") == "The barn is fine."
        assert await ask("-p", "And now?", "--continue") == "It still is."
        await ask("-p", "/compact", "--continue")
        assert await ask("-p", "Go on", "--continue") == "And on it goes."
        programs = await here.programs()

    rows = here.attributions()
    assert here.mistakes() == []
    assert here.classes() == {"step": 6, "subagent": 4, "compaction": 1}
    assert [p["steps_done"] for p in programs] == [10]
    assert programs[0]["program"] == rows[0].program
    assert programs[0]["conversations"] == 3
    if ids == "none":
        assert {row.evidence for row in rows} <= {"none", "call_id", "prefix", "containment"}
    else:
        assert {row.evidence for row in rows} == {"native"}
    # Each call's end is known from the step that brings its result, its length from the hints.
    calls = [call for arrived in here.events("StepArrived") for call in arrived["answers"]]
    assert len(set(calls)) == 7
    timed = {tool["tool"] for tool in here.events("ToolFinished")}
    assert timed == ({"Bash", "Agent"} if ids == "hints" else set())


async def test_a_helper_in_the_background_wakes_its_program(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    slow = Script(match=HELP, answers=(say("Slow.", claude_bash("sleep 3")), say("Twelve hens.")))
    main = Script(
        match="Look at the barn",
        answers=(
            say("A helper.", sub_agent(HELP)),
            say("Waiting for my helper."),
            say("My helper is back."),
        ),
    )
    async with stand((slow, main), strips_ids=True) as here:
        line = installed.claude_code(here.relay.url, here.home)
        done = await run(line, "-p", "Look at the barn", folder=here.folder, limit_s=LIMIT_S)
        programs = await here.programs()

    assert result(done) == "My helper is back."
    assert here.mistakes() == []
    assert [p["steps_done"] for p in programs] == [5]


async def test_a_fork_leaves_its_origin(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    async with stand(SCRIPTS) as here:
        line = installed.claude_code(here.relay.url, here.home)
        first = await run(line, "-p", "Look at the barn", folder=here.folder, limit_s=LIMIT_S)
        origin = json.loads(first.output)["session_id"]
        fork = ("--resume", origin, "--fork-session")
        await run(line, "-p", "And now?", *fork, folder=here.folder, limit_s=LIMIT_S)
        programs = await here.programs()

    assert here.mistakes() == []
    assert [p["steps_done"] for p in programs] == [1, 8]
