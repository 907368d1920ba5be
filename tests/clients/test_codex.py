"""Codex: helpers beside their parent, a resume and a compaction, with its ids and without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from agentsched.proxy.identity.cookie import TURN_STATE
from agentsched_bench.clients.agents import CODEX_OPTIONS, codex_exec, say
from agentsched_bench.clients.command_lines import Installed, run, texts
from agentsched_bench.clients.stand import Stand
from agentsched_bench.engine.playback import Script, ScriptedCall

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 120.0
#: Codex measures its history by what the engine reports; its first prompt alone is longer.
COMPACT = ("-c", "model_auto_compact_token_limit=9000")


def spawn(task: str) -> ScriptedCall:
    return ScriptedCall(name="spawn_agent", arguments={"message": task})


#: Until the helpers had their last answers, and a moment to take them in.
UNTIL_GO = "while [ ! -e go ]; do sleep 0.1; done; sleep 1"
MAIN = (
    say("Let me look. \n", codex_exec("echo hello")),
    say("Twice at once.", codex_exec("sleep 0.3; echo slow"), codex_exec("echo fast")),
    say("Two helpers.", spawn("Count the hens, please"), spawn("Count the cows, please")),
    # They run meanwhile; a parent that ends takes its helpers with it.
    say("They need a moment.", codex_exec(UNTIL_GO)),
    say("The barn is fine."),
)
SCRIPTS = (
    Script(
        last="CONTEXT CHECKPOINT COMPACTION",
        answers=(say("The barn was looked at, and all of the hens were counted."),),
    ),
    Script(last="Another language model started", answers=(say("And on it goes."),)),
    Script(last="Count the hens", answers=(say("One.", codex_exec("echo 12")), say("Twelve."))),
    Script(last="Count the cows", answers=(say("Two.", codex_exec("echo 3")), say("Three."))),
    Script(last="Look at the barn", answers=MAIN),
    # What the parent is told when a helper has ended.
    Script(last="<subagent_notification>", answers=MAIN),
    Script(last="And now?", answers=(say("It still is."),)),
    Script(last="Go on", answers=(say("Going.", codex_exec("echo on")),)),
)


async def test_its_cookie_names_it_where_a_gateway_took_its_ids(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]]
) -> None:
    answers = (say("Let me look.", codex_exec("echo hello")), say("The barn is fine."))
    scripts = (Script(last="Look at the barn", answers=answers),)
    async with stand(scripts, strips_ids=True, keeps=(TURN_STATE,)) as here:
        line = installed.codex(here.relay.url, here.home)
        command = ("exec", *CODEX_OPTIONS, "Look at the barn")
        done = await run(line, *command, folder=here.folder, limit_s=LIMIT_S)

    assert done.status == 0, (done.output, done.errors)
    first, second = here.relay.generated()
    assert second.headers[TURN_STATE] == first.answer_headers[TURN_STATE]
    assert [row.evidence for row in here.attributions()] == ["none", "native"]
    assert here.mistakes() == []


@pytest.mark.parametrize("ids", ["ids", "none"])
async def test_a_program_is_one_over_helpers_resume_and_compaction(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]], ids: str
) -> None:
    async with stand(SCRIPTS, strips_ids=ids == "none") as here:
        line = installed.codex(here.relay.url, here.home)

        async def ask(*arguments: str) -> tuple[str, str]:
            done = await run(line, "exec", *arguments, folder=here.folder, limit_s=LIMIT_S)
            assert done.status == 0, (done.output, done.errors)
            events = done.events()
            return str(events[0]["thread_id"]), texts(events, "agent_message")[-1]

        async with asyncio.TaskGroup() as helpers:
            helpers.create_task(here.let_go("Twelve.", "Three."))
            thread, said = await ask(*CODEX_OPTIONS, "Look at the barn")
        assert said == "The barn is fine."
        assert await ask("resume", thread, *CODEX_OPTIONS, "And now?") == (thread, "It still is.")
        assert await ask("resume", thread, *CODEX_OPTIONS, *COMPACT, "Go on") == (
            thread,
            "And on it goes.",
        )
        programs = await here.programs()

    rows = here.attributions()
    assert here.mistakes() == []
    classes = here.classes()
    assert classes["subagent"] == 4
    assert classes["compaction"] >= 1
    assert set(classes) == {"step", "subagent", "compaction"}
    assert [p["program"] for p in programs] == [rows[0].program]
    assert programs[0]["conversations"] == 3
    if ids == "none":
        assert {row.evidence for row in rows} <= {"none", "call_id", "prefix", "containment"}
    else:
        assert {row.evidence for row in rows} == {"native"}
        first = {a["conversation"]: a for a in reversed(here.events("StepArrived"))}
        parents = {a["parent_conversation"] for a in first.values() if a["step_class"] != "step"}
        assert parents == {rows[0].conversation}
