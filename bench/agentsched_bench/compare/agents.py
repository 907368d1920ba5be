"""A real agent as the load: mini-swe-agent, run against played-back sessions of an engine.

Each recorded program becomes a script that the embedded engine plays back: as many answers as it
had calls, about as long, each with a shell command that sleeps as long as the recorded tool took
and prints about as much. The agent is the one from the registry; it builds its own prompts, runs
its own tools and says nothing of who it is.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model import ConfigError, EngineError
from agentsched_bench.clients.agents import mini_bash, say
from agentsched_bench.clients.command_lines import MODEL, Installed, is_installation, run
from agentsched_bench.compare.arms import Side
from agentsched_bench.compare.load import Load
from agentsched_bench.compare.results import Program, Run
from agentsched_bench.compare.scenario import EngineKind, Scenario
from agentsched_bench.compare.stages import Endpoint, Engines
from agentsched_bench.compare.watch import watching
from agentsched_bench.compare.witness import Witness, witnessing
from agentsched_bench.engine.playback import Script
from agentsched_bench.workload.shape import PlannedProgram

CLIENTS: Final = ("mini-swe-agent",)
FOLDER: Final = Path(".clients")
_DONE: Final = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
#: mini-swe-agent itself cuts what a command prints to about this many characters.
_PRINTED_CHARS_MAX: Final = 8_000
_WORD: Final = "lorem "
#: An agent that has not ended by then never will: starting Python alone takes seconds.
_LIMIT_S: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLoad:
    """Which client plays the load of which repeat."""

    client: str
    load: Load
    model: str
    repeat: int


def task_of(repeat: int, number: int) -> str:
    """What program `number` of a repeat is asked to do; the script is found by it."""
    return f"Look into issue number {repeat}.{number:04d} and fix it."


def scripts_of(loads: Sequence[Load], *, pace: float) -> list[Script]:
    """What an engine `pace` times as fast as real plays back: a script for each program of each
    repeat, whose tools keep step with it."""
    return [
        _script(task_of(repeat, number), plan, pace)
        for repeat, load in enumerate(loads)
        for number, plan in enumerate(load.plans)
    ]


def _script(task: str, plan: PlannedProgram, pace: float) -> Script:
    calls = plan.main.calls
    answers = []
    for call, following in pairwise(calls):
        grown = max(1, following.prompt_tokens - call.prompt_tokens - call.output_tokens)
        chars = min(grown * len(_WORD), _PRINTED_CHARS_MAX)
        printed = f"yes {_WORD.strip()} | tr '\\n' ' ' | head -c {chars}"
        command = f"sleep {call.pause_s / pace:.2f}; {printed}"
        text = _WORD * max(1, call.output_tokens - 20)
        answers.append(say(text.strip(), mini_bash(command)))
    answers.append(say("It is fixed.", mini_bash(f"echo {_DONE}; echo fixed")))
    return Script(match=task, answers=tuple(answers))


def with_playback(
    scenario: Scenario, loads: Sequence[Load], *, logs: Path, sides: list[Side]
) -> Scenario:
    """The scenario whose embedded engine plays the loads of all repeats back, where a real agent is
    a client.

    Raises:
        ConfigError: the client is unknown or not installed, or the engine plays nothing back.
    """
    clients = {side.client for side in sides} - {"replay"}
    if not clients:
        return scenario
    for client in sorted(clients):
        if client not in CLIENTS:
            raise ConfigError(f"no client {client!r} (there are: replay, {', '.join(CLIENTS)})")
    if scenario.engine.kind is not EngineKind.SIM:
        raise ConfigError('a real agent needs an engine that plays back (engine.kind = "sim")')
    if not is_installation(FOLDER):
        raise ConfigError(f"no agent clients in {FOLDER} (run scripts/install-clients)")
    if len(sides) and any(side.client == "replay" for side in sides):
        raise ConfigError("arms with different clients have different loads and do not compare")
    path = (logs / "scripts.jsonl").absolute()
    scripts = scripts_of(loads, pace=scenario.engine.pace)
    path.write_bytes(b"\n".join(msgspec.json.encode(script) for script in scripts))
    arguments = (*scenario.engine.arguments, "--playback", str(path), "--model", MODEL)
    engine = scenario.engine.model_copy(update={"arguments": arguments})
    return scenario.model_copy(update={"engine": engine})


async def run_agents(
    agents: AgentLoad,
    endpoint: Endpoint,
    engines: Engines,
    scenario: Scenario,
    run_: Run,
    *,
    show: Callable[..., None],
) -> None:
    """Run one agent for each program. `run_` gets what was measured, also when cancelled.

    An agent that gives up is a failed program of the arm.

    Raises:
        EngineError: agents gave up, and none made a single call.
    """
    run_.started_at = datetime.now(tz=UTC).isoformat(timespec="seconds")
    load = agents.load
    planned = sum(len(plan.main.calls) for plan in load.plans)
    async with watching(engines.urls, every_s=scenario.measure.sample_s) as watched:
        seen = 0
        gave_up: dict[int, str] = {}

        def count() -> None:
            nonlocal seen
            seen += 1
            show(done=seen, planned=planned, note="calls of a real agent")

        async with witnessing(endpoint.url, on_call=count) as witness:
            try:
                with tempfile.TemporaryDirectory(prefix="agentsched-agents-") as folder:
                    await _run_each(agents, witness, Path(folder), gave_up)
                if gave_up and not witness.calls:
                    raise EngineError(gave_up[min(gave_up)])
                run_.is_complete = True
            finally:
                _take(run_, witness, load, gave_up)
    run_.readings = watched.readings
    run_.preemptions, run_.busy_share = watched.preemptions, watched.busy_share


async def _run_each(
    agents: AgentLoad, witness: Witness, folder: Path, gave_up: dict[int, str]
) -> None:
    """`gave_up` gets the last words of each agent that failed, by the number of its program."""
    load, installed = agents.load, Installed(FOLDER.absolute())
    # Starting an agent is Python's work on the cores that everyone shares: few at a time.
    slots = asyncio.Semaphore(load.concurrency or len(load.plans))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    witness.begin()

    async def one(number: int, start_s: float) -> None:
        await asyncio.sleep(max(0.0, begun + start_s - loop.time()))
        async with slots:
            home, project = folder / f"home{number}", folder / f"project{number}"
            home.mkdir()
            project.mkdir()
            line = installed.mini_swe_agent(f"{witness.url}/p{number}", home)
            task = task_of(agents.repeat, number)
            try:
                done = await run(line, "-t", task, folder=project, limit_s=_LIMIT_S)
            except TimeoutError as error:
                gave_up[number] = str(error)
                return
            if done.status:
                tail = " ".join((done.errors or done.output).split())[-300:]
                gave_up[number] = f"mini-swe-agent ended with status {done.status}: {tail}"

    async with asyncio.TaskGroup() as tasks:
        for number, start_s in enumerate(load.starts_s):
            tasks.create_task(one(number, start_s or 0.0), name=f"agent {number}")


def _take(run_: Run, witness: Witness, load: Load, gave_up: Mapping[int, str]) -> None:
    """Rows of what was seen, under the names of the load."""
    run_.calls = witness.calls
    run_.duration_s = max((c.sent_s + c.latency_s for c in witness.calls), default=0.0)
    if gave_up:
        run_.note = f"{len(gave_up)} agents gave up; one of them: {gave_up[min(gave_up)]}"
    for number, plan in enumerate(load.plans):
        own = [call for call in witness.calls if call.program == f"p{number}"]
        if not own and number not in gave_up:
            continue
        is_done = run_.is_complete and number not in gave_up
        is_done = is_done and len(own) >= len(plan.main.calls) and not own[-1].error
        started_s = own[0].sent_s if own else load.starts_s[number] or 0.0
        run_.programs.append(
            Program(
                program=plan.program,
                started_s=started_s,
                # From its first call: what an agent takes to start is not the engine's matter.
                jct_s=own[-1].sent_s + own[-1].latency_s - started_s if is_done else None,
                outcome="completed" if is_done else "failed",
            )
        )
        for index, call in enumerate(own):
            call.program = call.conversation = plan.program
            if index < len(plan.main.calls):
                call.tools = plan.main.calls[index].tools
