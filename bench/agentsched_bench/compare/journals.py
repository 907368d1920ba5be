"""What a journal tells of calls, programs, pins and decisions, in a comparison's own rows.

Live proxies, the simulator and production write the same journal, so one reading serves them all.
Times become seconds since the first entry.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from agentsched.kernel import JournalEntry
from agentsched.model import (
    Command,
    Dispatch,
    Event,
    Instant,
    Pin,
    Prefetch,
    Reject,
    StepArrived,
    StepCancelled,
    StepClass,
    StepFailed,
    StepFinished,
    StepStarted,
    Unpin,
    between,
    in_seconds,
)
from agentsched_bench.compare.results import Call, Decision, Pinned, Program
from agentsched_bench.live.results import COMPLETED, FAILED, INTERRUPTED

#: A step that was held for longer is worth a line among the decisions.
_HELD_S: Final = 1.0
_DECISIONS_MAX: Final = 400


@dataclass(slots=True, kw_only=True)
class Told:
    """What was read. `calls` are in order of arrival."""

    calls: list[Call] = field(default_factory=list)
    programs: list[Program] = field(default_factory=list)
    pins: list[Pinned] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    length_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Talk:
    """A conversation so far: how much of it an engine has computed once."""

    known_tokens: int = 0
    steps: int = 0
    #: A call that was turned away: its client will try again, and that is the same call.
    refused: Call | None = None


def tell(
    entries: Iterable[JournalEntry], *, origin: Instant | None = None, pace: float = 1.0
) -> Told:
    """Read entries. `origin` is second 0; None: the first arrival of a step. `pace` is how many
    seconds are told for one of the clock."""
    return _Reader(origin, pace).read(entries)


class _Reader:
    def __init__(self, origin: Instant | None, pace: float) -> None:
        self._origin = origin
        self._pace = pace
        self._calls: dict[str, Call] = {}
        self._order: list[str] = []
        #: Steps that have no end yet.
        self._open: set[str] = set()
        #: When each try of a call arrived: a wait counts from there.
        self._since: dict[str, float] = {}
        self._talks: dict[tuple[str, str], _Talk] = {}
        self._pins: dict[str, Pinned] = {}
        self._told = Told()
        self._decisions: deque[Decision] = deque(maxlen=_DECISIONS_MAX)
        self._totals: Counter[str] = Counter()

    def read(self, entries: Iterable[JournalEntry]) -> Told:
        now = Instant(0)
        for entry in entries:
            if self._origin is None and isinstance(entry.event, StepArrived):
                self._origin = entry.now
            if self._origin is None:
                continue
            now = entry.now
            at_s = in_seconds(between(self._origin, now)) if now >= self._origin else 0.0
            at_s *= self._pace
            self._event(entry.event, at_s=at_s)
            for command in entry.commands:
                self._command(command, at_s=at_s)
            self._told.length_s = at_s
        return self._close()

    def _event(self, event: Event, *, at_s: float) -> None:
        match event:
            case StepArrived() if event.step_class is not StepClass.TOKEN_COUNT:
                self._arrived(event, at_s=at_s)
            case StepStarted():
                call = self._calls.get(event.step)
                if call is not None and call.ttft_s is None:
                    call.ttft_s = at_s - call.sent_s
            case StepFinished():
                self._finished(event, at_s=at_s)
            case StepFailed(is_retryable=True):
                pass  # the scheduler has it back: it goes elsewhere, or a command turns it away
            case StepFailed() | StepCancelled():
                self._open.discard(event.step)
                call = self._calls.get(event.step)
                if call is not None:
                    call.latency_s = at_s - call.sent_s
                    call.error = event.reason or "cancelled"
            case _:
                pass

    def _arrived(self, event: StepArrived, *, at_s: float) -> None:
        talk = self._talks.setdefault((event.program, event.conversation), _Talk())
        self._since[event.step] = at_s
        self._open.add(event.step)
        if talk.refused is not None:
            again, talk.refused = talk.refused, None
            again.attempts += 1
            again.refused_s = at_s - again.sent_s
            again.error = ""
            self._calls[event.step] = again
            return
        call = Call(
            program=event.program,
            conversation=event.conversation,
            step=talk.steps,
            sent_s=at_s,
            latency_s=0.0,
            prompt_tokens=event.prompt_tokens,
            known_tokens=talk.known_tokens,
            tenant=event.tenant,
            label=event.program,
        )
        talk.steps += 1
        self._calls[event.step] = call
        self._order.append(event.step)

    def _finished(self, event: StepFinished, *, at_s: float) -> None:
        self._open.discard(event.step)
        call = self._calls.get(event.step)
        if call is None:
            return
        call.latency_s = at_s - call.sent_s
        call.error = ""
        call.prompt_tokens = event.usage.prompt_tokens
        call.cached_tokens = event.usage.cached_tokens
        call.output_tokens = event.usage.output_tokens
        call.known_tokens = min(call.known_tokens, event.usage.prompt_tokens)
        call.tools = tuple(tool.tool for tool in event.tool_calls)
        talk = self._talks[call.program, call.conversation]
        talk.known_tokens = event.usage.prompt_tokens + event.usage.output_tokens

    def _command(self, command: Command, *, at_s: float) -> None:
        self._totals[type(command).__name__] += 1
        match command:
            case Dispatch():
                self._dispatched(command, at_s=at_s)
            case Reject():
                self._open.discard(command.step)
                call = self._calls.get(command.step)
                if call is not None:
                    call.latency_s = at_s - call.sent_s
                    call.error = f"rejected: {command.reason}"
                    self._talks[call.program, call.conversation].refused = call
                    self._say(at_s, "reject", f"{command.reason} {command.detail}", call.program)
            case Pin():
                self._pins[command.pin] = Pinned(
                    program=command.program,
                    conversation=command.conversation,
                    from_s=at_s,
                    to_s=at_s,
                    engine=command.engine,
                )
            case Unpin():
                pin = self._pins.pop(command.pin, None)
                if pin is not None:
                    pin.to_s, pin.end = at_s, str(command.reason)
                    self._told.pins.append(pin)
                    if pin.end != "resumed":
                        self._say(at_s, "unpin", f"{command.reason} on {pin.engine}", pin.program)
            case Prefetch():
                self._say(at_s, "prefetch", f"on {command.engine}", command.program)
            case _:
                pass

    def _dispatched(self, command: Dispatch, *, at_s: float) -> None:
        call = self._calls.get(command.step)
        if call is None:
            return
        call.held_s = at_s - self._since[command.step]
        call.engine = command.engine
        call.bypassed = command.bypassed
        call.decision = f"order={command.order} place={command.place} pin={command.pin}"
        if call.held_s >= _HELD_S:
            text = f"held {call.held_s:.1f} s, {command.order}, to {command.engine}"
            self._say(at_s, "dispatch", text, call.program)

    def _say(self, at_s: float, kind: str, text: str, program: str) -> None:
        self._decisions.append(Decision(at_s=at_s, kind=kind, text=text.strip(), program=program))

    def _close(self) -> Told:
        told = self._told
        for pin in self._pins.values():
            pin.to_s, pin.end = told.length_s, "open"
            told.pins.append(pin)
        for step in self._open:
            # The journal ends before its answer does: nobody knows how long it took.
            call = self._calls[step]
            call.latency_s, call.error = told.length_s - call.sent_s, INTERRUPTED
        told.calls = [self._calls[step] for step in self._order]
        told.decisions = list(self._decisions)
        told.totals = dict(sorted(self._totals.items()))
        told.programs = _programs(told.calls)
        return told


def _programs(calls: Iterable[Call]) -> list[Program]:
    """Each program from its first arrival to its last answer; failed where its last call did, and
    interrupted where the journal ends before it."""
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.program, []).append(call)
    rows = []
    for name, own in found.items():
        ended_s = max(call.sent_s + call.latency_s for call in own)
        outcome = FAILED if own[-1].error else COMPLETED
        if any(call.error == INTERRUPTED for call in own):
            outcome = INTERRUPTED
        rows.append(
            Program(
                program=name,
                started_s=own[0].sent_s,
                jct_s=ended_s - own[0].sent_s if outcome == COMPLETED else None,
                outcome=outcome,
                tenant=own[0].tenant,
            )
        )
    return rows
