"""Replay a journal, fit the engines to it, predict it and then other policies, and compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Final, Literal

import msgspec

from agentsched.compose import SchedulerConfig, build_scheduler, config_of
from agentsched.kernel import JournalError, JournalHeader
from agentsched.model import (
    Capabilities,
    ConfigError,
    Nanos,
    TenantConfigured,
    between,
    in_seconds,
)
from agentsched_bench.calibrate.fit import SPEEDS, Fit, Served, fit_costs
from agentsched_bench.calibrate.model_file import FitRow
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.requests import EngineConfig, Scheduling
from agentsched_bench.replay.host import ReplayHost
from agentsched_bench.replay.journal_file import JournalReader
from agentsched_bench.sim.arms import Arm
from agentsched_bench.sim.clients import Endings, ProgramRun
from agentsched_bench.sim.engines import EngineTraits
from agentsched_bench.sim.host import SimHost
from agentsched_bench.sim.prompts import SimPrompts
from agentsched_bench.whatif.past import Past, PastReader, PastStep
from agentsched_bench.whatif.plans import PastPlan, plans_of
from agentsched_bench.workload.statistics import Spread, spread

SCHEMA: Final = "agentsched.whatif/1"

#: What vLLM has where nothing else is said.
_RUNNING_MAX: Final = 256
_STEP_TOKENS: Final = 2048
_BLOCK_SIZE: Final = 16
#: From where on a prediction of itself is too far off to believe figures of others.
_WEAK: Final = 0.2
_WEAK_CACHED: Final = 0.1
#: With more of the programs missing than this, those that are left are no fair sample.
_GAVE_UP_MAX: Final = 0.05


class TenantPart(msgspec.Struct, kw_only=True):
    """One tenant's programs. `wait_max_s` is for a first token; 0 where none is known."""

    programs: int
    jct_mean_s: float
    wait_max_s: float


class Course(msgspec.Struct, kw_only=True):
    """One course of events: as recorded, or as the model has it under some policy.

    `first_token_s` is of the answers that were streamed; the model knows it of all. `untold_tokens`
    are those of prompts of which no engine told what it had cached.
    """

    name: str
    programs: int
    calls: int
    jct_s: Spread
    first_token_s: Spread
    held_s: Spread
    prompt_tokens: int
    cached_tokens: int
    tenants: dict[str, TenantPart]
    failed: int = 0
    gave_up: float | None = None
    untold_tokens: int = 0

    @property
    def cached_share(self) -> float | None:
        """Of the prompt tokens of which it was told; None: of none."""
        told = self.prompt_tokens - self.untold_tokens
        return self.cached_tokens / told if told > 0 else None

    @property
    def is_sample(self) -> bool:
        """Whether so few programs gave up (`failed`) that the times of the others mean anything."""
        return self.gave_up_share <= _GAVE_UP_MAX

    @property
    def gave_up_share(self) -> float:
        """How many of the programs gave up, of those of all plays where there were several."""
        if self.gave_up is not None:
            return self.gave_up
        return self.failed / max(1, self.programs + self.failed)


class Trust(msgspec.Struct, kw_only=True):
    """How far a prediction may be believed.

    `entries` of the journal were replayed; `diverged_at` is the first that decided otherwise (then
    `divergence` says how). `fit` is how well engine times are reproduced call by call.
    `self_error`: predicted mean completion time under the recorded policy over the recorded one,
    less 1. `program_error`: median of |predicted - recorded| / recorded of single programs.
    `gave_up`: the share of programs that gave up in the model under the recorded policy, although
    they did not. `cached_error` is None where no engine told what it had cached. `is_cut`: the
    journal broke off, and all this is of what came before. `unlike`:
    in what the model differs from what happened, as far as the journal tells.
    """

    entries: int
    diverged_at: int | None
    divergence: str
    fit: FitRow
    self_error: float
    program_error: float
    cached_error: float | None
    unfinished: int
    gave_up: float = 0.0
    is_cut: bool = False
    unlike: list[str] = []

    @property
    def noise(self) -> float:
        """Differences in mean completion time below this mean nothing."""
        return max(0.05, abs(self.self_error))

    @property
    def is_weak(self) -> bool:
        """The model does not reproduce what happened: it may be right about directions at most."""
        is_off = self.noise > _WEAK or abs(self.cached_error or 0.0) > _WEAK_CACHED
        return is_off or self.gave_up > _GAVE_UP_MAX


