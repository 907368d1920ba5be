"""How much memory the programs under way will want at their peak, learnt from those that ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from agentsched.model import (
    Command,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    Event,
    Instant,
    Lineage,
    ProgramClosed,
    ProgramId,
    Reject,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    after,
    between,
    seconds,
)

_SILENT: Final = seconds(60)
_NEVER: Final = Instant(2**63 - 1)


@dataclass(slots=True)
class _Asked:
    """A step under way: how large its program's shared head is, and since when it does not wait."""

    program: ProgramId
    conversation: ConversationId
    head: int
    model: str
    arrived_at: Instant
    sent_at: Instant


@dataclass(slots=True)
class _Live:
    """A program under way: tokens of its own in its largest prompt and answer so far.

    `conversation` is its main one, `model` what it asked for first. `since` is when its first step
    was sent to an engine; `held_ns` how long later ones waited.
    """

    tokens: int
    conversation: ConversationId
    model: str
    since: Instant
    last_at: Instant
    active: int = 0
    held_ns: int = 0


@dataclass(slots=True)
class _Sum:
    """Programs of one model: the small ones, which will reach the usual size, and the tokens of
    those that are larger already."""

    small: int = 0
    large_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class _Peak:
    """Sums over the programs that are heard of, by model. They hold from `since` until `until`,
    when one has been silent for too long. Small is what is below `final_tokens`."""

    final_tokens: float
    since: Instant
    until: Instant = _NEVER
    sums: dict[str, _Sum] = field(default_factory=dict)

    def add(self, live: _Live, times: int = 1) -> None:
        found = self.sums.get(live.model)
        if found is None:
            found = self.sums[live.model] = _Sum()
        if live.tokens < self.final_tokens:
            found.small += times
        else:
            found.large_tokens += times * live.tokens


def _is_heard(live: _Live, *, now: Instant) -> bool:
    return bool(live.active) or after(live.last_at, _SILENT) > now


