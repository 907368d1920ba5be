"""`python -m agentsched_bench.study.regimes SCENARIO...`: every profile in every regime, simulated.

Each scenario is `agentsched compare SCENARIO --simulate`, with the same arms everywhere; one with
several rates is as many regimes. Systems that keep KV on purpose get engines that can (`plugin:`),
and programs are those of agents: answers call tools, and the last one calls none. What is kept are
figures, not calls. The study goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

from agentsched.model import ConfigError
from agentsched_bench.compare.arms import sides_of
from agentsched_bench.compare.capacity import at_rate
from agentsched_bench.compare.cli import new_result
from agentsched_bench.compare.fleet import engines_of
from agentsched_bench.compare.inference import Verdict
from agentsched_bench.compare.load import make_load
from agentsched_bench.compare.results import ArmFigures, versions
from agentsched_bench.compare.run import Plan, Store, simulate_all
from agentsched_bench.compare.scenario import Scenario, load_scenario
from agentsched_bench.compare.show import Estimate, showing
from agentsched_bench.compare.simulated import alone_seconds, simulated_sides
from agentsched_bench.sim.specs import digest_of
from agentsched_bench.whole_file import write_whole

SCHEMA: Final = "agentsched.regimes/1"
BASELINE: Final = "direct"
#: With a p95 slowdown of more, a rate of arrivals is not carried; as `measure.slowdown_max`.
SLOWDOWN_MAX: Final = 3.0
#: Differences below this are called none.
_NOISE: Final = 0.05
#: What has no share in winning or losing: what is compared with, and the limit.
_YARDSTICKS: Final = (BASELINE, "unlimited")
#: A replay's programs call no tools and never say that they are over; those of agents do.
_CLIENT: Final = "mini-swe-agent"
ARMS: Final = (
    *_YARDSTICKS,
    "agentsched",
    "plugin:agentsched",
    "fcfs",
    "autellix",
    "concur",
    "plugin:continuum",
    "plugin:continuum-static",
    "dlpm",
    "dualmap",
    "hexgen",
    "plugin:kvflow",
    "plugin:saga",
    "thunderagent",
)


class ArmRow(msgspec.Struct, kw_only=True):
    """One arm in one regime, over its repeats.

    `ratio` is the paired ratio of completion times to the engine alone, with its 95 % interval.
    `ttft_max_s` is the longest wait for a first token, refusals and coming back included.
    """

    arm: str
    jct_mean_s: float
    run_jct_s: list[float]
    slowdown_p95: float | None
    ttft_max_s: float
    cached_share: float | None
    again_tokens: int | None
    failed: int
    ratio: tuple[float, float, float] | None
    verdict: Verdict | None


class Regime(msgspec.Struct, kw_only=True):
    """One scenario at one rate; `rate` is None where it is played at its own only.

    `asked` is a hash of all that decides it; older files do not have it.
    """

    name: str
    rate: float | None = None
    question: str
    programs: int
    calls: int
    repeats: int
    arms: list[ArmRow]
    asked: str = ""


class Regimes(msgspec.Struct, kw_only=True):
    """The whole of it, as it lies in its file."""

    schema: str = SCHEMA
    command: list[str]
    variant: str | None
    regimes: list[Regime] = []


def row_of(figures: ArmFigures) -> ArmRow:
    """What is kept of an arm's figures."""
    jct = figures.jct
    return ArmRow(
        arm=figures.arm,
        jct_mean_s=figures.jct_s.mean,
        run_jct_s=figures.run_jct_s,
        slowdown_p95=figures.slowdown.p95 if figures.slowdown is not None else None,
        ttft_max_s=figures.ttft_s.max,
        cached_share=figures.cached_share,
        again_tokens=figures.again_tokens,
        failed=figures.failed,
        ratio=None if jct is None else (jct.value, jct.low, jct.high),
        verdict=figures.verdict,
    )