class Answer(msgspec.Struct, kw_only=True):
    """What a journal says about other policies, as it lies in the file.

    `ratios` are mean completion times over that of the recorded policy, both by the model. Of a
    journal that does not replay nothing is predicted: `others` and `ratios` are empty. `believe`
    is what of it deserves it (in answers of before it says nothing).
    """

    schema: str = SCHEMA
    journal: str
    policy: str
    believe: Literal["", "figures", "directions", "nothing"] = ""
    trust: Trust
    recorded: Course
    same: Course
    others: list[Course]
    ratios: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a journal does not tell about engines; None: what vLLM has by default."""

    kv_tokens: int | None = None
    block_size: int | None = None
    running_max: int | None = None
    step_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Other engines than the recorded ones: how many, and tokens of KV in each. None: as they were.

    More engines than were recorded are like the recorded ones, in turn.
    """

    engines: int | None = None
    pool_tokens: int | None = None

    def __str__(self) -> str:
        count = "" if self.engines is None else f"{self.engines} engines"
        pool = "" if self.pool_tokens is None else f"pools of {self.pool_tokens} tokens"
        return ", ".join(part for part in (count, pool) if part)

    def of(self, recorded: Sequence[EngineConfig], *, longest: int) -> list[EngineConfig]:
        """The engines; the longest call has so many tokens.

        Raises:
            ConfigError: a pool is too small for it.
        """
        count = self.engines or len(recorded)
        found = [recorded[number % len(recorded)] for number in range(count)]
        return [self._sized(engine, longest=longest) for engine in found]

    def _sized(self, engine: EngineConfig, *, longest: int) -> EngineConfig:
        if self.pool_tokens is None:
            return engine
        blocks = self.pool_tokens // engine.block_size + 1
        room = (blocks - 1) * engine.block_size
        if room < longest:
            raise ConfigError(
                f"a pool of {self.pool_tokens} tokens cannot hold a call of {longest}"
            )
        return replace(engine, blocks=blocks, max_model_len=min(engine.max_model_len, room))


AS_RECORDED: Final = Fleet()


def read_and_replay(
    journal: JournalReader, *, trust_anyway: bool = False
) -> tuple[Past, int, int | None, str]:
    """Replay an open journal while reading it: the past, turns, first divergence and its text.

    After a divergence the rest is read but not replayed: it could not but differ. So is a journal
    that begins in the middle, where it is trusted anyway.

    Raises:
        JournalError: it begins in the middle.
    """
    host: ReplayHost | None = ReplayHost(build_scheduler(config_of(journal.header)))
    reader = PastReader()
    entries, diverged_at, text = 0, None, ""
    for entry in journal:
        if not entries and entry.seq:
            text = (
                f"the journal begins at entry {entry.seq}: what came before is not in it, so it "
                "cannot be replayed"
            )
            if not trust_anyway:
                raise JournalError(f"{text} (--trust-anyway asks it all the same)")
            host, diverged_at = None, entry.seq
        reader.feed(entry)
        entries += 1
        if host is None:
            continue
        divergence = host.feed(entry)
        if divergence is not None:
            host, diverged_at, text = None, entry.seq, str(divergence)
    return reader.end(), entries, diverged_at, text


def engines_of(past: Past, sizes: Sizes) -> list[EngineConfig]:
    """The engines of a journal, with costs still to be fitted.

    Raises:
        ConfigError: the size of a cache is told neither by the journal nor by `sizes`, or blocks
            are not of one size.
    """
    if not past.engines:
        raise ConfigError("the journal knows no engine")
    engines = [_engine(found, sizes, key) for key, found in past.engines.items()]
    if len(found := sorted({engine.block_size for engine in engines})) > 1:
        raise ConfigError(f"blocks of {found} tokens: give one size to all with --block-size")
    return engines


