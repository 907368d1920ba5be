"""The simulator beside a comparison that was measured already: `agentsched compare` kept it all.

The engine's costs are fitted to arms in which nothing was held back on the way (`direct`,
`unlimited`), or taken from a file; the arms that were not fitted to are what is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentsched.model import ConfigError
from agentsched_bench.calibrate.fit import SPEEDS, Served, fit_costs
from agentsched_bench.calibrate.model_file import ModelFile, of_config, write_model
from agentsched_bench.compare import results
from agentsched_bench.compare.arms import Kind, Side, parse_side
from agentsched_bench.compare.deadlines import telling
from agentsched_bench.compare.fleet import engines_of, roomy
from agentsched_bench.compare.load import Load, make_load
from agentsched_bench.compare.machine import sound
from agentsched_bench.compare.results import CompareResult, Run
from agentsched_bench.compare.scenario import Scenario
from agentsched_bench.compare.simulated import simulate_run, why_not
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.fidelity.report import ArmFidelity, Figures, figures_of, served_of

#: Fitting looks at so many calls: all of two arms of a usual scenario.
_CALLS_MAX: Final = 1_200


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A comparison read back: its scenario, arms that have a model, loads and finished runs."""

    result: CompareResult
    scenario: Scenario
    sides: Sequence[Side]
    loads: Sequence[Load]

    def runs(self, arm: str) -> list[Run]:
        """The finished runs of an arm; none in which the machine stood still, unless all are."""
        finished = results.finished_runs(self.result, arm)
        return list(sound(finished) or finished)


def read_measured(path: Path, *, beside: Path) -> Measured:
    """Read a result; its traces are relative to `beside`, the folder of the scenario.

    Raises:
        ConfigError: it was not measured, nothing in it has a model, or its trace is another now.
    """
    result = results.read(path)
    if result.how != "live":
        raise ConfigError(f"{path} was not measured ({result.how})")
    scenario = Scenario.model_validate(result.spec)
    repeats = range(max((run.repeat for run in result.runs), default=-1) + 1)
    loads = [make_load(scenario.workload, seed=number, beside=beside) for number in repeats]
    if loads and loads[0].trace.sha256 != result.trace.sha256:
        raise ConfigError(f"the trace of {path} is another one now")
    if scenario.measure.tells_deadlines:
        loads = telling(loads, result.deadlines_s)
    done = [arm for arm in result.arms if results.finished_runs(result, arm.name)]
    sides = [
        replace(parse_side(arm.text, engine=scenario.engine, ids=arm.ids), name=arm.name)
        for arm in done
    ]
    sides = [side for side in sides if not why_not(side)]
    if not sides:
        raise ConfigError(f"no arm of {path} has a model")
    return Measured(result=result, scenario=scenario, sides=sides, loads=loads)


def fit_to(measured: Measured, arms: Sequence[str]) -> ModelFile:
    """The engine as the calls of these arms show it, all of them together.

    Raises:
        ConfigError: an arm was not measured, or a proxy held its calls back.
    """
    config, *more = engines_of(measured.scenario.engine)
    if more:
        raise ConfigError(
            "a fit to calls that do not say which engine served them needs one engine"
        )
    sides = {side.name: side for side in measured.sides}
    others: dict[str, EngineConfig] = {}
    served: list[Served] = []
    for name in arms:
        side = sides.get(name)
        if side is None or side.kind not in (Kind.DIRECT, Kind.UNLIMITED):
            raise ConfigError(f"no fit to {name!r}: give direct or unlimited, as measured")
        for run in measured.runs(name):
            load = measured.loads[run.repeat]
            key = f"{name}/{run.repeat}"
            is_roomy = side.kind is Kind.UNLIMITED
            others[key] = roomy(config, tokens=load.tokens_max) if is_roomy else config
            found = served_of(run, load, block_size=config.block_size)
            served += [replace(call, engine=key) for call in found]
    fit = fit_costs(served, config, others=others, calls_max=_CALLS_MAX)
    return of_config(
        replace(config, cost=fit.cost),
        source=f"fitted to the calls of {', '.join(arms)} in {measured.result.name}",
        fit=fit.row,
    )


def predict_all(measured: Measured, model: ModelFile, *, logs: Path) -> list[ArmFidelity]:
    """Every arm as measured and, under `refitted`, as this model has it at each of `SPEEDS`.

    Model files are written to the folder `logs`.
    """
    found = [
        ArmFidelity(arm=side.name, measured=[figures_of(run) for run in measured.runs(side.name)])
        for side in measured.sides
    ]
    config = model.config()
    for factor in SPEEDS:
        path = logs / f"model-{factor:g}.json"
        slower = replace(config, cost=config.cost.slower(factor))
        write_model(path, of_config(slower, source=model.source))
        engine = measured.scenario.engine.model_copy(update={"preset": str(path)})
        scenario = measured.scenario.model_copy(update={"engine": engine})
        for side, arm in zip(measured.sides, found, strict=True):
            runs = measured.runs(side.name)
            arm.refitted += [_simulated(side, run, measured, scenario) for run in runs]
    return found


def _simulated(side: Side, run: Run, measured: Measured, scenario: Scenario) -> Figures:
    load = measured.loads[run.repeat]
    return figures_of(
        simulate_run(side, load, scenario, repeat=run.repeat, on_call=lambda _done: None)
    )