def play(scenario: Scenario, *, beside: Path, is_quiet: bool) -> Regime:
    """Simulate every arm of a scenario, for each of its repeats."""
    sides = simulated_sides(sides_of(scenario))
    repeats = range(scenario.measure.repeat)
    loads = [make_load(scenario.workload, seed=n, beside=beside) for n in repeats]
    alone_s = alone_seconds(loads, scenario.engine)
    result = new_result(scenario, sides, loads, how="simulated", alone_s=alone_s)
    plan = Plan(
        scenario=scenario, sides=sides, loads=loads, logs=Path(), peers=Path(), salt="regimes"
    )
    store = Store(result, path=None)
    estimate = Estimate([side.name for _, side in plan.order(store)], expected_s=2.0)
    with showing(estimate, is_quiet=is_quiet) as show:
        simulate_all(plan, store, show)
    return Regime(
        name=scenario.name,
        rate=_rate_of(scenario),
        question=scenario.question,
        programs=len(loads[0].plans),
        calls=loads[0].calls,
        repeats=len(loads),
        arms=[row_of(figures) for figures in store.result.summary],
        asked=asked_of(scenario, beside=beside),
    )


def asked_of(scenario: Scenario, *, beside: Path) -> str:
    """A hash of what decides a regime: the scenario, its traces and engines, and our version."""
    spec = scenario.model_dump(mode="json", exclude={"question", "expects"})
    trace = make_load(scenario.workload, seed=0, beside=beside).trace.sha256
    version = versions()["agentsched"]
    data = [version, trace, digest_of(engines_of(scenario.engine)), spec]
    return hashlib.sha256(msgspec.json.encode(data, order="deterministic")).hexdigest()


def is_done(scenario: Scenario, regimes: Sequence[Regime], *, beside: Path) -> bool:
    """Whether the regime was played already.

    Raises:
        ConfigError: another one was, of the same name.
    """
    old = next((regime for regime in regimes if regime.name == scenario.name), None)
    if old is None:
        return False
    sides = simulated_sides(sides_of(scenario))
    same = [row.arm for row in old.arms] == [side.name for side in sides if not side.missing]
    if old.asked:
        same = old.asked == asked_of(scenario, beside=beside)
    if not same or old.repeats != scenario.measure.repeat:
        raise ConfigError(f"{scenario.name} was played otherwise there: choose another file")
    return True


def _rate_of(scenario: Scenario) -> float | None:
    """The rate of one that is played at several."""
    arrivals = scenario.workload.arrivals
    if not scenario.measure.rates or arrivals.process not in ("poisson", "regular"):
        return None
    return arrivals.rate


def scenarios_of(
    path: Path,
    *,
    variant: str | None,
    arms: Sequence[str],
    repeat: int,
    rates: Sequence[float] = (),
) -> list[Scenario]:
    """The regimes of a file: one, or one for each of its rates, or of these. Raises ConfigError."""
    text = msgspec.json.encode(list(arms)).decode()
    changes = [f"arms={text}", f"measure.repeat={repeat}", f"measure.client={_CLIENT}"]
    changes += [f"measure.rates={list(rates)}"] if rates else []
    scenario = load_scenario(path, variant=variant, changes=changes)
    return [at_rate(scenario, rate) for rate in scenario.measure.rates] or [scenario]


