"""OpenCode: a title, helpers at once, a resume and a fork, with its ids and without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from agentsched_bench.clients.agents import TITLE, opencode_bash, say
from agentsched_bench.clients.command_lines import MODEL, SMALL_MODEL, Installed, run, texts
from agentsched_bench.clients.stand import Stand
from agentsched_bench.engine.playback import Script, ScriptedCall

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 180.0


def helper(task: str) -> ScriptedCall:
    arguments = {"description": "count", "prompt": task, "subagent_type": "general"}
    return ScriptedCall(name="task", arguments=arguments)


HENS, COWS = "Count the hens in the yard, please", "Count the cows in the field, please"
SCRIPTS = (
    TITLE,
    Script(match=HENS, answers=(say("One.", opencode_bash("echo 12")), say("Twelve hens."))),
    Script(match=COWS, answers=(say("Two.", opencode_bash("echo 3")), say("Three cows."))),
    Script(
        match="Look at the barn",
        answers=(
            say("Let me look. \n", opencode_bash("echo hello")),
            say("Two at once.", opencode_bash("sleep 0.3; echo slow"), opencode_bash("echo fast")),
            say("Two helpers.", helper(HENS), helper(COWS)),
            say("The barn is fine."),
            say("It still is."),
        ),
    ),
)


SUMMARY = "## Objective: the numbers in the barn were read, from the first to the last of them."


def with_room(url: str, tokens: int) -> dict[str, Any]:
    """A model with so little room that OpenCode compacts."""
    models = {
        name: {"limit": {"context": tokens, "output": 1_000}} for name in (MODEL, SMALL_MODEL)
    }
    options = {"baseURL": f"{url}/v1", "apiKey": "no-key"}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": models}
    return {"provider": {"agentsched": provider}}


@pytest.mark.parametrize("ids", ["ids", "none"])
async def test_a_compaction_stays_in_its_program(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]], ids: str
) -> None:
    looks = (
        say(f"Let me read the numbers, time {n}.", opencode_bash(f"seq {n} 700")) for n in (1, 2)
    )
    scripts = (
        TITLE,
        Script(match="Here is the conversation so far", answers=(say(SUMMARY),)),
        Script(match="What did we do so far", answers=(say("And on it goes."),)),
        Script(match="Look at the barn", answers=(*looks, say("The barn is fine."))),
    )
    async with stand(scripts, strips_ids=ids == "none") as here:
        options = with_room(here.relay.url, 9_400)
        line = installed.opencode(here.relay.url, here.home, options=options)
        command = ("run", "--format", "json", "Look at the barn")
        done = await run(line, *command, folder=here.folder, limit_s=LIMIT_S)
        programs = await here.programs()

    assert done.status == 0, (done.output, done.errors)
    assert texts(done.events(), "text")[-1] == "And on it goes."
    assert here.mistakes() == []
    assert here.classes() == {"step": 4, "auxiliary": 1, "compaction": 1}
    assert len(programs) == 1
    assert programs[0]["steps_done"] == 4
    rows = here.attributions()
    assert len({row.program for row in rows}) == 1
    if ids == "none":
        assert "containment" in {row.evidence for row in rows}


@pytest.mark.parametrize("ids", ["ids", "none"])
async def test_a_program_is_one_over_helpers_and_resume(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]], ids: str
) -> None:
    async with stand(SCRIPTS, strips_ids=ids == "none") as here:
        line = installed.opencode(here.relay.url, here.home)

        async def ask(*arguments: str) -> str:
            command = ("run", "--format", "json", *arguments)
            done = await run(line, *command, folder=here.folder, limit_s=LIMIT_S)
            assert done.status == 0, (done.output, done.errors)
            return texts(done.events(), "text")[-1]

        assert await ask("Look at the barn") == "The barn is fine."
        assert await ask("--continue", "And now?") == "It still is."
        programs = await here.programs()
        if ids == "ids":
            assert await ask("--continue", "--fork", "And elsewhere?") == "It still is."
            assert len(await here.programs()) == 2

    rows = here.attributions()
    assert here.mistakes() == []
    assert here.classes()["subagent"] == 4
    assert here.classes()["auxiliary"] == 1
    assert [p["program"] for p in programs] == [rows[1].program]
    assert programs[0]["steps_done"] == 9
    assert programs[0]["conversations"] == 4  # the title is one of its own
    if ids == "ids":
        assert {row.evidence for row in rows} == {"native"}
