"""How much memory the programs under way will want at their peak, learnt from those that ended."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from agentsched.model import (
    SECOND,
    Command,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    Event,
    Instant,
    Lineage,
    Nanos,
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
from agentsched_policies.usual_ends import End, Kind, UsualEnds, kind_of

_SILENT: Final = seconds(60)
#: A program whose first answer left open whether it goes on is taken to be over after this.
_SOON: Final = Nanos(10 * SECOND)
_NEVER: Final = Instant(2**63 - 1)
#: As an answer is finished that calls tools, also where these cannot be read.
_TOOL_REASONS: Final = frozenset({"tool_calls", "tool_use", "function_call"})


class _Phase(Enum):
    """`OPEN`: it was answered once, no tool was called, and nothing says whether that was all."""

    GOES_ON = 0
    OPEN = 1
    OVER = 2


@dataclass(slots=True)
class _Asked:
    """A step under way: how large its program's shared head is, and since when it does not wait.

    `goes_on`: its conversation was answered before, here or elsewhere. `is_retry`: it asks for what
    was asked before, which is no sign of going on.
    """

    program: ProgramId
    conversation: ConversationId
    head: int
    kind: Kind
    model: str
    goes_on: bool
    is_retry: bool
    arrived_at: Instant
    sent_at: Instant


@dataclass(slots=True)
class _Live:
    """A program that was served: tokens of its own in its largest prompt and answer so far.

    `conversation` is its main one; `kind` and `model` are those of its first request. `since` is
    when its first step was sent to an engine; `held_ns` how long later ones waited. `went_on`:
    there was a second step, here or elsewhere. `came_back`: after it had been taken for over. What
    was learnt from its end is `told`, or that it `was_single`.
    """

    tokens: int
    conversation: ConversationId
    kind: Kind
    model: str
    since: Instant
    last_at: Instant
    phase: _Phase
    active: int = 0
    held_ns: int = 0
    went_on: bool = False
    came_back: bool = False
    told: End | None = None
    was_single: bool = False


@dataclass(slots=True)
class _Sum:
    """Programs of one model and kind: the small ones, which will reach the usual size, and the
    tokens of those that are larger already."""

    small: int = 0
    large_tokens: int = 0

    def add(self, tokens: int, usual: float, times: int) -> None:
        if tokens < usual:
            self.small += times
        else:
            self.large_tokens += times * tokens

    def wanted(self, usual: float) -> float:
        return self.large_tokens + self.small * usual


@dataclass(slots=True)
class _Sums:
    """Those that go on, and those of which nobody knows."""

    sure: _Sum = field(default_factory=_Sum)
    open: _Sum = field(default_factory=_Sum)


@dataclass(slots=True, kw_only=True)
class _Peak:
    """Sums over the programs that are heard of, by model and kind. They hold from `since` until
    `until`, when one has been silent for too long, and until another program ends."""

    ends: UsualEnds
    since: Instant
    until: Instant = _NEVER
    sums: dict[tuple[str, Kind], _Sums] = field(default_factory=dict)
    #: Names and sizes of kinds, which hold as long.
    kinds: dict[Kind, tuple[Kind, float]] = field(default_factory=dict)
    #: What `wanted` said last, while that holds.
    told: list[tuple[str, Kind, float]] | None = None

    def add(self, live: _Live, times: int = 1) -> None:
        if live.phase is _Phase.OVER:
            return
        self.told = None
        found_kind = self.kinds.get(live.kind)
        if found_kind is None:
            name = self.ends.name(live.kind)
            found_kind = self.kinds[live.kind] = name, self.ends.tokens(name)
        kind, usual = found_kind
        key = live.model, kind
        found = self.sums.get(key)
        if found is None:
            found = self.sums[key] = _Sums()
        of = found.open if live.phase is _Phase.OPEN else found.sure
        of.add(live.tokens, usual, times)

    def wanted(self) -> list[tuple[str, Kind, float]]:
        """By model and kind, in a fixed order."""
        if self.told is None:
            self.told = list(self._wanted())
        return self.told

    def _wanted(self) -> Iterator[tuple[str, Kind, float]]:
        for model, kind in sorted(self.sums):
            found, usual = self.sums[model, kind], self.ends.tokens(kind)
            tokens = found.sure.wanted(usual)
            if found.open != _NOTHING:
                tokens += self.ends.chance_of_more(kind) * found.open.wanted(usual)
            yield model, kind, tokens


_NOTHING: Final = _Sum()


def _is_heard(live: _Live, *, now: Instant) -> bool:
    return bool(live.active) or after(live.last_at, _SILENT) > now


class LivePrograms:
    """Programs that were served and are not over, with the size that each will probably reach.

    Sizes leave out the head of the prompt, which others share. A program that is silent for a
    minute is left out until it speaks again: most that are, are over without having said so. Not
    sooner, though whoever is over could be told sooner: where programs are short, those that are
    counted too long keep the door shut for newcomers that would only take turns (SWE-agent's
    sessions took up to half as long again without that).

    One that was begun before we were is counted from its first word here, before any answer.

    Whoever said its last word is over at once. Where a first answer called no tool and was cut off
    nobody knows: it counts by the share of its kind that went on, and after ten seconds it is over.
    Only then is a program with one answer taken for a single question, however it ended. One that
    comes back is not taken for over by its last words again: agents whose tools are called in plain
    text say one with every answer.
    """

    def __init__(self, *, programs_max: int = 20_000) -> None:
        self._programs_max = programs_max
        #: The one silent for longest first.
        self._live: OrderedDict[ProgramId, _Live] = OrderedDict()
        #: Those that are over as far as anyone can tell, without having been closed.
        self._over: OrderedDict[ProgramId, _Live] = OrderedDict()
        self._steps: dict[StepId, _Asked] = {}
        #: Sizes and times of programs at their end, by kind.
        self.ends = UsualEnds()
        #: How many of them each program has.
        self._under_way: dict[ProgramId, int] = {}
        #: Programs that may have been single questions, and when they were last answered.
        self._open: deque[tuple[ProgramId, Instant]] = deque(maxlen=programs_max)
        #: Of programs that were not served yet: the kinds of those steps that wait.
        self._new: dict[StepId, Kind] = {}
        self._new_kinds: dict[Kind, int] = {}
        #: The latest sums, kept up to date while that is cheap.
        self._peak: _Peak | None = None

    def observe(self, event: Event, *, now: Instant) -> None:
        if self._open:
            self._judge_the_silent(now=now)
        match event:
            case StepArrived() if event.step not in self._steps:
                self._arrive(event, now=now)
            case StepFinished():
                self._finish(event, now=now)
            case StepFailed() if not event.is_retryable:
                self._drop(event.step, now=now)
            case StepCancelled():
                self._drop(event.step, now=now)
            case ContinuedElsewhere():
                live = self._find(event.program)
                if live is not None and live.conversation == event.conversation and not live.active:
                    self._unlearn(live)
                    self._forget(event.program)  # that replica counts it now
            case ProgramClosed():
                self._close(event, now=now)
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
                self._asks_no_more(command.step)
                asked = self._steps.get(command.step)
                if asked is not None:
                    asked.sent_at = now
                    self._go_on(asked)

    def __contains__(self, program: ProgramId) -> bool:
        """Whether it was served here, and was not closed."""
        return program in self._live or program in self._over

    def peak_tokens(self, *, now: Instant) -> float:
        """What all of them want when each is as large as it probably gets."""
        return sum(tokens for _, tokens in self.peaks(now=now))

    def peaks(self, *, now: Instant) -> Iterator[tuple[str, float]]:
        """The same by the model that they ask for, which not every engine need have."""
        by_model: dict[str, float] = {}
        for model, _, tokens in self._known(now=now).wanted():
            by_model[model] = by_model.get(model, 0.0) + tokens
        yield from by_model.items()

    def half_ns(self, bound: Nanos, *, now: Instant) -> float:
        """Half the time that a program takes, or `bound` where that is less or nothing is known.

        The mean over those that want memory, by how much each wants.
        """
        total = weighed = 0.0
        for _, kind, tokens in self._known(now=now).wanted():
            took_ns = self.ends.took_ns(kind)
            total += tokens
            weighed += tokens * (min(bound, took_ns / 2) if took_ns else bound)
        return weighed / total if total else float(bound)

    def new_kinds(self) -> Collection[Kind]:
        """The kinds of the programs that wait to begin."""
        return self._new_kinds.keys()

    def check(self, *, now: Instant) -> None:
        """Assert that the sums are those of the programs."""
        assert Counter(self._new.values()) == self._new_kinds
        assert Counter(asked.program for asked in self._steps.values()) == self._under_way
        for program in self._live.keys() | self._over.keys():
            live = self._find(program)
            assert live is not None
            assert live.active == self._under_way.get(program, 0)
            assert (live.phase is _Phase.OVER) == (program in self._over)
        peak = self._current(now=now)
        if peak is not None:
            plain = self._add_up(now=now)
            nothing = _Sums()
            for key in peak.sums.keys() | plain.sums.keys():
                assert peak.sums.get(key, nothing) == plain.sums.get(key, nothing)
            assert peak.until <= plain.until

    def _known(self, *, now: Instant) -> _Peak:
        peak = self._peak
        if peak is None or not peak.since <= now < peak.until:
            peak = self._peak = self._add_up(now=now)
        return peak

    def _add_up(self, *, now: Instant) -> _Peak:
        peak = _Peak(ends=self.ends, since=now)
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

    def _find(self, program: ProgramId) -> _Live | None:
        return self._live.get(program) or self._over.get(program)

    def _forget(self, program: ProgramId) -> None:
        if self._live.pop(program, None) is None:
            self._over.pop(program, None)
        self._peak = None

    def _arrive(self, event: StepArrived, *, now: Instant) -> None:
        live = self._find(event.program)
        kind = kind_of(event)
        if live is None and event.goes_on and event.step_class.is_work:
            live = self._resume(event, kind, now=now)
        if live is None and event.step not in self._new:
            self._new[event.step] = kind
            self._new_kinds[kind] = self._new_kinds.get(kind, 0) + 1
        if not event.step_class.is_work:
            return
        self._steps[event.step] = _Asked(
            program=event.program,
            conversation=event.conversation,
            head=event.prefixes[0].tokens if len(event.prefixes) > 1 else 0,
            kind=kind,
            model=event.model,
            goes_on=event.lineage is not Lineage.NEW or event.home is not None,
            is_retry=event.retries is not None,
            arrived_at=now,
            sent_at=now,
        )
        self._under_way[event.program] = self._under_way.get(event.program, 0) + 1
        if live is None:
            return
        goes_on = event.lineage is Lineage.COMPACTS
        if goes_on and live.conversation == event.parent_conversation:
            live.conversation = event.conversation  # the same under another id
        self._count(event.program, 1, now=now)

    def _resume(self, event: StepArrived, kind: Kind, *, now: Instant) -> _Live:
        """A program that was begun before we were wants its memory from its first word here on."""
        head = event.prefixes[0].tokens if len(event.prefixes) > 1 else 0
        live = _Live(
            tokens=max(0, event.prompt_tokens - head),
            conversation=event.conversation,
            kind=kind,
            model=event.model,
            since=now,
            last_at=now,
            phase=_Phase.GOES_ON,
            went_on=True,
        )
        self._add(event.program, live, now=now)
        return live

    def _add(self, program: ProgramId, live: _Live, *, now: Instant) -> None:
        self._live[program] = live
        peak = self._current(now=now)
        if peak is not None:
            peak.add(live)
            peak.until = min(peak.until, after(now, _SILENT))
        if len(self._live) > self._programs_max:
            self._live.popitem(last=False)
            self._peak = None

    def _go_on(self, asked: _Asked) -> None:
        """A step is sent: its program goes on, whatever its latest answer looked like."""
        live = self._find(asked.program)
        if live is None or asked.is_retry:
            return
        live.came_back = live.came_back or live.phase is _Phase.OVER
        self._wake(asked.program, live)

    def _wake(self, program: ProgramId, live: _Live) -> None:
        if not live.went_on:
            live.went_on = True
            if self.ends.went_on(live.kind):
                self._peak = None
            elif self._peak is not None:
                self._peak.told = None  # its kind's chance is another
        if live.phase is _Phase.GOES_ON:
            return
        self._unlearn(live)
        live.phase = _Phase.GOES_ON
        self._over.pop(program, None)
        self._live[program] = live
        self._peak = None

    def _learn(self, live: _Live) -> None:
        """It is over as far as anyone can tell; taught once, until that is taken back."""
        if live.told is not None or live.was_single:
            return
        if live.went_on:
            took_ns = max(0, between(live.since, live.last_at) - live.held_ns)
            live.told = End(live.tokens, took_ns)
            self.ends.ended(live.kind, live.told)
        else:
            live.was_single = True
            self.ends.was_single(live.kind)
        self._peak = None

    def _unlearn(self, live: _Live) -> None:
        if live.told is not None:
            self.ends.take_back(live.kind, live.told)
        if live.was_single:
            self.ends.was_single(live.kind, times=-1.0)
        live.told, live.was_single = None, False
        self._peak = None

    def _count(self, program: ProgramId, steps: int, *, now: Instant) -> None:
        live = self._find(program)
        if live is None:
            return
        peak = self._current(now=now)
        if peak is not None:
            if not _is_heard(live, now=now):
                peak.add(live)
            peak.until = min(peak.until, after(now, _SILENT))
        live.active = max(0, live.active + steps)
        live.last_at = now
        (self._over if live.phase is _Phase.OVER else self._live).move_to_end(program)

    def _drop(self, step: StepId, *, now: Instant) -> None:
        found = self._take(step)
        if found is not None:
            self._count(found.program, -1, now=now)

    def _take(self, step: StepId) -> _Asked | None:
        """It is under way no more."""
        self._asks_no_more(step)
        found = self._steps.pop(step, None)
        if found is not None:
            left = self._under_way[found.program] - 1
            if left:
                self._under_way[found.program] = left
            else:
                del self._under_way[found.program]
        return found

    def _asks_no_more(self, step: StepId) -> None:
        kind = self._new.pop(step, None)
        if kind is not None:
            self._new_kinds[kind] -= 1
            if not self._new_kinds[kind]:
                del self._new_kinds[kind]

    def _finish(self, event: StepFinished, *, now: Instant) -> None:
        found = self._take(event.step)
        if found is None:
            return
        program = found.program
        live = self._find(program)
        tokens = max(0, event.usage.prompt_tokens + event.usage.output_tokens - found.head)
        if live is None:
            live = self._begin(event, found, tokens, now=now)
        else:
            live.held_ns += between(found.arrived_at, found.sent_at)
            if not found.is_retry:
                self._wake(program, live)  # what it said beside this step was not its last word
            self._count(program, -1, now=now)
        if tokens > live.tokens:
            if self._peak is not None:
                self._peak.add(live, -1)
            live.tokens = tokens
            if self._peak is not None:
                self._peak.add(live)
        if not live.went_on and live.phase is not _Phase.GOES_ON:
            self._open.append((program, now))
        is_main = found.conversation == live.conversation
        if is_main and event.is_last_word and not live.came_back:
            self._end(program, live)
            if live.went_on:
                self._learn(live)

    def _begin(self, event: StepFinished, found: _Asked, tokens: int, *, now: Instant) -> _Live:
        """A program was served here for the first time."""
        calls_tools = bool(event.tool_calls) or event.finish_reason in _TOOL_REASONS
        live = _Live(
            tokens=tokens,
            conversation=found.conversation,
            kind=found.kind,
            model=found.model,
            since=found.sent_at,
            last_at=now,
            phase=_Phase.GOES_ON if calls_tools or found.goes_on else _Phase.OPEN,
            active=self._under_way.get(found.program, 0),
            went_on=found.goes_on,
        )
        self._add(found.program, live, now=now)
        return live

    def _judge_the_silent(self, *, now: Instant) -> None:
        """Whoever might have gone on and did not was a single question, as far as can be told."""
        while self._open and after(self._open[0][1], _SOON) <= now:
            program, since = self._open.popleft()
            live = self._find(program)
            if live is None or live.went_on or live.active or live.last_at != since:
                continue
            self._end(program, live)
            self._learn(live)

    def _close(self, event: ProgramClosed, *, now: Instant) -> None:
        program = event.program
        if self._under_way.pop(program, 0):
            # It goes when these have ended, which is no second program's end.
            gone = [key for key, asked in self._steps.items() if asked.program == program]
            for key in gone:
                del self._steps[key]
        live = self._find(program)
        if live is not None:
            if event.is_end or not _is_heard(live, now=now):
                self._learn(live)
            self._forget(program)

    def _end(self, program: ProgramId, live: _Live) -> None:
        self._peak = None
        live.phase = _Phase.OVER
        self._live.pop(program, None)
        self._over[program] = live
        if len(self._over) > self._programs_max:
            self._over.popitem(last=False)
