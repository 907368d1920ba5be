"""Fitting an engine's cost constants to calls that it served: by feeding them to its model.

The calls go into the engine model when they went into the engine, with the same contents, and what
the model says about first tokens and ends is compared with what was seen. So calls may overlap as
they like: batching, chunked prefill and queues inside the engine are the model's. The constants are
searched one at a time, in ever finer steps; the error is the mean of absolute logarithms, so that
being twice too long costs as much as half too long, and a few outliers do not decide.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from statistics import median
from typing import Final

from agentsched.model import ConfigError, Instant, Nanos, after
from agentsched_bench.calibrate.model_file import FitRow
from agentsched_bench.engine.cost import CPU_2CORE, PRESETS, CostModel
from agentsched_bench.engine.model import EngineModel
from agentsched_bench.engine.requests import EngineConfig, Generation
from agentsched_bench.engine.tokens import BlockChain

#: Fitting looks at so many calls at most, which keeps it to seconds.
_CALLS_MAX: Final = 400
#: Times shorter than this are as good as this: timers and event loops are no finer.
_FLOOR_NS: Final = 2e6
_FACTORS: Final = (2.0, 1.4, 1.15, 1.05)
_EVALUATIONS_MAX: Final = 320
_CALLS_MIN: Final = 8
#: What is to be said of a fit to answers that all came whole.
_WHOLE: Final = "first tokens not known, for none was streamed"
#: Under overload the least difference decides who is let in next, and with it much of what follows,
#: live and in the model. So a prediction is of several engines that are a little slower or faster.
SPEEDS: Final = (0.94, 0.97, 1.0, 1.03, 1.06)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One call as seen from outside the engine: sent, first token after, last token after.

    `chain` says what prompt and answer consist of, so that the model's cache finds what the
    engine's found. `first_ns` None: it was not streamed.
    """

    engine: str
    sent_at: Instant
    chain: BlockChain
    prompt_tokens: int
    output_tokens: int
    first_ns: int | None
    last_ns: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted costs, and how far modelled times are off on the calls that were not used."""

    cost: CostModel
    row: FitRow


Report = Callable[[float], None]


def fit_costs(
    served: Sequence[Served],
    config: EngineConfig,
    *,
    others: Mapping[str, EngineConfig] | None = None,
    calls_max: int = _CALLS_MAX,
    on_progress: Report | None = None,
) -> Fit:
    """The constants under which the engine model reproduces these calls best.

    Engines named in `others` have the sizes given there, and the same costs. At most the first
    `calls_max` calls are looked at.

    Raises:
        ConfigError: too few calls to say anything.
    """
    if len(served) < _CALLS_MIN:
        raise ConfigError(
            f"{len(served)} calls are too few to fit an engine: {_CALLS_MIN} at least"
        )
    ordered = sorted(served, key=lambda call: call.sent_at)
    window = ordered[:calls_max]
    engines = _Engines(config, others or {})
    # Every second call is kept out of the loss; all go through the model, since all were there.
    judged = set(range(0, len(window), 2))
    search = _Search(window, engines, judged, on_progress)
    cost = search.run()
    held = set(range(1, len(window), 2))
    first, last = _errors(window, engines.at(cost), held)
    is_streamed = any(window[index].first_ns is not None for index in held)
    row = FitRow(
        calls=len(judged),
        held_out=len(held),
        first_token_error=round(first, 4),
        answer_error=round(last, 4),
        note="" if is_streamed else _WHOLE,
    )
    return Fit(cost=cost, row=row)


@dataclass(frozen=True, slots=True)
class _Engines:
    """What engines are like: all as the first, but those that are named."""

    config: EngineConfig
    others: Mapping[str, EngineConfig]

    def at(self, cost: CostModel) -> _Engines:
        others = {key: replace(config, cost=cost) for key, config in self.others.items()}
        return _Engines(replace(self.config, cost=cost), others)


def errors(served: Sequence[Served], config: EngineConfig, chosen: set[int]) -> tuple[float, float]:
    """Medians of |modelled - seen| / seen for first tokens and whole answers of the chosen ones."""
    return _errors(served, _Engines(config, {}), chosen)


def _errors(served: Sequence[Served], engines: _Engines, chosen: set[int]) -> tuple[float, float]:
    times = _feed(served, engines)
    first: list[float] = []
    last: list[float] = []
    for index in sorted(chosen):
        call, found = served[index], times[index]
        if found is None:
            continue
        if call.first_ns is not None:
            first.append(abs(found[0] - call.first_ns) / max(_FLOOR_NS, call.first_ns))
        last.append(abs(found[1] - call.last_ns) / max(_FLOOR_NS, call.last_ns))
    return (median(first) if first else 0.0, median(last) if last else 0.0)


def feed(served: Sequence[Served], config: EngineConfig) -> list[tuple[int, int] | None]:
    """First and last token of each call after it was sent, by the model; None: it was refused."""
    return _feed(served, _Engines(config, {}))


def _feed(served: Sequence[Served], engines: _Engines) -> list[tuple[int, int] | None]:
    by_engine: dict[str, list[int]] = {}
    for index, call in enumerate(served):
        by_engine.setdefault(call.engine, []).append(index)
    found: list[tuple[int, int] | None] = [None] * len(served)
    for key, indices in by_engine.items():
        _feed_one(served, indices, engines.others.get(key, engines.config), found)
    return found


def _feed_one(
    served: Sequence[Served],
    indices: Sequence[int],
    config: EngineConfig,
    found: list[tuple[int, int] | None],
) -> None:
    model = EngineModel(config)
    way = Nanos(round(config.cost.per_call_ns / 2))
    firsts: dict[str, Instant] = {}
    now = Instant(0)

    def advance(until: Instant) -> None:
        nonlocal now
        while len(model) and now < until:
            stretch = model.run_until(now=now, until=until)
            if stretch.outcome is None:
                now = max(until, stretch.at)
                return
            now = stretch.at
            for key in stretch.outcome.first:
                firsts[key] = now
            for done in stretch.outcome.finished:
                sent = served[int(done.id)].sent_at
                found[int(done.id)] = (firsts[done.id] + way - sent, now + way - sent)

    for index in indices:
        call = served[index]
        at = after(call.sent_at, way)
        advance(at)
        now = max(now, at)
        generation = Generation(
            id=str(index),
            chain=call.chain,
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
        )
        model.add(generation, now=at)
    advance(Instant(now + 10**18))


def _loss(served: Sequence[Served], engines: _Engines, cost: CostModel, judged: set[int]) -> float:
    times = _feed(served, engines.at(cost))
    total, count = 0.0, 0
    for index in sorted(judged):
        call, found = served[index], times[index]
        if found is None:
            continue
        if call.first_ns is not None:
            total += abs(log(max(_FLOOR_NS, found[0]) / max(_FLOOR_NS, call.first_ns)))
            count += 1
        total += abs(log(max(_FLOOR_NS, found[1]) / max(_FLOOR_NS, call.last_ns)))
        count += 1
    return total / max(1, count)


class _Search:
    """The way to the constants: the best of several beginnings, one constant at a time, then all.

    Constants trade against each other (a step's fixed part against its part per answer), so after
    the single ones all are moved together, at random but the same for the same calls, in steps that
    grow after a success and shrink after a failure.
    """

    def __init__(
        self,
        served: Sequence[Served],
        engines: _Engines,
        judged: set[int],
        on_progress: Report | None,
    ) -> None:
        self._served = served
        self._engines = engines
        self._judged = judged
        self._on_progress = on_progress
        self._rng = random.Random("fit")
        self._evaluated = 0
        self.cost = CPU_2CORE
        self.loss = float("inf")

    def run(self) -> CostModel:
        for beginning in _beginnings(self._served):
            self._try(self._scaled(beginning))
        names = list(asdict(self.cost))
        for factor in _FACTORS:
            # First the engine as a whole, which on a busy machine is most of the difference.
            for times in (factor, 1 / factor):
                while self._try(self.cost.slower(times)):
                    pass
            for name in names:
                for times in (factor, 1 / factor):
                    if self._try(replace(self.cost, **{name: getattr(self.cost, name) * times})):
                        break
        width = 0.3
        while self._evaluated < _EVALUATIONS_MAX and width > 0.005:
            moved = {
                name: getattr(self.cost, name) * exp(self._rng.gauss(0.0, width))
                for name in names
                if self._rng.random() < 0.6
            }
            width *= 1.4 if self._try(replace(self.cost, **moved)) else 0.93
            width = min(width, 0.5)
        return self.cost

    def _scaled(self, cost: CostModel) -> CostModel:
        """The engine of this kind whose speed fits best."""
        loss = self._loss(cost)
        for factor in _FACTORS:
            for times in (factor, 1 / factor):
                while (found := self._loss(other := cost.slower(times))) < loss:
                    cost, loss = other, found
        return cost

    def _loss(self, cost: CostModel) -> float:
        return _loss(self._served, self._engines, cost, self._judged)

    def _try(self, cost: CostModel) -> bool:
        self._evaluated += 1
        if self._on_progress is not None:
            self._on_progress(min(1.0, self._evaluated / _EVALUATIONS_MAX))
        loss = self._loss(cost)
        # A change that tells nothing is not made: what calls do not show stays as it was guessed.
        if loss >= self.loss - 1e-5:
            return False
        self.cost, self.loss = cost, loss
        return True


def _beginnings(served: Sequence[Served]) -> list[CostModel]:
    """A guess from the calls themselves, and known kinds of engines."""
    known = [PRESETS[name].cost for name in ("cpu-2core", "a100-8b", "h100-8b", "h100-32b")]
    return [
        _first_guess(served),
        *known,
    ]


def _first_guess(served: Sequence[Served]) -> CostModel:
    """Constants of the right order of magnitude, from low quantiles of plain ratios."""
    prefill = [
        call.first_ns / max(1, call.prompt_tokens - (call.cached_tokens or 0))
        for call in served
        if call.first_ns and call.prompt_tokens - (call.cached_tokens or 0) > 128
    ]
    decode = [
        (call.last_ns - call.first_ns) / (call.output_tokens - 1)
        for call in served
        if call.first_ns and call.output_tokens > 4
    ]
    shortest = min((call.first_ns or call.last_ns) for call in served)
    step = _low(decode, default=shortest / 4)
    token = _low(prefill, default=step / 50)
    return CostModel(
        base_ns=0.7 * step,
        per_prefill_token_ns=max(1.0, 0.8 * token),
        per_prefill_position_ns=max(1e-3, token / 4_000),
        per_decode_ns=max(1.0, step / 20),
        per_decode_context_ns=max(1e-3, step / 20_000),
        per_call_ns=max(1e5, 0.5 * shortest),
    )


def _low(values: Sequence[float], *, default: float) -> float:
    """About the lowest tenth, in logarithms, of what is there."""
    if not values:
        return default
    ordered = sorted(values)
    few = ordered[: max(1, len(ordered) // 10)]
    return exp(sum(log(max(1.0, value)) for value in few) / len(few))
