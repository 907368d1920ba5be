"""OpenHands: its condenser and its sub-agents, with its ids and without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from agentsched_bench.clients.agents import openhands_terminal, say
from agentsched_bench.clients.command_lines import Installed, run
from agentsched_bench.clients.stand import Stand
from agentsched_bench.engine.playback import Script

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 150.0
SUMMARY = "STATE: all of the hens in the barn were counted, one after the other."
LOOKS = tuple(
    say(f"Now I will count the hens in row {row}.", openhands_terminal(f"echo row {row}: 12 hens"))
    for row in range(9)
)
SCRIPTS = (
    Script(match=SUMMARY, answers=(say("The barn is fine."),)),
    Script(match="<EVENT>", answers=(say(SUMMARY),)),
    Script(match="Look at the barn", answers=(*LOOKS, say("The barn was too large."))),
)


@pytest.mark.parametrize("ids", ["ids", "none"])
async def test_a_condenser_stays_in_its_program(
    installed: Installed, stand: Callable[..., AbstractAsyncContextManager[Stand]], ids: str
) -> None:
    if not installed.has_openhands:
        pytest.skip("OpenHands is not installed: there is no Python 3.12")
    async with stand(SCRIPTS, strips_ids=ids == "none") as here:
        line = installed.openhands(here.relay.url, here.home, events_max=12)
        done = await run(line, "Look at the barn", folder=here.folder, limit_s=LIMIT_S)
        programs = await here.programs()

    assert done.status == 0, (done.output, done.errors)
    assert "The barn is fine." in done.output
    rows = here.attributions()
    assert here.mistakes() == []
    assert here.classes()["compaction"] == 1
    assert {row.program for row in rows} == {programs[0]["program"]}
    evidence = {row.evidence for row in rows}
    assert evidence == ({"native"} if ids == "ids" else {"none", "call_id", "containment"})
