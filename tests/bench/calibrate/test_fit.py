"""Fitting finds the engine again that made the times."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from agentsched.model import ConfigError, Instant
from agentsched_bench.calibrate.fit import Served, errors, feed, fit_costs
from agentsched_bench.calibrate.model_file import FitRow, of_config, read_model, write_model
from agentsched_bench.engine.cost import CPU_2CORE, preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.tokens import Run, RunChain
from agentsched_bench.sim.specs import engine_of, fleet_of


def engine() -> EngineConfig:
    config = EngineConfig.from_preset(preset("cpu-2core"))
    return replace(config, blocks=400, max_model_len=399 * config.block_size)


def calls(count: int, *, seed: int = 1) -> list[Served]:
    """Calls of many sizes, some at once; their times are still to be said."""
    rng = random.Random(seed)
    at, found = 0, []
    for number in range(count):
        at += round(rng.expovariate(1.5) * 1e9)
        prompt, output = rng.choice((40, 300, 1_500, 4_000)), rng.choice((1, 8, 60))
        chain = RunChain([Run(content=number, tokens=prompt + output)], block_size=32)
        found.append(
            Served(
                engine="e",
                sent_at=Instant(at),
                chain=chain,
                prompt_tokens=prompt,
                output_tokens=output,
                first_ns=1,
                last_ns=1,
            )
        )
    return found


def timed(unknown: list[Served], config: EngineConfig) -> list[Served]:
    times = [found or (1, 1) for found in feed(unknown, config)]
    pairs = zip(unknown, times, strict=True)
    return [replace(call, first_ns=first, last_ns=last) for call, (first, last) in pairs]


def test_times_fed_back_are_the_same() -> None:
    served = timed(calls(30), engine())
    assert errors(served, engine(), set(range(30))) == (0.0, 0.0)


@pytest.mark.slow
def test_calls_of_engines_of_unlike_sizes_are_fitted_together() -> None:
    """The same calls twice over: one engine still has them in its cache, the other does not."""
    roomy = replace(engine(), cost=CPU_2CORE.slower(2.0))
    small = replace(roomy, blocks=160, max_model_len=159 * roomy.block_size)
    twice = calls(20)
    later = [replace(c, sent_at=Instant(c.sent_at + 60 * 10**9)) for c in twice]
    served = timed([*twice, *later], roomy)
    served += timed([replace(call, engine="small") for call in [*twice, *later]], small)

    fit = fit_costs(served, engine(), others={"small": small})

    assert fit.row.calls + fit.row.held_out == len(served) == 80
    assert fit.row.first_token_error < 0.1
    assert fit.row.answer_error < 0.1
    assert fit_costs(served, engine(), calls_max=20).row.calls == 10


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.7, 3.3])
def test_the_engine_is_found_again(factor: float) -> None:
    truth = replace(engine(), cost=CPU_2CORE.slower(factor))
    fit = fit_costs(timed(calls(60), truth), engine())
    assert fit.row.first_token_error < 0.1
    assert fit.row.answer_error < 0.1
    # And it is right on calls that the fit has never seen.
    other = timed(calls(60, seed=2), truth)
    first, last = errors(other, replace(engine(), cost=fit.cost), set(range(60)))
    assert max(first, last) < 0.15


def test_equal_calls_give_equal_fits() -> None:
    served = timed(calls(12), engine())
    assert fit_costs(served, engine()) == fit_costs(list(reversed(served)), engine())


def test_few_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        fit_costs(timed(calls(5), engine()), engine())


def test_a_model_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    row = FitRow(calls=8, held_out=8, first_token_error=0.1, answer_error=0.2)
    write_model(path, of_config(engine(), source="a test", fit=row))
    assert read_model(path).config() == engine()
    assert read_model(path).fit == row
    assert engine_of(str(path)) == engine()
    fleet = fleet_of([f"2x{path},slow=2", f"{path},model=m"])
    assert [one.cost for one in fleet.engines] == [CPU_2CORE.slower(2)] * 2 + [CPU_2CORE]
    assert fleet.models == ("m",)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": "other/1"}'])
def test_what_is_no_model_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_model(path)
    with pytest.raises(ConfigError):
        read_model(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "spec", ["nobody", "0xcpu-2core", "cpu-2core,speed=2", "cpu-2core,blocks=x"]
)
def test_an_engine_that_cannot_be_read_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        fleet_of([spec])


def test_blocks_of_two_sizes_do_not_mix() -> None:
    with pytest.raises(ConfigError, match="block-size"):
        fleet_of(["cpu-2core", "a100-8b"])
    fleet = fleet_of(["cpu-2core", "a100-8b"], block_size=64)
    assert {one.block_size for one in fleet.engines} == {64}


def test_answers_that_came_whole_tell_nothing_of_first_tokens() -> None:
    """That none was off is no praise where none was seen."""
    streamed = timed(calls(12), engine())
    whole = [replace(call, first_ns=None) for call in streamed]

    seen, unseen = (fit_costs(served, engine()).row for served in (streamed, whole))

    assert seen.said.startswith("first tokens off by ")
    assert unseen.said.startswith("answers off by ")
    assert unseen.said.endswith(", first tokens not known, for none was streamed")
