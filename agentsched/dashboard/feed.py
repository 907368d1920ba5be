"""The feed: one reader of the journal that turns what changed into frames, for all who watch.

Turns only mark what they touched; rows are made twice a second, once for all watchers, and only
while there are any. A watcher that reads too slowly gets everything again instead of every change.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final

import msgspec

from agentsched.dashboard.digest import digest
from agentsched.dashboard.rows import (
    MemberView,
    engine_row,
    oldest_wait_s,
    program_row,
    seconds_of,
    tenant_rows,
)
from agentsched.dashboard.scoping import Own, own_part
from agentsched.dashboard.shapes import (
    SAMPLE_TENANTS_MAX,
    Decision,
    EngineRow,
    EngineSample,
    Frame,
    Overview,
    ProgramRow,
    Replicas,
    Sample,
    TenantSample,
)
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.kernel.doing import by_program
from agentsched.kernel.holdings import held_tokens
from agentsched.model import (
    Dispatch,
    Instant,
    Pin,
    PinId,
    Prefetch,
    ProgramId,
    StepArrived,
    StepId,
    TenantId,
    Unpin,
    between,
    in_seconds,
)
from agentsched.version import __version__

PROGRAMS_MAX: Final = 2_000
_TENANTS_MAX: Final = 50
_DECISIONS_KEPT: Final = 300
_DECISIONS_PER_FRAME: Final = 60
_WAITS_KEPT: Final = 512
_SAMPLES_KEPT: Final = 450
_FRAMES_BEHIND_MAX: Final = 4
_PINS_REMEMBERED: Final = 10_000


class Watcher:
    """One reader of frames, as encoded. `tenant` None sees everything."""

    def __init__(self, tenant: str | None = None) -> None:
        self.tenant = tenant
        self.frames: asyncio.Queue[bytes] = asyncio.Queue(_FRAMES_BEHIND_MAX)
        #: It missed a frame, so that changes alone would mislead it.
        self.is_behind = True

    def offer(self, frame: bytes) -> None:
        try:
            self.frames.put_nowait(frame)
        except asyncio.QueueFull:
            self.is_behind = True


class Feed:
    """A sink of the journal. All methods are for the event loop's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        members: Callable[[], Iterable[MemberView]],
        is_draining: Callable[[], bool],
        replicas: Callable[[], Replicas | None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._members = members
        self._is_draining = is_draining
        self._replicas = replicas
        self._watchers: list[Watcher] = []
        #: Programs that a turn was about since the latest frame; bounded by the live ones.
        self._touched: dict[ProgramId, None] = {}
        #: Whose the live steps are.
        self._owners: dict[StepId, tuple[ProgramId, TenantId]] = {}
        self._pins: dict[PinId, Pin | Prefetch] = {}
        self._waits: deque[float] = deque(maxlen=_WAITS_KEPT)
        self._decisions: deque[Decision] = deque(maxlen=_DECISIONS_KEPT)
        self._decided = self._told = 0
        self._history: deque[Sample] = deque(maxlen=_SAMPLES_KEPT)
        self._unsent: list[Sample] = []
        #: Programs that watchers know of, and whose they are.
        self._shown: dict[str, str] = {}
        for step in scheduler.steps.values():
            self._owners[step.step] = step.program, step.tenant

    def write(self, entry: JournalEntry) -> None:
        """Take in a turn: mark its programs, keep its decisions."""
        event = entry.event
        if isinstance(event, StepArrived):
            self._owners[event.step] = event.program, event.tenant
        self._touch(event)
        steps = self._scheduler.steps
        for command in entry.commands:
            self._touch(command)
            if isinstance(command, Dispatch):
                step = steps[command.step]
                self._waits.append(in_seconds(between(step.arrived_at, entry.now)))
        for decision in digest(entry, steps, self._pins, self._owners):
            self._decisions.append(decision)
            self._decided += 1
        self._remember_pins(entry)
        for part in (event, *entry.commands):
            ended = getattr(part, "step", None)
            if ended is not None and ended not in steps:
                self._owners.pop(ended, None)

    def _touch(self, part: object) -> None:
        step = getattr(part, "step", None)
        program = getattr(part, "program", None)
        if program is None and step is not None:
            program = self._owners[step][0] if step in self._owners else None
        if program is None and isinstance(part, Unpin):
            pin = self._pins.get(part.pin)
            program = pin.program if pin is not None else None
        if program is not None:
            self._touched[program] = None

    def _remember_pins(self, entry: JournalEntry) -> None:
        for command in entry.commands:
            if isinstance(command, Pin | Prefetch):
                self._pins[command.pin] = command
                if len(self._pins) > _PINS_REMEMBERED:
                    del self._pins[next(iter(self._pins))]
            elif isinstance(command, Unpin):
                pin = self._pins.pop(command.pin, None)
                if pin is not None:
                    self._touched[pin.program] = None

    def watch(self, tenant: str | None = None) -> Watcher:
        """Begin to watch all, or what is a tenant's; the first frame, at the next beat, is full."""
        watcher = Watcher(tenant)
        self._watchers.append(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Stop watching."""
        self._watchers.remove(watcher)

    def sample(self, *, now: Instant) -> None:
        """Enter this moment into the history."""
        rows = tenant_rows(self._scheduler, now=now, rows_max=SAMPLE_TENANTS_MAX)
        statistics = self._scheduler.statistics()
        taken = Sample(
            at=seconds_of(now),
            waiting_steps=statistics.waiting_steps,
            running_steps=statistics.running_steps,
            pins=statistics.pins,
            wait_p95_s=_quantile(sorted(self._waits), 0.95),
            engines=tuple(_engine_sample(row) for row in self._engine_rows()),
            tenants=tuple(TenantSample(r.tenant, r.charged_tokens, r.entitled) for r in rows),
        )
        self._history.append(taken)
        self._unsent.append(taken)

    def beat(self, *, now: Instant) -> None:
        """Tell all watchers what changed since the beat before."""
        if not self._watchers:
            self._forget()
            self._shown.clear()
            return
        owners = dict(self._shown)
        everyone_is_new = all(w.is_behind for w in self._watchers)
        changes = None if everyone_is_new else self._changes(now=now)
        owners.update(self._shown)
        #: Each frame is encoded once for each that sees something else of it.
        encoded: dict[tuple[bool, str | None], bytes] = {}
        for watcher in self._watchers:
            if watcher.is_behind and watcher.frames.full():
                continue
            key = watcher.is_behind, watcher.tenant
            if key not in encoded:
                if watcher.is_behind or changes is None:
                    frame = self.full(now=now, tenant=watcher.tenant, owners=owners)
                else:
                    frame = self._seen_by(changes, watcher.tenant, owners, now=now)
                encoded[key] = msgspec.json.encode(frame)
            watcher.is_behind = False
            watcher.offer(encoded[key])
        self._forget()

    def _seen_by(
        self, frame: Frame, tenant: str | None, owners: Mapping[str, str], *, now: Instant
    ) -> Frame:
        """The frame, or a tenant's part of it."""
        if tenant is None:
            return frame
        return own_part(frame, Own.of(self._scheduler, tenant, now=now), owners=owners)

    def _forget(self) -> None:
        self._touched.clear()
        self._unsent.clear()
        self._told = self._decided

    def full(
        self,
        *,
        now: Instant,
        tenant: str | None = None,
        owners: Mapping[str, str] | None = None,
    ) -> Frame:
        """Everything, as of now, or everything of a tenant's."""
        # Least recently active first in the books; people want the newest.
        newest = reversed(list(self._scheduler.programs.values()))
        own = (r for r in newest if tenant is None or r.tenant == tenant)
        latest = list(islice(own, PROGRAMS_MAX))
        steps = by_program(self._scheduler.steps)
        rows = [program_row(self._scheduler, r, steps.get(r.program, ())) for r in latest]
        self._shown.update({r.program: r.tenant for r in latest})
        decisions, history = tuple(self._decisions), tuple(self._history)
        frame = self._frame(rows, (), decisions, history, now, full=True)
        return self._seen_by(frame, tenant, {**(owners or {}), **self._shown}, now=now)

    def last(self, *, now: Instant, tenant: str | None = None) -> Frame:
        """How it stands, without what changed: the last word to one that watches."""
        frame = self._frame((), (), (), (), now, full=False)
        return self._seen_by(frame, tenant, {}, now=now)

    def _changes(self, *, now: Instant) -> Frame:
        programs = self._scheduler.programs
        alive = [programs[key] for key in self._touched if key in programs]
        steps = by_program(self._scheduler.steps)
        rows = [program_row(self._scheduler, r, steps.get(r.program, ())) for r in alive]
        gone = [key for key in self._shown if ProgramId(key) not in programs]
        for key in gone:
            del self._shown[key]
        self._shown.update({r.program: r.tenant for r in alive})
        fresh = min(self._decided - self._told, len(self._decisions), _DECISIONS_PER_FRAME)
        told = tuple(islice(self._decisions, len(self._decisions) - fresh, None))
        return self._frame(rows, gone, told, tuple(self._unsent), now, full=False)

    def _frame(
        self,
        rows: Iterable[ProgramRow],
        gone: Iterable[str],
        decisions: tuple[Decision, ...],
        history: tuple[Sample, ...],
        now: Instant,
        *,
        full: bool,
    ) -> Frame:
        left_out = 0 if full else self._decided - self._told - len(decisions)
        return Frame(
            now=seconds_of(now),
            is_full=full,
            overview=self._overview(now=now),
            engines=self._engine_rows(),
            tenants=tenant_rows(self._scheduler, now=now, rows_max=_TENANTS_MAX),
            programs=tuple(rows),
            gone=tuple(gone),
            programs_total=len(self._scheduler.programs),
            decisions=decisions,
            decisions_left_out=left_out,
            history=history,
            tenants_total=len(self._scheduler.tenants),
        )

    def _engine_rows(self) -> tuple[EngineRow, ...]:
        scheduler = self._scheduler
        return tuple(
            engine_row(
                scheduler,
                member,
                scheduler.engines.get(member.id),
                held_tokens=held_tokens(scheduler, member.id),
            )
            for member in self._members()
        )

    def _overview(self, *, now: Instant) -> Overview:
        scheduler = self._scheduler
        statistics = scheduler.statistics()
        waits = sorted(self._waits)
        sensible, bound = scheduler.sensible_wait(), scheduler.limits.wait_ns_max
        accounts = scheduler.tenants.values()
        return Overview(
            version=__version__,
            profile=scheduler.policies.profile,
            policies=dict(scheduler.policies.names),
            is_draining=self._is_draining(),
            waiting_steps=statistics.waiting_steps,
            running_steps=statistics.running_steps,
            pins=statistics.pins,
            oldest_wait_s=oldest_wait_s(scheduler.steps.values(), now=now),
            wait_p50_s=_quantile(waits, 0.5),
            wait_p95_s=_quantile(waits, 0.95),
            wait_max_s=_quantile(waits, 1.0),
            max_wait_s=in_seconds(bound),
            sensible_wait_s=None if sensible is None else round(in_seconds(sensible), 1),
            is_bound_too_tight=sensible is not None and bound < sensible,
            steps_total=statistics.steps_total,
            rejected_total=statistics.rejected_total,
            retried_total=statistics.retried_total,
            yielded_total=statistics.yielded_total,
            policy_errors_total=statistics.policy_errors_total,
            prompt_tokens_total=sum(a.prompt_tokens for a in accounts),
            cached_tokens_total=sum(a.cached_here for a in accounts),
            untold_tokens_total=sum(a.untold_tokens for a in accounts),
            replicas=self._replicas(),
        )


def _engine_sample(row: EngineRow) -> EngineSample:
    def part(tokens: int | None) -> float | None:
        return round((tokens or 0) / row.kv_tokens, 4) if row.kv_tokens else None

    return EngineSample(
        row.engine,
        row.running_steps or 0,
        row.kv_usage,
        part(row.pinned_tokens),
        part(row.wanted_tokens),
    )


def _quantile(sorted_values: list[float], level: float) -> float | None:
    if not sorted_values:
        return None
    return round(sorted_values[max(0, math.ceil(level * len(sorted_values)) - 1)], 4)