class LivePrograms:
    """Programs that were served and are not over, with the size that each will probably reach.

    Sizes leave out the head of the prompt, which others share. A program that is silent for a
    minute is left out until it speaks again: most that are, are over without having said so. Not
    sooner, though whoever is over could be told sooner: where programs are short, those that are
    counted too long keep the door shut for newcomers that would only take turns (SWE-agent's
    sessions took up to half as long again without that).
    """

    def __init__(self, *, programs_max: int = 4_096) -> None:
        self._programs_max = programs_max
        #: The one silent for longest first.
        self._live: OrderedDict[ProgramId, _Live] = OrderedDict()
        self._steps: dict[StepId, _Asked] = {}
        #: Mean size of programs at their end; 0 when none has ended yet.
        self.final_tokens = 0.0
        #: Mean time that they took, without what they were held for; 0 likewise.
        self.final_ns = 0.0
        self._ended = 0
        #: What the latest answer of `peak_tokens` was made of, kept up to date while that is cheap.
        self._peak: _Peak | None = None

    def observe(self, event: Event, *, now: Instant) -> None:
        match event:
            case StepArrived() if event.step_class.is_work and event.step not in self._steps:
                self._arrive(event, now=now)
            case StepFinished():
                self._finish(event, now=now)
            case StepFailed() if not event.is_retryable:
                self._drop(event.step, now=now)
            case StepCancelled():
                self._drop(event.step, now=now)
            case ContinuedElsewhere():
                live = self._live.get(event.program)
                if live is not None and live.conversation == event.conversation and not live.active:
                    del self._live[event.program]  # that replica counts it now
                    self._peak = None
            case ProgramClosed():
                self._close(event.program)
            case _:
                pass

    def __getstate__(self) -> dict[str, object]:
        # An answer that is remembered is no knowledge.
        return {**vars(self), "_peak": None}

    def decided(self, commands: Iterable[Command], *, now: Instant) -> None:
        """Steps that were turned away are not under way, others wait no more; no event says so."""
        for command in commands:
            if isinstance(command, Reject):
                self._drop(command.step, now=now)
            elif isinstance(command, Dispatch):
                asked = self._steps.get(command.step)
                if asked is not None:
                    asked.sent_at = now

    def __contains__(self, program: ProgramId) -> bool:
        return program in self._live

    def peak_tokens(self, *, now: Instant) -> float:
        """What all of them want when each is as large as it probably gets."""
        return sum(tokens for _, tokens in self.peaks(now=now))

    def peaks(self, *, now: Instant) -> Iterator[tuple[str, float]]:
        """The same by the model that they ask for, which not every engine need have."""
        peak = self._peak
        if peak is None or not peak.since <= now < peak.until:
            peak = self._peak = self._add_up(now=now)
        for model in sorted(peak.sums):
            found = peak.sums[model]
            yield model, found.large_tokens + found.small * self.final_tokens

    def _add_up(self, *, now: Instant) -> _Peak:
        peak = _Peak(final_tokens=self.final_tokens, since=now)
        for live in self._live.values():
            if _is_heard(live, now=now):
                peak.add(live)
                if not live.active:
                    peak.until = min(peak.until, after(live.last_at, _SILENT))
        return peak

    def _current(self, *, now: Instant) -> _Peak | None:
        """The sums, where a change at `now` can be taken into them."""
        if self._peak is not None and not self._peak.since <= now < self._peak.until:
            self._peak = None
        return self._peak

    def check(self, *, now: Instant) -> None:
        """Assert that the sums are those of the programs."""
        peak = self._current(now=now)
        if peak is not None:
            plain = self._add_up(now=now)
            nothing = _Sum()
            for model in peak.sums.keys() | plain.sums.keys():
                assert peak.sums.get(model, nothing) == plain.sums.get(model, nothing)
            assert peak.until <= plain.until

    def _arrive(self, event: StepArrived, *, now: Instant) -> None:
        head = event.prefixes[0].tokens if len(event.prefixes) > 1 else 0
        self._steps[event.step] = _Asked(
            event.program, event.conversation, head, event.model, now, now
        )
        live = self._live.get(event.program)
        goes_on = event.lineage is Lineage.COMPACTS
        if live is not None and goes_on and live.conversation == event.parent_conversation:
            live.conversation = event.conversation  # the same under another id
        self._count(event.program, 1, now=now)

    def _count(self, program: ProgramId, steps: int, *, now: Instant) -> None:
        live = self._live.get(program)
        if live is None:
            return
        peak = self._current(now=now)
        if peak is not None:
            if not _is_heard(live, now=now):
                peak.add(live)
            peak.until = min(peak.until, after(now, _SILENT))
        live.active = max(0, live.active + steps)
        live.last_at = now
        self._live.move_to_end(program)

    def _drop(self, step: StepId, *, now: Instant) -> None:
        found = self._steps.pop(step, None)
        if found is not None:
            self._count(found.program, -1, now=now)

    def _finish(self, event: StepFinished, *, now: Instant) -> None:
        found = self._steps.pop(event.step, None)
        if found is None:
            return
        program, conversation = found.program, found.conversation
        live = self._live.get(program)
        tokens = max(0, event.usage.prompt_tokens + event.usage.output_tokens - found.head)
        if live is None:
            live = _Live(tokens, conversation, found.model, found.sent_at, now)
            self._live[program] = live
            peak = self._current(now=now)
            if peak is not None:
                peak.add(live)
                peak.until = min(peak.until, after(now, _SILENT))
            if len(self._live) > self._programs_max:
                self._live.popitem(last=False)
                self._peak = None
        else:
            live.held_ns += between(found.arrived_at, found.sent_at)
            self._count(program, -1, now=now)
        if tokens > live.tokens:
            if self._peak is not None:
                self._peak.add(live, -1)
            live.tokens = tokens
            if self._peak is not None:
                self._peak.add(live)
        is_main = conversation == live.conversation
        if is_main and event.is_last_word:
            self._end(program)

    def _close(self, program: ProgramId) -> None:
        live = self._live.get(program)
        if live is not None and live.active:
            # It goes when these have ended, which is no second program's end.
            under_way = self._steps.items()
            self._steps = {key: asked for key, asked in under_way if asked.program != program}
        self._end(program)

    def _end(self, program: ProgramId) -> None:
        live = self._live.pop(program, None)
        if live is None:
            return
        self._peak = None
        self._ended += 1
        weight = 1.0 / min(self._ended, 64)
        self.final_tokens += weight * (live.tokens - self.final_tokens)
        took = max(0, between(live.since, live.last_at) - live.held_ns)
        self.final_ns += weight * (took - self.final_ns)