def _engine(found: Capabilities, sizes: Sizes, key: str) -> EngineConfig:
    tokens = sizes.kv_tokens or found.kv_tokens
    if tokens is None:
        raise ConfigError(f"engine {key} did not say what its cache holds: give --kv-tokens")
    size = sizes.block_size or found.block_size or _BLOCK_SIZE
    blocks = tokens // size + 1
    return EngineConfig(
        cost=CPU_2CORE,
        blocks=blocks,
        block_size=size,
        max_num_seqs=sizes.running_max or found.running_max or _RUNNING_MAX,
        max_num_batched_tokens=sizes.step_tokens or _STEP_TOKENS,
        max_model_len=min(found.context_max or tokens, (blocks - 1) * size),
        scheduling=Scheduling.PRIORITY if found.priority else Scheduling.FCFS,
    )


def served_of(plans: Sequence[PastPlan], *, block_size: int) -> list[Served]:
    """The calls as the engines had them."""
    found: list[Served] = []
    for past in plans:
        steps = {
            str(key): [step for step in past.steps if step.arrived.conversation == key]
            for key in dict.fromkeys(step.arrived.conversation for step in past.steps)
        }
        for conversation in past.start.plan.conversations:
            prompts = SimPrompts(conversation, copy="", block_size=block_size)
            for index, step in enumerate(steps[conversation.conversation]):
                call = conversation.calls[index]
                first = None if step.started_at is None else step.started_at - step.sent_at
                found.append(
                    Served(
                        engine=str(step.engine),
                        sent_at=step.sent_at,
                        chain=prompts.chain(index),
                        prompt_tokens=call.prompt_tokens,
                        output_tokens=call.output_tokens,
                        first_ns=first if first else None,
                        last_ns=max(1, step.finished_at - step.sent_at),
                        cached_tokens=step.finished.usage.cached_tokens,
                    )
                )
    return found


def recorded_course(plans: Sequence[PastPlan]) -> Course:
    """What happened."""
    steps = [step for plan in plans for step in plan.steps]
    tenants: dict[str, list[tuple[float, float]]] = {}
    for plan in plans:
        worst = max(_first_tokens(plan.steps), default=0.0)
        tenants.setdefault(plan.start.tenant, []).append((plan.jct_s, worst))
    return Course(
        name="recorded",
        programs=len(plans),
        calls=len(steps),
        jct_s=spread(plan.jct_s for plan in plans),
        first_token_s=spread(_first_tokens(steps)),
        held_s=spread(in_seconds(between(step.asked_at, step.sent_at)) for step in steps),
        prompt_tokens=sum(step.prompt_tokens for step in steps),
        cached_tokens=sum(step.finished.usage.cached_tokens or 0 for step in steps),
        untold_tokens=sum(
            step.prompt_tokens for step in steps if step.finished.usage.cached_tokens is None
        ),
        tenants=_tenant_parts(tenants),
    )


def _first_tokens(steps: Sequence[PastStep]) -> list[float]:
    """Waits for first tokens. Of an answer that came whole only its end is known."""
    return [
        in_seconds(between(step.asked_at, step.started_at))
        for step in steps
        if step.started_at is not None
    ]


def _tenant_parts(rows: dict[str, list[tuple[float, float]]]) -> dict[str, TenantPart]:
    return {
        tenant: TenantPart(
            programs=len(found),
            jct_mean_s=sum(row[0] for row in found) / len(found),
            wait_max_s=max(row[1] for row in found),
        )
        for tenant, found in sorted(rows.items())
    }


def endings_of(plans: Sequence[PastPlan]) -> Endings:
    """How most of these programs let it be known that they were over: so they will again."""
    found = Counter(plan.ending for plan in plans)
    return max(Endings, key=lambda ending: found[ending])


