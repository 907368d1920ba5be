"""From the specification of a workload to its programs: drawn, given to tenants, and timed.

Everything random comes from streams that are named by what they decide, so that, say, another
arrival process leaves the choice of programs as it was. The recordings that come out are those of
the traces, unscaled; what the workload wants done with them is noted on each (`RecordedLoad`), and
every command that plays a trace heeds it. Limits (`steps_max` and so on) are on none of them.
"""

from __future__ import annotations

import os.path
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model import ConfigError
from agentsched_bench.workload.arrivals import starts
from agentsched_bench.workload.generate import LogNormal, sample_path
from agentsched_bench.workload.importers.native import without_text
from agentsched_bench.workload.sample import parts_by_load, sample_programs
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.shared import limit_shared
from agentsched_bench.workload.spec import (
    SAMPLE,
    ArrivalProcess,
    Background,
    Closed,
    RecordedArrivals,
    Source,
    Tenant,
    Workload,
)
from agentsched_bench.workload.trace import (
    RecordedLoad,
    RecordedProgram,
    RecordedStep,
    Recording,
    TraceHeader,
    group_programs,
    read_trace,
    sha256_of,
)

#: The closed loop of programs that no tenant or background has to itself.
MAIN_POOL: Final = "main"
_PROGRAMS_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceUse:
    """A trace that a workload draws from, by content, so that a result can name it."""

    name: str
    sha256: str
    programs: int
    is_synthetic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The programs of a workload in the order of their starts; closed loops come first."""

    spec: Workload
    programs: tuple[RecordedProgram, ...]
    traces: tuple[TraceUse, ...]
    pools: Mapping[str, int] = field(default_factory=dict)

    def header(self) -> TraceHeader:
        """The whole specification, and what it was carried out with."""
        return TraceHeader(
            made_by="agentsched trace compose",
            workload={
                "spec": self.spec.model_dump(mode="json"),
                "traces": [msgspec.to_builtins(trace) for trace in self.traces],
                "pools": dict(self.pools),
                "programs": len(self.programs),
            },
        )

    def recordings(self) -> Iterator[Recording]:
        """All lines of the trace."""
        for program in self.programs:
            yield program.main
            yield from program.children


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWorkload:
    """A workload ready to be replayed or simulated.

    `starts_s` has one entry for each program: seconds after the beginning, or None for one that
    starts when its pool has room. `pools` are the sizes of the closed loops.
    """

    programs: tuple[PlannedProgram, ...]
    starts_s: tuple[float | None, ...]
    pools: Mapping[str, int]
    tenants: Mapping[str, str]
    weights: Mapping[str, float]
    traces: tuple[TraceUse, ...]
    spec: Workload
    #: Programs whose first call exceeds `context_tokens_max`.
    left_out: int = 0

    @property
    def without_ids(self) -> frozenset[str]:
        """Programs whose calls do not say whose they are."""
        return frozenset(plan.program for plan in self.programs if not plan.has_ids)


def compose(spec: Workload, *, folder: Path) -> Composition:
    """Carry out `spec`; traces are looked for from `folder`.

    Raises:
        ConfigError: a filter leaves nothing, or recorded starts are asked of programs without.
        TraceError: a trace cannot be read.
    """
    return _Composer(spec, folder).compose()


def shape_options(spec: Workload) -> ShapeOptions:
    """How all sources are made smaller that do not say it themselves."""
    return ShapeOptions(
        scale_tokens=spec.scale_tokens,
        scale_time=spec.scale_time,
        gap_cap_s=spec.gap_cap_s,
        steps_max=spec.steps_max,
        context_tokens_max=spec.context_tokens_max,
        cycle_tokens_per_s=spec.cycle_tokens_per_s,
    )


def plan_workload(composition: Composition) -> PlannedWorkload:
    """Plans for all programs; those whose first call exceeds `context_tokens_max` are left out.

    Raises:
        ConfigError: none is left.
    """
    spec = composition.spec
    options = shape_options(spec)
    shared = SharedPrompts.learn(composition.recordings())
    plans = plan_programs(composition.programs, options, shared=shared)
    if not plans:
        raise ConfigError("every program's first call exceeds context_tokens_max")
    if spec.shared_tokens_max is not None:
        plans = [limit_shared(plan, tokens=spec.shared_tokens_max) for plan in plans]
    return PlannedWorkload(
        programs=tuple(plans),
        starts_s=tuple(None if plan.pool is not None else plan.arrival_s for plan in plans),
        pools=composition.pools,
        tenants={plan.program: plan.tenant for plan in plans if plan.tenant is not None},
        weights={tenant.name: tenant.weight for tenant in spec.tenants},
        traces=composition.traces,
        spec=spec,
        left_out=len(composition.programs) - len(plans),
    )


@dataclass(slots=True)
class _Deck:
    """The programs of a source, dealt out in an order of the seed's; again when none is left."""

    source: Source
    name: str
    programs: list[RecordedProgram]
    rng: random.Random
    is_in_order: bool
    _left: list[RecordedProgram] = field(default_factory=list)
    _round: int = 0

    def deal(self) -> RecordedProgram:
        if not self._left:
            self._round += 1
            self._left = list(self.programs)
            if not self.is_in_order:
                self.rng.shuffle(self._left)
            self._left.reverse()
        program = self._left.pop()
        return program if self._round == 1 else _renamed(program, f"#{self._round}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """A program that was drawn, and whose it is."""

    program: RecordedProgram
    source: Source
    tenant: Tenant | None


_Stream = tuple[ArrivalProcess, str, list[Tenant]]


class _Composer:
    """One composition."""

    def __init__(self, spec: Workload, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._pools: dict[str, int] = {}
        self._traces: dict[str, TraceUse] = {}
        self._decks: list[_Deck] = []
        #: Where sources have counts: the sources of all programs, in the order of their drawing.
        self._order: list[_Deck] | None = None
        self._names: set[str] = set()

    def compose(self) -> Composition:
        spec = self._spec
        in_order = isinstance(spec.arrivals, RecordedArrivals)
        for index, source in enumerate(spec.sources):
            rng = self._rng(f"source/{index}")
            programs = self._read(source.trace, source.only)
            name = source.name or f"source-{index + 1}"
            self._decks.append(_Deck(source, name, programs, rng, in_order))
        made: list[tuple[float, RecordedProgram]] = []
        streams = list(self._streams())
        drawn = 0
        for (process, pool, tenants), wanted in zip(streams, self._counts(streams), strict=True):
            made.extend(self._stream(process, pool, tenants, wanted=wanted, begin=drawn))
            drawn += wanted or 0
        for index, background in enumerate(spec.background):
            made.extend(self._background(background, index))
        # Stable: equal starts keep the order in which they were made.
        made.sort(key=lambda pair: pair[0])
        programs = _distinct([program for _, program in made])
        if not programs:
            raise ConfigError("the workload has no program: duration_s is too short for its rate")
        return Composition(
            spec=spec,
            programs=tuple(programs),
            traces=tuple(self._traces.values()),
            pools=self._pools,
        )

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"compose/{self._spec.seed}/{what}")

    def _read(self, trace: str, only: Sequence[str]) -> list[RecordedProgram]:
        path = sample_path() if trace == SAMPLE else (self._folder / trace)
        if not path.exists():
            # Ours are other people's recordings, and come with no checkout.
            raise ConfigError(
                f"{os.path.normpath(path)}: no such trace (docs/benchmarks.md says where they come "
                'from; trace = "sample" is a synthetic one that is always there)'
            )
        recordings = read_trace(path)
        if not self._spec.text:
            recordings = (without_text(recording) for recording in recordings)
        programs = group_programs(recordings)
        shared = SharedPrompts.learn(r for p in programs for r in (p.main, *p.children))
        if trace not in self._traces:
            self._traces[trace] = TraceUse(
                name=path.name,
                sha256=sha256_of(path),
                programs=len(programs),
                is_synthetic=all(program.main.synthetic for program in programs),
            )
        chosen = sample_programs(programs, count=None, rng=random.Random(0), only=only)
        return self._apart([_sharing(program, shared) for program in chosen])

    def _apart(self, programs: Sequence[RecordedProgram]) -> list[RecordedProgram]:
        """The programs, under other names where an earlier source has one of the name.

        By source and not by arrival: of sources that are scaled each in its own way, a name is the
        same program for every seed.
        """
        found: list[RecordedProgram] = []
        for program in programs:
            name, number = program.main.session_id, 1
            while name in self._names:
                number += 1
                name = f"{program.main.session_id}~{number}"
            self._names.add(name)
            found.append(program if number == 1 else _renamed(program, f"~{number}"))
        return found

    def _streams(self) -> Iterator[_Stream]:
        """Arrival processes with the tenants whose programs they bring; none: nobody's."""
        common = [tenant for tenant in self._spec.tenants if tenant.arrivals is None]
        if common or not self._spec.tenants:
            yield self._spec.arrivals, MAIN_POOL, common
        for tenant in self._spec.tenants:
            if tenant.arrivals is not None:
                yield tenant.arrivals, tenant.name, [tenant]

    def _stream(
        self,
        process: ArrivalProcess,
        pool: str,
        tenants: list[Tenant],
        *,
        wanted: int | None,
        begin: int,
    ) -> list[tuple[float, RecordedProgram]]:
        """`wanted` programs (None: as many as come in the time), after `begin` of other streams."""
        rng = self._rng(f"arrivals/{pool}")
        if isinstance(process, RecordedArrivals):
            count = wanted if wanted is not None else self._available()
            return self._recorded(process, self._draw(count, tenants, pool, begin=begin))
        if isinstance(process, Closed):
            assert wanted is not None  # the specification says so
            self._pools[pool] = process.concurrency
            drawn = self._draw(wanted, tenants, pool, begin=begin)
            return [(0.0, self._loaded(one, start_s=None, pool=pool)) for one in drawn]
        times = self._times(process, wanted, rng=rng)
        drawn = self._draw(len(times), tenants, pool, begin=begin)
        return [
            (at, self._loaded(one, start_s=at, pool=None))
            for at, one in zip(times, drawn, strict=True)
        ]

    def _times(
        self, process: ArrivalProcess, wanted: int | None, *, rng: random.Random
    ) -> list[float]:
        limit_s = self._spec.duration_s
        times = starts(process, rng=rng)
        if limit_s is not None:
            times = takewhile(lambda at: at < limit_s, times)
        return list(islice(times, _PROGRAMS_MAX if wanted is None else wanted))

    def _counts(self, streams: Sequence[_Stream]) -> list[int | None]:
        """How many programs each stream brings; None: as many as come in the time."""
        spec = self._spec
        counts = [source.programs for source in spec.sources]
        known = [count for count in counts if count is not None]
        total = spec.programs
        if len(known) == len(counts):
            total = sum(known) if total is None else min(total, sum(known))
        if total is None:
            return [None] * len(streams)
        loads = [sum(tenant.load for tenant in tenants) for _, _, tenants in streams]
        return list(parts_by_load(loads if spec.tenants else [1.0], total))

    def _available(self) -> int:
        return sum(len(deck.programs) for deck in self._decks)

    def _draw(
        self, count: int, tenants: Sequence[Tenant], stream: str, *, begin: int
    ) -> list[_Drawn]:
        """`count` programs from the sources by their weights, each with its tenant."""
        rng = self._rng(f"draw/{stream}")
        order = self._deck_order(count, rng, begin=begin)
        owners = _shares(tenants, count)
        rng.shuffle(owners)
        by_name = {tenant.name: tenant for tenant in self._spec.tenants}
        drawn: list[_Drawn] = []
        for index, deck in enumerate(order):
            owner = owners[index] if owners else None
            if deck.source.tenant is not None:
                owner = by_name.get(deck.source.tenant, Tenant(name=deck.source.tenant))
            drawn.append(_Drawn(program=deck.deal(), source=deck.source, tenant=owner))
        return drawn

    def _deck_order(self, count: int, rng: random.Random, *, begin: int) -> list[_Deck]:
        counted = [deck for deck in self._decks if deck.source.programs is not None]
        if len(counted) == len(self._decks):
            if self._order is None:
                order = [deck for deck in counted for _ in range(deck.source.programs or 0)]
                rng.shuffle(order)
                self._order = order
            # Tenants with arrivals of their own take their share of the same counts.
            return self._order[begin : begin + count]
        if isinstance(self._spec.arrivals, RecordedArrivals):
            whole = [deck for deck in self._decks for _ in deck.programs]
            return [whole[index % len(whole)] for index in range(count)]
        weights = [deck.source.weight for deck in self._decks]
        return rng.choices(self._decks, weights=weights, k=count)

    def _recorded(
        self, process: RecordedArrivals, drawn: Sequence[_Drawn]
    ) -> list[tuple[float, RecordedProgram]]:
        known = [one.program.main.start_s for one in drawn]
        missing = sum(at is None for at in known)
        if missing:
            raise ConfigError(f"{missing} programs have no recorded start: choose other arrivals")
        first = min((at for at in known if at is not None), default=0.0)
        found: list[tuple[float, RecordedProgram]] = []
        for one in drawn:
            scale = (one.source.scale_time or self._spec.scale_time) * process.speed
            at = ((one.program.main.start_s or 0.0) - first) / scale
            if self._spec.duration_s is None or at < self._spec.duration_s:
                found.append((at, self._loaded(one, start_s=at, pool=None)))
        return found

    def _loaded(self, drawn: _Drawn, *, start_s: float | None, pool: str | None) -> RecordedProgram:
        """The program with what the workload wants noted on it."""
        source, spec = drawn.source, self._spec
        cap_s = spec.gap_cap_s if source.gap_cap_s is None else source.gap_cap_s
        load = RecordedLoad(
            traffic=source.traffic,
            has_ids=source.has_ids,
            pool=pool,
            scale_tokens=source.scale_tokens or spec.scale_tokens,
            scale_time=source.scale_time or spec.scale_time,
            gap_cap_s=cap_s,
        )
        tenant = None if drawn.tenant is None else drawn.tenant.name
        return _with_load(drawn.program, load, start_s=start_s, tenant=tenant)

    def _background(
        self, background: Background, index: int
    ) -> list[tuple[float, RecordedProgram]]:
        spec, rng = self._spec, self._rng(f"background/{index}")
        name = background.name or f"{background.traffic}-{index + 1}"
        process = background.arrivals
        recorded = [] if background.trace is None else self._read(background.trace, ())
        pool: str | None = None
        times: list[float | None]
        if isinstance(process, Closed):
            pool = f"background/{name}"
            self._pools[pool] = process.concurrency
            times = [None] * (background.programs or len(recorded))
        elif isinstance(process, RecordedArrivals):
            return self._recorded_background(background, process, recorded)
        else:
            wanted = background.programs or (len(recorded) if recorded else None)
            times = list(self._times(process, wanted, rng=self._rng(f"background-times/{index}")))
        deck = None
        if recorded:
            source = Source(trace=background.trace or "")
            deck = _Deck(source, name, recorded, rng, is_in_order=False)
        found: list[tuple[float, RecordedProgram]] = []
        for number, at in enumerate(times):
            # What is drawn for another seed is another program, and is called otherwise.
            program = (
                _single(background, name=f"{name}/{spec.seed}/{number}", kind=name, rng=rng)
                if deck is None
                else deck.deal()
            )
            found.append((at or 0.0, self._behind(program, background, start_s=at, pool=pool)))
        return found

    def _recorded_background(
        self,
        background: Background,
        process: RecordedArrivals,
        recorded: Sequence[RecordedProgram],
    ) -> list[tuple[float, RecordedProgram]]:
        if not recorded:
            raise ConfigError("recorded background arrivals need a trace")
        known = [(p.main.start_s, p) for p in recorded if p.main.start_s is not None]
        if len(known) < len(recorded):
            missing = len(recorded) - len(known)
            raise ConfigError(f"{missing} background programs have no recorded start")
        first = min(at for at, _ in known)
        scale = self._spec.scale_time * process.speed
        found = [((at - first) / scale, program) for at, program in known]
        limit_s = self._spec.duration_s
        kept = [(at, p) for at, p in found if limit_s is None or at < limit_s]
        return [
            (at, self._behind(program, background, start_s=at, pool=None))
            for at, program in kept[: background.programs]
        ]

    def _behind(
        self,
        program: RecordedProgram,
        background: Background,
        *,
        start_s: float | None,
        pool: str | None,
    ) -> RecordedProgram:
        load = RecordedLoad(
            traffic=background.traffic,
            has_ids=background.has_ids,
            pool=pool,
            scale_tokens=self._spec.scale_tokens,
            scale_time=self._spec.scale_time,
            gap_cap_s=self._spec.gap_cap_s,
        )
        return _with_load(program, load, start_s=start_s, tenant=background.tenant)


def _shares(tenants: Sequence[Tenant], count: int) -> list[Tenant]:
    """`count` tenants by their loads: the largest remainders get what rounding leaves."""
    if not tenants:
        return []
    parts = parts_by_load([tenant.load for tenant in tenants], count)
    return [tenant for tenant, part in zip(tenants, parts, strict=True) for _ in range(part)]


def _single(background: Background, *, name: str, kind: str, rng: random.Random) -> RecordedProgram:
    """One synthetic call of the background."""
    prompt = _log_normal(background.prompt_tokens, rng) + background.shared_tokens
    step = RecordedStep(
        step=0,
        input_tokens=prompt,
        output_tokens=_log_normal(background.output_tokens, rng),
        prefix_tokens=background.shared_tokens,
    )
    main = Recording(
        session_id=f"background/{name}",
        source=f"background/{kind}",
        workload=str(background.traffic),
        token_source={"input": "synthetic", "output": "synthetic", "result": None},
        synthetic=True,
        steps=(step,),
    )
    return RecordedProgram(main=main)


def _log_normal(shape: tuple[float, float], rng: random.Random) -> int:
    return max(1, round(LogNormal(p50=shape[0], p90=shape[1], low=1, high=1e6).draw(rng)))


def _sharing(program: RecordedProgram, shared: SharedPrompts) -> RecordedProgram:
    """The program with what its prompts share noted on them: a part of a trace cannot learn it."""

    def noted(recording: Recording) -> Recording:
        head = recording.steps[0]
        tokens = shared.tokens(recording)
        if not tokens or head.prefix_tokens == tokens or head.hash_ids is not None:
            return recording
        first = msgspec.structs.replace(head, prefix_tokens=tokens)
        return msgspec.structs.replace(recording, steps=(first, *recording.steps[1:]))

    return RecordedProgram(
        main=noted(program.main), children=tuple(noted(child) for child in program.children)
    )


def _with_load(
    program: RecordedProgram, load: RecordedLoad, *, start_s: float | None, tenant: str | None
) -> RecordedProgram:
    owner = tenant if tenant is not None else program.main.tenant
    start_s = None if start_s is None else round(start_s, 6)
    main = msgspec.structs.replace(program.main, load=load, start_s=start_s, tenant=owner)
    children = tuple(
        msgspec.structs.replace(child, load=load, tenant=owner) for child in _placed(program)
    )
    return RecordedProgram(main=main, children=children)


def _placed(program: RecordedProgram) -> tuple[Recording, ...]:
    """Sub-agents placed by their parents' clocks: the program's own start becomes another one."""
    known = {row.session_id: row for row in (program.main, *program.children)}
    placed: list[Recording] = []
    for child in program.children:
        parent = known.get(child.parent or "", program.main)
        if child.parent_t_s is None and child.start_s is not None and parent.start_s is not None:
            offset_s = round(max(0.0, child.start_s - parent.start_s), 6)
            child = msgspec.structs.replace(child, parent_t_s=offset_s)
        placed.append(msgspec.structs.replace(child, start_s=None))
    return tuple(placed)


def _renamed(program: RecordedProgram, suffix: str) -> RecordedProgram:
    """The same program under another name, so that its own content is other content.

    Prefix blocks get another scope, too: those of one round go on sharing with each other.
    """

    def named(recording: Recording) -> Recording:
        scope = recording.hash_scope or recording.source
        steps = tuple(
            msgspec.structs.replace(
                step,
                tools=tuple(
                    msgspec.structs.replace(tool, child=f"{tool.child}{suffix}")
                    if tool.child is not None
                    else tool
                    for tool in step.tools
                ),
            )
            if any(tool.child is not None for tool in step.tools)
            else step
            for step in recording.steps
        )
        return msgspec.structs.replace(
            recording,
            session_id=f"{recording.session_id}{suffix}",
            parent=None if recording.parent is None else f"{recording.parent}{suffix}",
            hash_scope=None if recording.block_size is None else f"{scope}{suffix}",
            steps=steps,
        )

    return RecordedProgram(
        main=named(program.main), children=tuple(named(child) for child in program.children)
    )


def _distinct(programs: Sequence[RecordedProgram]) -> list[RecordedProgram]:
    """Programs that still have one name get different ones: a trace may have that of a round."""
    used: dict[str, int] = {}
    found: list[RecordedProgram] = []
    for program in programs:
        name = program.main.session_id
        used[name] = used.get(name, 0) + 1
        found.append(program if used[name] == 1 else _renamed(program, f"~{used[name]}"))
    return found