def outcomes(regimes: Sequence[Regime]) -> dict[str, dict[str, list[str]]]:
    """In which regimes each arm is faster than the engine alone, in which slower.

    In mean completion time, in every repeat, and by a twentieth at least.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for regime in regimes:
        base = next((row for row in regime.arms if row.arm == BASELINE), None)
        if base is None:
            continue
        for row in regime.arms:
            if row.arm in _YARDSTICKS:
                continue
            by_outcome = found.setdefault(row.arm, {"faster": [], "slower": []})
            pairs = list(zip(row.run_jct_s, base.run_jct_s, strict=True))
            if not all(own and other for own, other in pairs):
                continue  # nobody completed in one of them: it has no time
            ratios = [own / other for own, other in pairs]
            if max(ratios) < 1 - _NOISE:
                by_outcome["faster"].append(regime.name)
            elif min(ratios) > 1 + _NOISE:
                by_outcome["slower"].append(regime.name)
    return found


def carried(regimes: Sequence[Regime]) -> dict[str, str]:
    """How many programs a second each arm carries, of one scenario at several rates.

    The highest rate tried, before the first that is missed, at which the p95 slowdown is at most
    `SLOWDOWN_MAX` and nobody gave up.
    """
    tried = [(each.rate, each) for each in regimes if each.rate is not None]
    tried.sort(key=lambda pair: pair[0])
    found: dict[str, str] = {}
    for arm in dict.fromkeys(row.arm for _, regime in tried for row in regime.arms):
        best, is_limit = "", False
        for rate, regime in tried:
            row = next((row for row in regime.arms if row.arm == arm), None)
            if row is None:
                continue
            slowdown = row.slowdown_p95
            is_limit = row.failed > 0 or (slowdown is not None and slowdown > SLOWDOWN_MAX)
            if is_limit or slowdown is None:
                break
            best = f"{rate:g}/s"
        if is_limit:
            found[arm] = best or "none of them"
        else:
            found[arm] = f"{best} or more" if best else "not known"
    return found


def best_of(regime: Regime) -> str:
    """The arm with the shortest mean completion time, of those that nobody gave up on."""
    rows = [row for row in regime.arms if row.arm not in _YARDSTICKS and not row.failed]
    return min(rows, key=lambda row: (row.jct_mean_s, row.arm)).arm if rows else ""


def markdown(found: Regimes) -> str:
    """The tables as they stand in the documentation."""
    arms = list(dict.fromkeys(row.arm for regime in found.regimes for row in regime.arms))
    lines = ["| regime | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for regime in found.regimes:
        rows = {row.arm: row for row in regime.arms}
        best = best_of(regime)
        cells = [_cell(rows[arm], is_best=arm == best) if arm in rows else "" for arm in arms]
        lines.append(f"| {regime.name} | " + " | ".join(cells) + " |")
    lines += ["", "| system | faster than direct in | slower in |", "|---|---|---|"]
    for arm, by_outcome in outcomes(found.regimes).items():
        faster, slower = (", ".join(by_outcome[key]) or "-" for key in ("faster", "slower"))
        lines.append(f"| {arm} | {faster} | {slower} |")
    scenarios = dict.fromkeys(
        r.name.rpartition("-")[0] for r in found.regimes if r.rate is not None
    )
    for name in scenarios:
        own = [r for r in found.regimes if r.rate is not None and r.name.rpartition("-")[0] == name]
        lines += ["", f"| {name} | carries (p95 slowdown {SLOWDOWN_MAX:g}) |", "|---|---|"]
        lines += [f"| {arm} | {what} |" for arm, what in carried(own).items()]
    return "\n".join(lines)


def _cell(row: ArmRow, *, is_best: bool) -> str:
    """Mean completion time; p95 slowdown; longest wait; programs that gave up, where there are."""
    mean = f"**{row.jct_mean_s:.0f}**" if is_best else f"{row.jct_mean_s:.0f}"
    slow = "-" if row.slowdown_p95 is None else f"{row.slowdown_p95:.1f}"
    gave_up = f"; {row.failed} gave up" if row.failed else ""
    return f"{mean}; {slow}; {row.ttft_max_s:.0f}{gave_up}"


def main(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario files.")],
    *,
    arm: Annotated[list[str] | None, typer.Option(help="In place of all profiles.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of every scenario, as in full.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Loads, each of its own seed.")] = 2,
    rate: Annotated[list[float] | None, typer.Option(help="In place of the file's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Kept and resumed here.")] = None,
) -> None:
    """Every profile in every regime, in the simulator."""
    arms = list(dict.fromkeys([BASELINE, *(arm or ARMS)]))
    command = ["python", "-m", "agentsched_bench.study.regimes", *sys.argv[1:]]
    found = Regimes(command=command, variant=variant)
    if out is not None and out.exists():
        old = msgspec.json.decode(out.read_bytes(), type=Regimes)
        if old.variant != variant:
            raise ConfigError(f"{out} is of another variant: choose another file")
        found.regimes = old.regimes
    console = Console(stderr=True)
    for path in scenarios:
        for scenario in scenarios_of(
            path, variant=variant, arms=arms, repeat=repeat, rates=rate or ()
        ):
            if is_done(scenario, found.regimes, beside=path.parent):
                continue
            found.regimes.append(play(scenario, beside=path.parent, is_quiet=True))
            if out is not None:
                data = msgspec.json.format(msgspec.json.encode(found), indent=1)
                write_whole(out, data + b"\n")
            console.print(f"{scenario.name}: done", highlight=False)
    typer.echo(markdown(found))


if __name__ == "__main__":
    typer.run(main)
