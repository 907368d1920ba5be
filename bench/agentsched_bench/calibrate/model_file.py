"""An engine model in a file: costs, sizes, and how well they were found to fit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched.model import ConfigError
from agentsched_bench.engine.cost import CostModel
from agentsched_bench.engine.requests import EngineConfig, Scheduling
from agentsched_bench.engine.tier import TierConfig
from agentsched_bench.whole_file import write_whole

SCHEMA: Final = "agentsched.engine-model/1"


class FitRow(msgspec.Struct, kw_only=True):
    """How well the costs explain the calls they were fitted to, and held-out ones.

    `first_token_error` and `answer_error`: median of |modelled - measured| / measured. `note` says
    where the former is not known; it is 0 then.
    """

    calls: int
    held_out: int
    first_token_error: float
    answer_error: float
    note: str = ""

    @property
    def said(self) -> str:
        """Both errors in words."""
        answers = f"{self.answer_error:.0%}"
        if self.note:
            return f"answers off by {answers}, {self.note}"
        return f"first tokens off by {self.first_token_error:.0%}, answers by {answers}"


class ModelFile(msgspec.Struct, kw_only=True):
    """What lies in the file. `source` says where the numbers come from."""

    schema: str = SCHEMA
    source: str
    cost: dict[str, float]
    blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    priority: bool = False
    tier_blocks: int = 0
    tier_tokens_per_second: float = 0.0
    fit: FitRow | None = None
    measured: dict[str, Any] = {}

    def config(self) -> EngineConfig:
        """The engine.

        Raises:
            ConfigError: the numbers are no engine's.
        """
        try:
            cost = msgspec.convert(self.cost, CostModel, strict=True)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"engine model: {error}") from error
        tier = None
        if self.tier_blocks:
            speed = self.tier_tokens_per_second
            tier = TierConfig(blocks=self.tier_blocks, tokens_per_second=speed)
        return EngineConfig(
            cost=cost,
            blocks=self.blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            scheduling=Scheduling.PRIORITY if self.priority else Scheduling.FCFS,
            tier=tier,
        )


def of_config(
    config: EngineConfig,
    *,
    source: str,
    fit: FitRow | None = None,
    measured: dict[str, Any] | None = None,
) -> ModelFile:
    """The file of an engine."""
    return ModelFile(
        source=source,
        cost=asdict(config.cost),
        blocks=config.blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        priority=config.scheduling is Scheduling.PRIORITY,
        tier_blocks=config.tier.blocks if config.tier else 0,
        tier_tokens_per_second=config.tier.tokens_per_second if config.tier else 0.0,
        fit=fit,
        measured=measured or {},
    )


def read_model(path: Path) -> ModelFile:
    """Read a model file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=ModelFile)
    except OSError as error:
        raise ConfigError(f"cannot read the engine model {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no engine model: {error}") from error
    if found.schema != SCHEMA:
        raise ConfigError(f"{path} is {found.schema!r}; this reads {SCHEMA!r}")
    return found


def write_model(path: Path, model: ModelFile) -> None:
    """Write a model file."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(model), indent=1) + b"\n")
