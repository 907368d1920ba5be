"""How engines are written on a command line: presets, model files, sizes, tiers, mixed fleets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model import ConfigError
from agentsched_bench.calibrate.model_file import read_model
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig, Scheduling
from agentsched_bench.engine.tier import read_tier
from agentsched_bench.sim.engines import EngineTraits

_FORM: Final = (
    "[NUMBERx]PRESET or FILE, then ,blocks=N ,tier=BLOCKS@TOKENS/S ,slow=FACTOR ,model=NAME"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Engines, each with what it can do beside generating."""

    engines: tuple[EngineConfig, ...]
    traits: tuple[EngineTraits, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Models that an engine names, each as often as engines do."""
        return tuple(model for traits in self.traits for model in traits.models)


def digest_of(engines: Sequence[EngineConfig]) -> str:
    """A hash of all that these engines are: a file's name says nothing of what is in it by now."""
    return hashlib.sha256(msgspec.json.encode(list(engines), order="deterministic")).hexdigest()


def engine_of(
    name: str, *, blocks: int | None = None, block_size: int | None = None, tier: str | None = None
) -> EngineConfig:
    """A preset or a model file, with another size. A context may take all of the cache, as in vLLM.

    Raises:
        ConfigError: no such preset or file, or the tier is not `BLOCKS@TOKENS_PER_SECOND`.
    """
    if name.endswith(".json"):
        chosen = read_model(Path(name)).config()
    else:
        chosen = EngineConfig.from_preset(preset(name))
    if blocks is not None:
        longest = min(chosen.max_model_len, (blocks - 1) * chosen.block_size)
        chosen = replace(chosen, blocks=blocks, max_model_len=longest)
    if block_size is not None:
        tokens = (chosen.blocks - 1) * chosen.block_size
        count = -(-tokens // block_size) + 1
        chosen = replace(chosen, blocks=count, block_size=block_size)
    return chosen if tier is None else replace(chosen, tier=read_tier(tier))


def fleet_of(
    specs: list[str],
    *,
    block_size: int | None = None,
    pins: bool = False,
    warm: bool = True,
    priority: bool = False,
) -> Fleet:
    """The engines of `[NUMBERx]NAME[,KEY=VALUE]...`, in order.

    Raises:
        ConfigError: it is not of that form, or blocks are not of one size.
    """
    engines: list[EngineConfig] = []
    traits: list[EngineTraits] = []
    for spec in specs:
        name, *settings = spec.split(",")
        number, times, rest = name.partition("x")
        count, name = (int(number), rest) if times and number.isdigit() else (1, name)
        given = dict(setting.partition("=")[::2] for setting in settings)
        if set(given) - {"blocks", "tier", "slow", "model"} or count < 1:
            raise ConfigError(f"not an engine: {spec!r} (write {_FORM})")
        try:
            blocks = int(given["blocks"]) if "blocks" in given else None
            slow = float(given.get("slow", 1))
        except ValueError:
            raise ConfigError(f"not an engine: {spec!r} (write {_FORM})") from None
        engine = engine_of(name, blocks=blocks, block_size=block_size, tier=given.get("tier"))
        if slow != 1:
            engine = replace(engine, cost=engine.cost.slower(slow))
        if priority:
            engine = replace(engine, scheduling=Scheduling.PRIORITY)
        models = (given["model"],) if given.get("model") else ()
        engines += [engine] * count
        traits += [EngineTraits(pins=pins, warm=warm, models=models)] * count
    sizes = sorted({engine.block_size for engine in engines})
    if len(sizes) > 1:
        raise ConfigError(f"blocks of {sizes} tokens: give one size to all with --block-size")
    return Fleet(engines=tuple(engines), traits=tuple(traits))
