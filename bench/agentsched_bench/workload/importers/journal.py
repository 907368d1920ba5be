"""Our own journal: production traffic that the proxy scheduled, without any text of it.

A prompt is known by the hashes of ever longer beginnings; from them prefix blocks are made, so that
what programs shared in production they share in a replay. Each finished step is a call: from its
arrival, its answer timed from its dispatch (`llm_s` is the engine's time, not our queue's). Steps
that failed or were cancelled are left out. Tools are those that the answer asked for, timed where
they were reported. Memory holds the conversations of programs that are open; a closed program is
written at once.
"""

from __future__ import annotations

import gzip
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentsched.kernel import JournalEntry, JournalError, decode, decode_header
from agentsched.model import (
    Dispatch,
    Lineage,
    Prefix,
    ProgramClosed,
    StepArrived,
    StepCancelled,
    StepClass,
    StepFailed,
    StepFinished,
    StepStarted,
    ToolFinished,
    ToolStarted,
)
from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.blocks import Runs, first_of
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.files import InputFile, OnError, lines
from agentsched_bench.workload.importers.loose import as_object
from agentsched_bench.workload.trace import RecordedStep, RecordedTool, Recording, TraceError

#: Tokens of a block that is made from prefixes; that of most engines.
BLOCK_SIZE: Final = 16
PROGRAMS_MAX: Final = 100_000
#: Beginnings of prompts that are remembered by their names; the longest unseen go first.
_BEGINNINGS_MAX: Final = 1_000_000
_NANOS: Final = 1e9


@dataclass(frozen=True, slots=True)
class Journal:
    """Reads journals as the proxy and the simulator write them."""

    name: str = "journal"
    title: str = "agentsched journal (.ndjson), as the proxy records it"

    def claims(self, head: Sequence[Any]) -> bool:
        value = as_object(head[0]) if head else {}
        return "journal" in value and "choices" in value

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        # A beginning has one name in all journals of a proxy, and of replicas with one secret.
        beginnings = _Beginnings()
        for file in files:
            reader = _Reader(options, beginnings)
            for number, line in _lines(file, on_error):
                try:
                    if number == 1:
                        decode_header(line)
                        continue
                    yield from reader.entry(decode(line))
                except JournalError as error:
                    on_error(TraceError(str(error), path=file.path, line=number))
                    if number == 1:
                        break
            yield from reader.rest()


def _lines(file: InputFile, on_error: OnError) -> Iterator[tuple[int, bytes]]:
    try:
        yield from lines(file)
    except TraceError as error:
        on_error(error)
    except (OSError, gzip.BadGzipFile) as error:
        on_error(TraceError(str(error), path=file.path))


@dataclass(slots=True, kw_only=True)
class _Step:
    """A step from arrival to its answer."""

    arrived: StepArrived
    at: int
    dispatched: int | None = None
    started: int | None = None
    finished: int | None = None
    answer: StepFinished | None = None


@dataclass(slots=True, kw_only=True)
class _Conversation:
    """One conversation's finished steps, in the order of their arrival."""

    name: str
    program: str
    parent: str | None = None
    agent: str = ""
    model: str = ""
    tenant: str = ""
    #: Arrival of the step before which this conversation, a sub-agent's, began.
    steps: list[_Step] = field(default_factory=list)


@dataclass(slots=True)
class _Program:
    """An open program: its conversations, and its tools' times by call id."""

    conversations: dict[str, _Conversation] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)
    took_s: dict[str, float] = field(default_factory=dict)
    is_error: set[str] = field(default_factory=set)
    waiting: int = 0
    is_closed: bool = False


