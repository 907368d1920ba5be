"""`agentsched calibrate` against the embedded engine, whose constants are known."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from agentsched.model import ConfigError, EngineError
from agentsched_bench.calibrate.cli import calibrate
from agentsched_bench.calibrate.fit import errors
from agentsched_bench.calibrate.probe import Sizes, config_of, measure, rounds, sizes_of
from agentsched_bench.engine.cost import CPU_2CORE, preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine


def engine() -> EngineConfig:
    config = EngineConfig.from_preset(preset("cpu-2core"))
    return replace(config, blocks=200, max_model_len=2_048, cost=CPU_2CORE)


@pytest.mark.slow
async def test_an_engine_tells_its_sizes_and_shows_its_times() -> None:
    async with running_engine(ServerConfig(engine=engine())) as running:
        sizes = await sizes_of(running.url)
        assert (sizes.blocks, sizes.block_size) == (200, 32)
        config = config_of(sizes, max_num_seqs=64, step_tokens=2_048)
        probes = rounds(config, rng=random.Random(1), repeats=1)[:6]
        served = await measure(running.url, config, probes, model=sizes.model)
    assert len(served) == sum(len(together) for together in probes)
    # The model with the true constants is nearest to what was seen, whatever delays the host added.
    true, *others = (
        errors(served, replace(config, cost=CPU_2CORE.slower(factor)), set(range(len(served))))
        for factor in (1.0, 0.05, 20.0)
    )
    for wrong in others:
        assert all(near < far for near, far in zip(true, wrong, strict=True)), (true, wrong)


async def test_nobody_there_is_said() -> None:
    with pytest.raises(EngineError, match=r"does not answer .*Cannot connect to host"):
        await sizes_of("http://127.0.0.1:9")


def test_what_is_no_url_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write http://host:port"):
        calibrate("gpu-1:8000", out=tmp_path / "model.json")
    assert not list(tmp_path.iterdir())


def test_an_engine_of_unknown_size_is_asked_about() -> None:
    with pytest.raises(EngineError, match="--blocks"):
        config_of(Sizes(model="m"), max_num_seqs=8, step_tokens=512)


def test_no_probe_is_longer_than_the_engine_bears() -> None:
    for together in rounds(engine(), rng=random.Random(1), repeats=2):
        total = sum(len(probe.prompt) + probe.output_tokens for probe in together)
        assert total <= 199 * 32
        assert all(len(p.prompt) + p.output_tokens <= 2_048 for p in together)
