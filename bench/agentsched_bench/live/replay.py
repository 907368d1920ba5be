"""The replay itself: programs arrive, call, wait for their tools and sub-agents, and call again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import msgspec

from agentsched.model import EngineError
from agentsched.proxy.request import Dialect
from agentsched_bench.live.arrivals import Arrivals
from agentsched_bench.live.calibrate import Calibration, calibrate
from agentsched_bench.live.client import Client, Outcome, Patience
from agentsched_bench.live.identity import CallIdentity, Spoken, style
from agentsched_bench.live.prompts import PromptMaker, Prompts
from agentsched_bench.live.results import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    CallRow,
    ProgramRow,
    Recorder,
    RunRow,
)
from agentsched_bench.workload.shape import PlannedConversation, PlannedProgram

_PROGRAM_HEADER: Final = "x-agentsched-program"
_ENGINE_HEADER: Final = "x-agentsched-engine"
_DECISION_HEADER: Final = "x-agentsched-decision"
_TENANT_HEADER: Final = "x-agentsched-tenant"
_TOOLS_PATH: Final = "/agentsched/v1/tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a comparison: where it is and how its programs say who they are.

    `reset_url` is POSTed to before each run, to empty the engine's prefix cache. `tells_tools`:
    where our proxy answers, it is told which tool each pause is for. A model of noise calls none,
    while a real one's answers show it to the proxy.
    """

    name: str
    url: str
    ids: str = "none"
    reset_url: str | None = None
    tells_tools: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How to replay. `model` None takes the one that the first arm serves.

    With `alternate`, repeats go A B A B; without, A A B B. `salt` gives each run content of its
    own, so that none finds in a cache what another left there; None: all have the same content.
    With `echoes_whole`, prompts hold whole answers (see `PromptMaker`); completions are token ids
    and go by the recording. `starts_s`, one for each program, overrides `arrivals`. `tenants` says
    whose a program is (by its name); those in it send `x-agentsched-tenant`. Programs of a pool
    (`PlannedProgram.pool`) run so many at a time as `pools` says; those of `without_ids` never say
    who they are. `deadlines_s`, in seconds from a program's start, are told where ids can.
    """

    dialect: Dialect = Dialect.CHAT
    arrivals: Arrivals
    seed: int = 0
    repeat: int = 1
    alternate: bool = True
    salt: str | None = None
    model: str | None = None
    api_key: str | None = None
    patience: Patience = field(default_factory=Patience)
    echoes_whole: bool = False
    starts_s: Sequence[float | None] | None = None
    tenants: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)
    without_ids: frozenset[str] = frozenset()
    deadlines_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; given to whoever shows it."""

    run: RunRow
    runs: int
    calls_done: int
    calls_planned: int
    programs_done: int
    programs_planned: int
    errors: int


class _Taken(msgspec.Struct):
    """What became of reports of tools."""

    accepted: int = 0


class _CallFailed(Exception):
    """A call failed for good; its row is recorded, and the program ends."""


