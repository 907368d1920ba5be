"""The engines of a scenario as models, and what goes wrong with them.

Embedded engines are started from these configurations and simulated ones are these, so that both
have the same sizes and costs.
"""

from __future__ import annotations

from dataclasses import replace

from agentsched.model import ConfigError
from agentsched_bench.compare.scenario import EngineSpec
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.sim.faults import Faults, outage, slowdown
from agentsched_bench.sim.specs import engine_of, fleet_of


def engines_of(spec: EngineSpec) -> list[EngineConfig]:
    """One for each engine. A real one is modelled by `preset`: a name, or a file of `calibrate`.

    Raises:
        ConfigError: a preset or file is none, or blocks are not of one size.
    """
    if spec.fleet:
        return [
            _sized(config, spec, blocks=None)
            for config in fleet_of(list(spec.fleet), block_size=spec.block_size).engines
        ]
    config = engine_of(spec.preset, tier=spec.tier)
    return [_sized(config, spec, blocks=spec.blocks)] * (len(spec.urls) or spec.count)


def _sized(config: EngineConfig, spec: EngineSpec, *, blocks: int | None) -> EngineConfig:
    blocks, size = blocks or config.blocks, spec.block_size or config.block_size
    return replace(
        config,
        blocks=blocks,
        block_size=size,
        max_model_len=min(spec.max_model_len or config.max_model_len, (blocks - 1) * size),
        max_num_seqs=spec.max_num_seqs or config.max_num_seqs,
    )


def roomy(config: EngineConfig, *, tokens: int) -> EngineConfig:
    """The engine with room for all these tokens besides, and no tier."""
    # Blocks that are only partly shared are held twice, hence the half more.
    blocks = config.blocks + 3 * tokens // (2 * config.block_size)
    return replace(config, blocks=blocks, tier=None)


def faults_of(spec: EngineSpec) -> Faults:
    """What goes wrong with the engines.

    Raises:
        ConfigError: it is not written as it should be, or names an engine that there is not.
    """
    found = Faults(
        outages=tuple(outage(text) for text in spec.outages),
        slowdowns=tuple(slowdown(text) for text in spec.slowdowns),
    )
    count = len(engines_of(spec))
    named = [each.engine for each in found.outages] + [each.engine for each in found.slowdowns]
    for engine in named:
        if engine >= count:
            raise ConfigError(f"no engine {engine}: there are engines 0 to {count - 1}")
    return found