@dataclass(slots=True)
class _Pool:
    """What several plays of the same came to, together."""

    jct_s: dict[str, list[float]] = field(default_factory=dict)
    tenants: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    first_tokens: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failed: int = 0
    plays: int = 0

    def take(self, host: SimHost, runs: Sequence[ProgramRun]) -> None:
        self.plays += 1
        for run in runs:
            if run.ended_at is None or run.is_failed:
                self.failed += 1
                continue
            took = in_seconds(between(run.started_at, run.ended_at))
            self.jct_s.setdefault(run.plan.program, []).append(took)
            wait_s = in_seconds(run.first_token_wait_max)
            self.tenants.setdefault(str(run.tenant), []).append((took, wait_s))
        tally = host.tally
        self.first_tokens += [in_seconds(Nanos(wait)) for wait in tally.first_token_waits]
        self.held += [in_seconds(Nanos(held)) for held in tally.held]
        self.calls += tally.calls
        self.prompt_tokens += tally.prompt_tokens
        self.cached_tokens += tally.cached_tokens

    def course(self, name: str) -> Course:
        """One course of events: times of all plays, counts of one.

        A program that gave up in any of them is one that did: the share says how often.
        """
        plays = max(1, self.plays)
        ended = sum(map(len, self.jct_s.values()))
        failed = -(-self.failed // plays)
        tenants = _tenant_parts(self.tenants)
        for part in tenants.values():
            part.programs //= plays
        return Course(
            name=name,
            programs=(ended + self.failed) // plays - failed,
            calls=self.calls // plays,
            jct_s=spread(took for times in self.jct_s.values() for took in times),
            first_token_s=spread(self.first_tokens),
            held_s=spread(self.held),
            prompt_tokens=self.prompt_tokens // plays,
            cached_tokens=self.cached_tokens // plays,
            tenants=tenants,
            failed=failed,
            gave_up=self.failed / max(1, ended + self.failed),
        )


def predict(
    name: str,
    config: SchedulerConfig,
    plans: Sequence[PastPlan],
    engines: Sequence[EngineConfig],
    *,
    traits: Sequence[EngineTraits],
    tenants: Sequence[TenantConfigured] = (),
) -> tuple[Course, dict[str, float]]:
    """The same clients under a policy, on modelled engines; completion times by program.

    Of plays at each of `SPEEDS`: in one of them chance decides too much.
    """
    streams = any(step.started_at is not None for plan in plans for step in plan.steps)
    endings = endings_of(plans)
    pool = _Pool()
    for factor in SPEEDS:
        host = SimHost(
            build_scheduler(config),
            engines=[replace(engine, cost=engine.cost.slower(factor)) for engine in engines],
            traits=traits,
            streams=streams,
            endings=endings,
        )
        pool.take(host, host.run([plan.start for plan in plans], tenants=tenants))
    return pool.course(name), {name: fmean(times) for name, times in pool.jct_s.items()}


def answer(
    name: str,
    journal: JournalReader,
    arms: Sequence[Arm],
    *,
    sizes: Sizes,
    fleet: Fleet = AS_RECORDED,
    trust_anyway: bool = False,
    on_progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Answer:
    """What the journal says about these arms on that fleet; no arms: about its own policy there.

    Of others nothing, where it does not replay and is not trusted anyway.

    Raises:
        ConfigError: the journal holds too little, or not what its engines are.
        JournalError: it cannot be read, or begins in the middle.
    """
    on_progress("replaying", 0.0)
    past, entries, diverged_at, text = read_and_replay(journal, trust_anyway=trust_anyway)
    is_refused = diverged_at is not None and not trust_anyway
    plans = plans_of(past)
    if not plans:
        raise ConfigError("no call in the journal was answered")
    blank = engines_of(past, sizes)
    longest = _longest(plans, blank)
    served = served_of(plans, block_size=blank[0].block_size)
    sizes_of = {str(key): engine for key, engine in zip(past.engines, blank, strict=True)}
    fit = fit_costs(
        served,
        blank[0],
        others=sizes_of,
        on_progress=lambda share: on_progress("fitting", share),
    )
    engines = [replace(engine, cost=fit.cost) for engine in blank]
    traits = [
        EngineTraits(pins=can.pins, warm=can.warm, models=can.models)
        for can in past.engines.values()
    ]
    tenants = list(past.tenants.values())
    own = config_of(journal.header)
    on_progress("predicting", 0.0)
    same, jct = predict("same policy", own, plans, engines, traits=traits, tenants=tenants)
    recorded = recorded_course(plans)
    other_engines = fleet.of(engines, longest=longest)
    other_traits = [traits[number % len(traits)] for number in range(len(other_engines))]
    wanted = [(arm.text, other_config(arm, journal.header)) for arm in arms]
    asked = [] if is_refused else wanted or [("same policy", own)]
    others: list[Course] = []
    for number, (text_of_arm, config) in enumerate(asked):
        on_progress("predicting", (number + 1) / (len(wanted) + 1))
        course = f"{text_of_arm}, {fleet}" if fleet != AS_RECORDED else text_of_arm
        found, _ = predict(
            course, config, plans, other_engines, traits=other_traits, tenants=tenants
        )
        others.append(found)
    trust = _trust(
        plans, recorded, same, jct, fit, past, entries, diverged_at, text, is_cut=journal.is_cut
    )
    is_sound = diverged_at is None and not trust.is_weak
    return Answer(
        journal=name,
        policy=journal.header.profile,
        believe="nothing" if is_refused else "figures" if is_sound else "directions",
        trust=trust,
        recorded=recorded,
        same=same,
        others=others,
        ratios=_ratios(others, same),
    )


def _ratios(others: Sequence[Course], same: Course) -> dict[str, float]:
    """Mean completion times over that of the recorded policy; none where it has none itself."""
    return {c.name: c.jct_s.mean / same.jct_s.mean for c in others if same.jct_s.count}


def _longest(plans: Sequence[PastPlan], engines: Sequence[EngineConfig]) -> int:
    """Tokens of the longest call.

    Raises:
        ConfigError: none of these engines takes it, though one of the journal's did.
    """
    longest = max(
        call.prompt_tokens + call.output_tokens
        for plan in plans
        for conversation in plan.start.plan.conversations
        for call in conversation.calls
    )
    room = max(engine.max_model_len for engine in engines)
    if longest > room:
        raise ConfigError(
            f"a call of {longest} tokens was answered, and no engine holds more than {room}: give "
            "a larger --kv-tokens"
        )
    return longest


def other_config(arm: Arm, header: JournalHeader) -> SchedulerConfig:
    """Another policy under the limits and workflows of the journal.

    Raises:
        ConfigError: the arm is an oracle, or has another cache.
    """
    if arm.knows or arm.is_unlimited:
        raise ConfigError(
            f"{arm.text!r} is no policy: a what-if has engines and clients as recorded"
        )
    return replace(config_of(header), profile=arm.profile, choices=arm.choices)


def _trust(
    plans: Sequence[PastPlan],
    recorded: Course,
    same: Course,
    jct: dict[str, float],
    fit: Fit,
    past: Past,
    entries: int,
    diverged_at: int | None,
    text: str,
    *,
    is_cut: bool,
) -> Trust:
    off = [
        abs(jct[plan.start.plan.program] - plan.jct_s) / max(1e-3, plan.jct_s)
        for plan in plans
        if plan.start.plan.program in jct
    ]
    told, modelled = recorded.cached_share, same.cached_share
    return Trust(
        entries=entries,
        diverged_at=diverged_at,
        divergence=text,
        fit=fit.row,
        self_error=same.jct_s.mean / max(1e-9, recorded.jct_s.mean) - 1.0,
        program_error=median(off) if off else 0.0,
        cached_error=None if told is None or modelled is None else modelled - told,
        unfinished=past.unfinished,
        gave_up=same.gave_up_share,
        is_cut=is_cut,
        unlike=_unlike(past),
    )


def _unlike(past: Past) -> list[str]:
    """What happened while the journal was written that no model here has."""
    found = []
    if past.changes:
        times = _times(past.changes)
        found.append(f"Policies or limits were changed {times}: those at its beginning are taken.")
    if past.losses:
        times = _times(past.losses)
        found.append(f"Engines were lost or drained {times}: in the model all serve all the time.")
    if past.has_peers:
        found.append("Other replicas used the engines: their load is not in this journal.")
    return found


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