async def replay_all(
    programs: Sequence[PlannedProgram],
    arms: Sequence[Arm],
    options: ReplayOptions,
    recorder: Recorder,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Replay `programs` on every arm, as often as asked. Rows go to `recorder` as they come.

    When cancelled, whatever was measured is recorded and saved before this returns.

    Raises:
        EngineError: an arm does not answer at all before its first run.
    """
    model, calibration = await prepare(arms, options)
    recorder.result.options["model"] = model
    recorder.result.options["word_tokens"] = calibration.word_tokens
    recorder.result.options["message_tokens"] = calibration.message_tokens
    order = _order(arms, options)
    try:
        for number, (repeat, arm) in enumerate(order):
            salt = f"{options.seed}" if options.salt is None else f"{options.salt}/{number}"
            row = RunRow(
                run=number,
                arm=arm.name,
                repeat=repeat,
                started_at=datetime.now(tz=UTC).isoformat(timespec="seconds"),
                salt=salt,
            )
            recorder.result.runs.append(row)
            await replay_run(
                programs,
                arm,
                row,
                options,
                recorder,
                model=model,
                calibration=calibration,
                runs=len(order),
                on_progress=on_progress,
            )
        recorder.result.is_complete = True
    finally:
        recorder.save()


def _order(arms: Sequence[Arm], options: ReplayOptions) -> list[tuple[int, Arm]]:
    if options.alternate:
        return [(repeat, arm) for repeat in range(options.repeat) for arm in arms]
    return [(repeat, arm) for arm in arms for repeat in range(options.repeat)]


async def replay_run(
    programs: Sequence[PlannedProgram],
    arm: Arm,
    row: RunRow,
    options: ReplayOptions,
    recorder: Recorder,
    *,
    model: str,
    calibration: Calibration,
    runs: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Replay `programs` once on one arm; `row` is already the recorder's.

    When cancelled, whatever was measured is recorded before this returns; nothing is saved.
    """
    run = _Run(row, arm, options=options, model=model, calibration=calibration, recorder=recorder)
    await run.replay(programs, on_progress=on_progress, runs=runs)


async def prepare(arms: Sequence[Arm], options: ReplayOptions) -> tuple[str, Calibration]:
    """Check that every arm answers; find the model's name and how prompts are counted.

    Raises:
        EngineError: an arm does not answer, or the first one names no model.
    """
    model = options.model
    calibration = Calibration()
    for arm in arms:
        client = _client(arm, options)
        try:
            served = await client.models()
            if model is None:
                if not served:
                    raise EngineError(f"{arm.url} does not name a model: is it up? (or --model)")
                model = served[0]
            if arm is arms[0] and options.dialect is not Dialect.COMPLETIONS:
                calibration = await calibrate(client, dialect=options.dialect, model=model)
        finally:
            await client.aclose()
    assert model is not None
    return model, calibration


def _client(arm: Arm, options: ReplayOptions) -> Client:
    return Client(
        arm.url,
        dialect=options.dialect,
        patience=options.patience,
        rng=random.Random(f"retry/{options.seed}"),
        api_key=options.api_key,
    )


class _Run:
    """All programs once on one arm."""

    def __init__(
        self,
        row: RunRow,
        arm: Arm,
        *,
        options: ReplayOptions,
        model: str,
        calibration: Calibration,
        recorder: Recorder,
    ) -> None:
        self._row = row
        self._arm = arm
        self._options = options
        self._model = model
        self._recorder = recorder
        self._identify = style(arm.ids)
        self._maker = PromptMaker(
            dialect=options.dialect,
            calibration=calibration,
            salt=row.salt,
            echoes_whole=options.echoes_whole,
        )
        self._client = _client(arm, options)
        self._begun = 0.0
        self._programs_done = self._calls_done = self._errors = 0
        #: Reports of tools that were sent, and those of them that became something.
        self._reported = self._accepted = 0
        self._report: Callable[[], None] = lambda: None

    async def replay(
        self,
        programs: Sequence[PlannedProgram],
        *,
        on_progress: Callable[[Progress], None],
        runs: int,
    ) -> None:
        """Run all programs to their end. Failures of calls are rows, never exceptions.

        Raises:
            EngineError: the cache cannot be emptied, or no report of a tool became anything.
        """
        calls = sum(program.calls for program in programs)

        def report() -> None:
            on_progress(
                Progress(
                    run=self._row,
                    runs=runs,
                    calls_done=self._calls_done,
                    calls_planned=calls,
                    programs_done=self._programs_done,
                    programs_planned=len(programs),
                    errors=self._errors,
                )
            )

        self._report = report
        arrivals = self._options.arrivals
        # The same seed in every run: arms and repeats see the same arrivals.
        rng = random.Random(f"arrivals/{self._options.seed}")
        starts = self._options.starts_s or arrivals.starts_s(programs, rng=rng)
        slots = asyncio.Semaphore(arrivals.concurrency or len(programs))
        pools = {name: asyncio.Semaphore(size) for name, size in self._options.pools.items()}
        try:
            await self._reset()
            self._begun = time.perf_counter()
            report()
            async with asyncio.TaskGroup() as tasks:
                for program, start_s in zip(programs, starts, strict=True):
                    name = f"program {program.program}"
                    room = slots if program.pool is None else pools.get(program.pool, slots)
                    tasks.create_task(self._arrive(program, start_s or 0.0, room), name=name)
            if self._reported and not self._accepted:
                raise EngineError(f"{self._arm.url}{_TOOLS_PATH} knows none of our programs")
            self._row.is_complete = True
        finally:
            self._row.duration_s = time.perf_counter() - self._begun if self._begun else 0.0
            await self._client.aclose()

    async def _reset(self) -> None:
        if self._arm.reset_url is None:
            return
        scheme, _, rest = self._arm.reset_url.partition("://")
        host, _, path = rest.partition("/")
        client = Client(
            f"{scheme}://{host}",
            dialect=self._options.dialect,
            patience=self._options.patience,
            rng=random.Random(0),
        )
        try:
            if await client.post_json("/" + path, {}) is None:
                raise EngineError(
                    f"{self._arm.reset_url} does not empty the cache (vLLM needs "
                    "VLLM_SERVER_DEV_MODE=1); leave --reset out to give each run its own content"
                )
        finally:
            await client.aclose()

    async def _arrive(
        self, program: PlannedProgram, start_s: float, slots: asyncio.Semaphore
    ) -> None:
        await asyncio.sleep(max(0.0, self._begun + start_s - time.perf_counter()))
        async with slots:
            started = time.perf_counter()
            span_s = self._options.deadlines_s.get(program.program)
            wanted = None if span_s is None else started + span_s
            replay = _ProgramReplay(self, program, wanted=wanted)
            outcome = INTERRUPTED
            try:
                outcome = COMPLETED if await replay.run() else FAILED
            finally:
                jct_s = replay.ended - started if outcome == COMPLETED else None
                self._programs_done += 1
                self._recorder.add_program(
                    ProgramRow(
                        run=self._row.run,
                        arm=self._arm.name,
                        program=program.program,
                        started_s=started - self._begun,
                        jct_s=jct_s,
                        outcome=outcome,
                        calls_planned=program.calls,
                        calls_done=replay.calls_done,
                        pauses_s=sum(call.pause_s for call in program.main.calls[:-1]),
                        tenant=self._options.tenants.get(program.program, ""),
                    )
                )
                self._report()

    def prompts(self, conversation: PlannedConversation) -> Prompts:
        """The prompts of a conversation in this run's dialect."""
        return self._maker.prompts(conversation)

    async def call(
        self, who: CallIdentity, conversation: PlannedConversation, prompts: Prompts
    ) -> Outcome:
        """Make one call and record it, also when it is interrupted."""
        is_silent = who.program in self._options.without_ids
        spoken = Spoken() if is_silent else self._identify(self._salted(who))
        body = prompts.body(who.step, model=self._model) | dict(spoken.body)
        headers = dict(spoken.headers)
        headers |= self._tenant_headers(who)
        outcome = Outcome(error=INTERRUPTED)
        sent = time.perf_counter()
        is_over = False
        try:
            await self._client.call(body, headers=headers, outcome=outcome)
            is_over = True
        finally:
            if not is_over:
                outcome.error = INTERRUPTED
            self._record(who, conversation, outcome, sent_s=sent - self._begun)
        return outcome

    async def tell_tools(
        self, who: CallIdentity, conversation: PlannedConversation, outcome: Outcome
    ) -> None:
        """Say what the program waits for from now on, where its proxy is to know.

        Raises:
            EngineError: it does not take reports, so that the run would measure something else.
        """
        label = outcome.marks.get(_PROGRAM_HEADER)
        tools = conversation.calls[who.step].tools
        if not self._arm.tells_tools or label is None or not tools:
            return
        reports = [
            {
                "event": "started",
                "program": label,
                "tool": tool,
                "call_id": f"{self._row.salt}/{who.conversation}/{who.step}/{number}",
            }
            for number, tool in enumerate(tools)
        ]
        headers = self._tenant_headers(who)
        answer = await self._client.post_json(
            _TOOLS_PATH, {"events": reports}, headers=headers, status=202
        )
        if answer is None:
            raise EngineError(f"{self._arm.url}{_TOOLS_PATH} takes no reports of tools")
        self._reported += len(reports)
        self._accepted += msgspec.json.decode(answer, type=_Taken).accepted

    def _tenant_headers(self, who: CallIdentity) -> dict[str, str]:
        tenant = self._options.tenants.get(who.program)
        return {} if tenant is None else {_TENANT_HEADER: tenant}

    def _salted(self, who: CallIdentity) -> CallIdentity:
        # The same program in another run is another one, for whoever remembers ids.
        def named(name: str) -> str:
            return f"{self._row.salt}/{self._row.run}/{name}"

        return replace(
            who,
            program=named(who.program),
            conversation=named(who.conversation),
            parent=None if who.parent is None else named(who.parent),
        )

    def _record(
        self,
        who: CallIdentity,
        conversation: PlannedConversation,
        outcome: Outcome,
        *,
        sent_s: float,
    ) -> None:
        planned = conversation.calls[who.step]
        self._calls_done += 1
        self._errors += bool(outcome.error) and outcome.error != INTERRUPTED
        self._recorder.add_call(
            CallRow(
                run=self._row.run,
                arm=self._arm.name,
                program=who.program,
                conversation=who.conversation,
                step=who.step,
                sent_s=sent_s,
                status=outcome.status,
                error=outcome.error,
                attempts=outcome.attempts,
                waited_s=outcome.waited_s,
                refused_s=outcome.refused_s,
                ttft_s=outcome.ttft_s,
                latency_s=outcome.latency_s,
                planned_prompt_tokens=planned.prompt_tokens,
                planned_output_tokens=planned.output_tokens,
                prompt_tokens=outcome.prompt_tokens,
                cached_tokens=outcome.cached_tokens,
                output_tokens=outcome.output_tokens,
                label=outcome.marks.get(_PROGRAM_HEADER),
                engine=outcome.marks.get(_ENGINE_HEADER),
                decision=outcome.marks.get(_DECISION_HEADER),
                tenant=self._options.tenants.get(who.program, ""),
            )
        )
        self._report()


class _ProgramReplay:
    """One program: its main conversation and its sub-agents, as far as they run at once.

    `wanted` is when it should be done, on the clock of `time.perf_counter`.
    """

    def __init__(self, run: _Run, program: PlannedProgram, *, wanted: float | None) -> None:
        self._run = run
        self._program = program
        self._wanted = wanted
        self.calls_done = 0
        self.ended = 0.0

    async def run(self) -> bool:
        """Whether every call was answered. The first failure ends the program, as an agent ends."""
        is_answered = False
        try:
            await self._converse(self._program.main)
            is_answered = True
        except* _CallFailed:
            pass
        return is_answered

    async def _converse(self, conversation: PlannedConversation) -> None:
        prompts = self._run.prompts(conversation)
        last = len(conversation.calls) - 1
        async with asyncio.TaskGroup() as tasks:
            for index, planned in enumerate(conversation.calls):
                who = CallIdentity(
                    program=self._program.program,
                    conversation=conversation.conversation,
                    step=index,
                    parent=conversation.parent,
                    is_last=index == last,
                    deadline_s=self._left_s(),
                )
                outcome = await self._run.call(who, conversation, prompts)
                self.ended = max(self.ended, time.perf_counter())
                if outcome.error:
                    raise _CallFailed(outcome.error)
                self.calls_done += 1
                prompts.answered(index, outcome)
                awaited = [
                    task
                    for child in self._program.children
                    if child.parent == conversation.conversation and child.parent_call == index
                    for task in [tasks.create_task(self._begin(child))]
                    if child.joins
                ]
                if awaited:
                    await asyncio.wait(awaited)
                if index < last:
                    # Beside the pause: what the telling takes is not the tool's time.
                    tasks.create_task(self._run.tell_tools(who, conversation, outcome))
                    await asyncio.sleep(planned.pause_s)

    def _left_s(self) -> float | None:
        return None if self._wanted is None else self._wanted - time.perf_counter()

    async def _begin(self, child: PlannedConversation) -> None:
        await asyncio.sleep(child.start_delay_s)
        await self._converse(child)