class _Beginnings:
    """Beginnings of prompts by their names: where each ends, and the blocks up to there.

    The proxy estimates their tokens, and each engine's count of a whole prompt tells another error
    of that. Equal beginnings are equal blocks, so each keeps what it had when it was first met. A
    step names few of its past (of its conversation's prompts only the one before): its blocks are
    those of the longest beginning that is known, and new ones behind them.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, Runs]] = OrderedDict()
        #: Blocks that have a number.
        self._count = 0

    def place(self, prefixes: Sequence[Prefix], prompt: int) -> tuple[dict[str, int], Runs]:
        """Where the beginnings of a prompt of `prompt` tokens end, and the blocks of all of it."""
        if not prefixes:
            return {}, ()
        whole = max(prefix.tokens for prefix in prefixes)
        ends: dict[str, int] = {}
        runs: Runs = ()
        told = at = 0
        for prefix in prefixes:
            name = str(prefix.prefix)
            known = self._known.get(name)
            if known is None:
                # Of what is left of the prompt the share that the estimate gives it.
                share = (prefix.tokens - told) / max(1, whole - told)
                end = at + round(share * (prompt - at))
            else:
                self._known.move_to_end(name)
                end, runs = known
            end = min(max(end, at), prompt)
            ends[name] = end
            told, at = prefix.tokens, end
        count = prompt // BLOCK_SIZE
        runs = self._grown(first_of(runs, count), count)
        for name, end in ends.items():
            self._known.setdefault(name, (end, first_of(runs, end // BLOCK_SIZE)))
        while len(self._known) > _BEGINNINGS_MAX:
            self._known.popitem(last=False)
        return ends, runs

    def _grown(self, runs: Runs, count: int) -> Runs:
        """The blocks with new ones behind them, `count` in all."""
        new = count - sum(last - first + 1 for first, last in runs)
        if new <= 0:
            return runs
        low, self._count = self._count + 1, self._count + new
        if runs and runs[-1][1] + 1 == low:
            return (*runs[:-1], (runs[-1][0], self._count))
        return (*runs, (low, self._count))


class _Reader:
    """Entries in, recordings out as programs close."""

    def __init__(self, options: ImportOptions, beginnings: _Beginnings) -> None:
        self._options = options
        self._programs: OrderedDict[str, _Program] = OrderedDict()
        self._steps: dict[str, _Step] = {}
        self._beginnings = beginnings
        self._used: dict[str, int] = {}

    def entry(self, entry: JournalEntry) -> Iterator[Imported]:
        event, now = entry.event, int(entry.now)
        match event:
            case StepArrived():
                self._arrive(event, now)
            case StepStarted() if event.step in self._steps:
                self._steps[event.step].started = now
            case StepFinished() if event.step in self._steps:
                yield from self._finish(event, now)
            case StepFailed() if event.step in self._steps and not event.is_retryable:
                self._drop(event.step)
            case StepCancelled() if event.step in self._steps:
                self._drop(event.step)
            case ToolStarted() if event.program in self._programs:
                self._programs[event.program].began[event.call_id] = now
            case ToolFinished() if event.program in self._programs:
                self._tool(event, now)
            case ProgramClosed() if event.program in self._programs:
                program = self._programs[event.program]
                program.is_closed = True
                if not program.waiting:
                    yield from self._out(event.program)
            case _:
                pass
        for command in entry.commands:
            if isinstance(command, Dispatch) and command.step in self._steps:
                self._steps[command.step].dispatched = now
        while len(self._programs) > PROGRAMS_MAX:
            yield from self._out(next(iter(self._programs)))

    def rest(self) -> Iterator[Imported]:
        """What was still open when the journal ended."""
        for program in list(self._programs):
            yield from self._out(program)

    def _arrive(self, event: StepArrived, now: int) -> None:
        if event.step_class in (StepClass.PROBE, StepClass.TOKEN_COUNT):
            return
        program = self._programs.setdefault(event.program, _Program())
        program.is_closed = False
        self._programs.move_to_end(event.program)
        conversation = program.conversations.get(event.conversation)
        if conversation is None:
            parent = event.parent_conversation
            known = parent if parent in program.conversations else None
            conversation = _Conversation(
                name=str(event.conversation),
                program=str(event.program),
                parent=known,
                agent=event.agent,
                model=event.model,
                tenant=str(event.tenant),
            )
            program.conversations[event.conversation] = conversation
        step = _Step(arrived=event, at=now)
        self._steps[event.step] = step
        conversation.steps.append(step)
        program.waiting += 1

    def _finish(self, event: StepFinished, now: int) -> Iterator[Imported]:
        step = self._steps.pop(event.step)
        step.finished, step.answer = now, event
        yield from self._settled(step.arrived.program)

    def _drop(self, name: str) -> None:
        step = self._steps.pop(name)
        program = self._programs.get(step.arrived.program)
        if program is not None:
            program.conversations[step.arrived.conversation].steps.remove(step)
            program.waiting -= 1

    def _settled(self, name: str) -> Iterator[Imported]:
        program = self._programs.get(name)
        if program is None:
            return
        program.waiting -= 1
        if program.is_closed and not program.waiting:
            yield from self._out(name)

    def _tool(self, event: ToolFinished, now: int) -> None:
        program = self._programs[event.program]
        begun = program.began.pop(event.call_id, None)
        if event.took is not None:
            program.took_s[event.call_id] = int(event.took) / _NANOS
        elif begun is not None:
            program.took_s[event.call_id] = (now - begun) / _NANOS
        if event.is_error:
            program.is_error.add(event.call_id)

    def _out(self, name: str) -> Iterator[Imported]:
        program = self._programs.pop(name)
        made = {
            key: conversation
            for key, conversation in program.conversations.items()
            if any(step.answer is not None for step in conversation.steps)
        }
        made = _main_first(made)
        names = {key: self._name(conversation) for key, conversation in made.items()}
        for key, conversation in made.items():
            yield self._recording(conversation, key, program=program, names=names, made=made)

    def _name(self, conversation: _Conversation) -> str:
        own = conversation.program
        if conversation.name != own:
            own = f"{own}/{conversation.name}"
        # A program that was forgotten and came back is another one.
        count = self._used.get(own, 0)
        self._used[own] = count + 1
        return own if count == 0 else f"{own}#{count + 1}"

    def _recording(
        self,
        conversation: _Conversation,
        key: str,
        *,
        program: _Program,
        names: dict[str, str],
        made: dict[str, _Conversation],
    ) -> Imported:
        steps = [step for step in conversation.steps if step.answer is not None]
        begun = steps[0].at
        parent: str | None = None
        main = next(iter(made))
        if key != main:
            # Beside its program's main conversation, any other one is a sub-agent's or a branch.
            parent = conversation.parent if conversation.parent in names else main
        offset_s = None
        if parent is not None:
            zero = next(s.at for s in made[parent].steps if s.answer is not None)
            offset_s = round(max(0, begun - zero) / _NANOS, 6)
        recording = Recording(
            session_id=names[key][:1000],
            source=self._options.source or "journal",
            steps=tuple(self._steps_of(steps, program)),
            agent=conversation.agent or None,
            model=conversation.model or None,
            token_source={"input": "recorded", "output": "recorded", "result": None},
            block_size=BLOCK_SIZE if any(step.arrived.prefixes for step in steps) else None,
            parent=None if parent is None else names[parent],
            parent_t_s=offset_s,
            tenant=conversation.tenant or None,
        )
        return Imported(recording=recording, epoch_s=begun / _NANOS)

    def _steps_of(self, steps: Sequence[_Step], program: _Program) -> Iterator[RecordedStep]:
        zero = steps[0].at
        known: set[str] = set()
        for index, step in enumerate(steps):
            answer = step.answer
            assert answer is not None
            following = steps[index + 1] if index + 1 < len(steps) else None
            prompt = answer.usage.prompt_tokens or step.arrived.prompt_tokens or 1
            ends, blocks = self._beginnings.place(step.arrived.prefixes, prompt)
            seen = max((end for name, end in ends.items() if name in known), default=0)
            known.update(ends)
            dispatched = step.dispatched if step.dispatched is not None else step.at
            finished = step.finished if step.finished is not None else dispatched
            lineage = step.arrived.lineage
            yield RecordedStep(
                step=index,
                t_s=round(max(0, step.at - zero) / _NANOS, 6),
                input_tokens=prompt,
                output_tokens=answer.usage.output_tokens,
                new_input_tokens=_new(steps, index, prompt),
                prefix_tokens=seen if index else None,
                llm_s=round(max(0, finished - dispatched) / _NANOS, 6),
                ttft_s=None
                if step.started is None
                else round(max(0, step.started - dispatched) / _NANOS, 6),
                gap_s=None
                if following is None
                else round(max(0, following.at - finished) / _NANOS, 6),
                gap_kind="tool" if answer.tool_calls else "user",
                tools=tuple(
                    RecordedTool(
                        name=str(call.tool),
                        duration_s=_rounded(program.took_s.get(call.call_id)),
                        call_id=str(call.call_id),
                        is_error=call.call_id in program.is_error,
                    )
                    for call in answer.tool_calls
                ),
                hash_ids=blocks or None,
                is_compaction=index > 0 and lineage is Lineage.COMPACTS,
            )


def _main_first(made: dict[str, _Conversation]) -> dict[str, _Conversation]:
    """A program's conversations, its main one before the others: the first that is work.

    Its title may be asked for before that has begun.
    """
    for key, conversation in made.items():
        if any(s.arrived.step_class is not StepClass.AUXILIARY for s in conversation.steps):
            return {key: conversation, **made}
    return made


def _new(steps: Sequence[_Step], index: int, prompt: int) -> int | None:
    if index == 0 or steps[index].arrived.lineage is not Lineage.EXTENDS:
        return None
    before = steps[index - 1].answer
    assert before is not None
    new = prompt - before.usage.prompt_tokens - before.usage.output_tokens
    return new if new >= 0 else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds), 6)
