"""What is asked of the engine model, and what it says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agentsched.model.errors import ConfigError
from agentsched.model.time import Instant, Nanos
from agentsched_bench.engine.cost import CostModel, Preset
from agentsched_bench.engine.tier import TierConfig
from agentsched_bench.engine.tokens import BlockChain


class Scheduling(StrEnum):
    """How the engine orders what waits."""

    FCFS = "fcfs"
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine's sizes. `blocks` counts as vLLM's `num_gpu_blocks`: one of them is never used."""

    cost: CostModel
    blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    scheduling: Scheduling = Scheduling.FCFS
    prefix_caching: bool = True
    #: How many may wait, in calls and in prompt tokens; None is no bound.
    max_queued: int | None = None
    max_queued_tokens: int | None = None
    tier: TierConfig | None = None

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if (self.blocks - 1) * self.block_size < self.max_model_len:
            needed = -(-self.max_model_len // self.block_size) + 1
            raise ConfigError(
                f"{self.blocks} blocks of {self.block_size} cannot hold one request of "
                f"max_model_len {self.max_model_len}; use {needed} blocks or a smaller length"
            )

    @classmethod
    def from_preset(cls, chosen: Preset, *, cost: CostModel | None = None) -> EngineConfig:
        """The preset's sizes, with its own cost model or another."""
        return cls(
            cost=cost or chosen.cost,
            blocks=chosen.blocks,
            block_size=chosen.block_size,
            max_num_seqs=chosen.max_num_seqs,
            max_num_batched_tokens=chosen.max_num_batched_tokens,
            max_model_len=chosen.max_model_len,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One call of the engine: a prompt, and the answer that it will give to it.

    The model is no language model: whoever asks decides the answer. `chain` covers the prompt and
    all `output_tokens` of the answer, so that answers become cached as they do in vLLM.
    """

    id: str
    chain: BlockChain
    prompt_tokens: int
    output_tokens: int
    priority: int = 0

    def __post_init__(self) -> None:
        assert self.prompt_tokens > 0
        assert self.output_tokens > 0
        assert self.chain.tokens >= self.prompt_tokens + self.output_tokens


class Refusal(StrEnum):
    """Why the model did not take a generation."""

    DUPLICATE = "duplicate"
    TOO_LONG = "too_long"
    QUEUE_FULL = "queue_full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A generation that is done, with what its usage says."""

    id: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """One engine step. Everything in it becomes visible `duration` after `started_at`."""

    started_at: Instant
    duration: Nanos
    #: Ids of the generations that got one more token, the first or a later one, in running order.
    emitted: tuple[str, ...]
    #: Those of `emitted` for which it was the first.
    first: tuple[str, ...]
    finished: tuple[Finished, ...]
    preempted: tuple[str, ...]
    prefilled_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Several steps in a row, up to the first in which something started or ended."""

    steps: int
    #: When the last of them ended; the next step may begin then.
    at: Instant
    #: The last step, when it was one with a first token or an end in it.
    outcome: StepOutcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What vLLM's `/metrics` would show, and a little more. Counters only grow."""

    running: int
    waiting: int
    waiting_tokens: int
    blocks_total: int
    blocks_used: int
    blocks_cached: int
    prefix_queries: int
    prefix_hits: int
    prompt_tokens: int
    generation_tokens: int
    prefilled_tokens: int
    tier_tokens: int
    preemptions: int
    evictions: int
    steps: int
    busy_ns: int

    @property
    def cache_usage(self) -> float:
        """Share of the blocks in use; free blocks with reusable content do not count."""
        return self.blocks_used / self.blocks_total


class Live:
    """A generation inside the model: all of its mutable state."""

    __slots__ = (
        "arrived_at",
        "blocks",
        "cached_tokens",
        "computed",
        "emitted",
        "generation",
        "gone",
        "hashes",
        "known",
        "preemptions",
        "ready_at",
        "registered",
        "scheduled",
        "sequence",
    )

    def __init__(self, generation: Generation, *, now: Instant, sequence: int) -> None:
        total = generation.prompt_tokens + generation.output_tokens
        self.generation = generation
        self.arrived_at = now
        self.sequence = sequence
        self.hashes: Sequence[int] = generation.chain.hashes(total // generation.chain.block_size)
        #: Tokens whose KV exists or is computed by the step in flight.
        self.computed = 0
        #: Prompt plus emitted tokens: what `computed` has to reach before the next is emitted.
        self.known = generation.prompt_tokens
        self.emitted = 0
        #: The blocks of its first tokens, in order; empty unless it runs.
        self.blocks: list[int] = []
        #: How many of `blocks` are findable under their hash by its own doing or by a hit.
        self.registered = 0
        #: What its first admission found in the cache; absent before.
        self.cached_tokens: int | None = None
        #: While its blocks are loaded from the tier: when they will be there.
        self.ready_at = Instant(0)
        #: Tokens that it computes in the step in flight.
        self.scheduled = 0
        self.preemptions = 0
        #: Finished or aborted: a step in flight has nothing to tell about it any more.
        self.gone = False

    @property
    def rank(self) -> tuple[int, int, int]:
        """Its place under priority scheduling; smaller is sooner."""
        return (self.generation.priority, self.arrived_at, self.sequence)
