"""vLLM's real scheduler with the plugin in it, and no model: run by the Python that has vLLM.

The sampled tokens are made up, the clock is the test's, everything else is vLLM's own code.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

BLOCK_SIZE = 4
#: Models by the groups of layers that share their pool: kind of attention and length of a block.
#: The first length is the one at whose multiples a prefix can be found.
LAYOUTS: dict[str, tuple[tuple[str, int], ...]] = {
    "full": (("full", 4),),
    "sliding": (("full", 4), ("sliding", 4)),
    "two sliding": (("full", 4), ("sliding", 4), ("sliding", 4)),
    "chunked": (("full", 4), ("chunked", 4)),
    "two lengths": (("full", 8), ("sliding", 4)),
    "sliding alone": (("sliding", 4),),
    "drafting": (("full", 4), ("sliding", 4)),
    "drafting alone": (("sliding", 4),),
}
#: Those that draft with layers of every group: vLLM finds one block less than there is.
DRAFTING = frozenset({"drafting", "drafting alone"})
_WINDOW = 10
_CHUNK = 16
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
_FOLDER = tempfile.TemporaryDirectory()


def _spec(kind: str, block_size: int) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        SlidingWindowSpec,
    )

    shape: dict[str, Any] = {"block_size": block_size, "num_kv_heads": 1, "head_size": 32}
    shape["dtype"] = torch.float32
    if kind == "sliding":
        return SlidingWindowSpec(**shape, sliding_window=_WINDOW)
    if kind == "chunked":
        return ChunkedLocalAttentionSpec(**shape, attention_chunk_size=_CHUNK)
    return FullAttentionSpec(**shape)


@cache
def _config(
    blocks: int,
    context_max: int,
    running_max: int,
    step_tokens: int,
    block_size: int,
    is_async: bool,
) -> Any:
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        ModelConfig,
        ParallelConfig,
        SchedulerConfig,
        VllmConfig,
    )

    Path(_FOLDER.name, "config.json").write_text(json.dumps(_MODEL))
    model = ModelConfig(
        model=_FOLDER.name,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=context_max,
        enforce_eager=True,
    )
    cache_config = CacheConfig(block_size=block_size, enable_prefix_caching=True)
    scheduling = SchedulerConfig(
        max_num_seqs=running_max,
        max_num_batched_tokens=step_tokens,
        max_model_len=context_max,
        enable_chunked_prefill=True,
        is_encoder_decoder=False,
        policy="fcfs",
        async_scheduling=False,
    )
    config = VllmConfig(
        model_config=model,
        cache_config=cache_config,
        scheduler_config=scheduling,
        parallel_config=ParallelConfig(),
        device_config=DeviceConfig("cpu"),
    )
    # Set again: the platform's defaults may have changed what is asked for.
    cache_config.block_size = block_size
    cache_config.num_gpu_blocks = blocks
    scheduling.max_num_batched_tokens = step_tokens
    scheduling.async_scheduling = is_async
    return config


@cache
def _hasher() -> Any:
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    function = get_hash_fn_by_name("sha256")
    init_none_hash(function)
    return get_request_block_hasher(BLOCK_SIZE, function)


class Lab:
    """One scheduler. `settings` are the plugin's variables; None runs vLLM's own.

    `retention` is vLLM's `prefix_cache_retention_interval`: None caches windows everywhere, 0, the
    default of a server, those before the end of a prompt alone.
    """

    def __init__(
        self,
        settings: dict[str, str] | None,
        *,
        blocks: int = 28,
        context_max: int = 100,
        running_max: int = 4,
        step_tokens: int = 24,
        layout: str = "full",
        is_async: bool = True,
        retention: int | None = None,
    ) -> None:
        from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from agentsched_adapters.vllm_plugin.scheduler import ProgramScheduler

        for name in [n for n in os.environ if n.startswith("AGENTSCHED_PLUGIN_")]:
            del os.environ[name]
        for name, value in (settings or {}).items():
            os.environ[f"AGENTSCHED_PLUGIN_{name.upper()}"] = value
        groups = LAYOUTS[layout]
        self.unit = groups[0][1]
        config = _config(blocks, context_max, running_max, step_tokens, self.unit, is_async)
        stock = config.scheduler_config.get_scheduler_cls()
        make = stock if settings is None else ProgramScheduler
        self.scheduler = make(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[
                    KVCacheGroupSpec(
                        [f"layer{number}"], _spec(*group), is_eagle_group=layout in DRAFTING
                    )
                    for number, group in enumerate(groups)
                ],
                prefix_cache_retention_interval=retention,
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=self.unit,
            hash_block_size=BLOCK_SIZE,
            log_stats=True,
        )
        self.blocks = blocks
        self.context_max = context_max
        self.running_max = running_max
        self.step_tokens = step_tokens
        self.now_ns = 1_000_000_000
        self.host: Any = getattr(self.scheduler, "agentsched", None)
        if settings is not None:
            assert self.host is not None
            self.host._clock = lambda: self.now_ns
        self.in_flight: deque[tuple[Any, dict[str, bool]]] = deque()
        self.answered: dict[str, list[int]] = {}
        self.repeating: set[str] = set()
        #: Cached prompt tokens of each request when it was first scheduled.
        self.cached: dict[str, int] = {}

    @property
    def pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def add(
        self,
        key: str,
        prompt: list[int],
        *,
        tokens: int,
        xargs: dict[str, Any] | None = None,
        stop: list[str] | None = None,
        repeats: int = 0,
    ) -> None:
        """`repeats`: its answer is one word, and ends when that came so often."""
        from vllm.sampling_params import RepetitionDetectionParams, SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(max_tokens=tokens, min_tokens=tokens, ignore_eos=True, stop=stop)
        params.extra_args = dict(xargs or {})
        if repeats:
            params.min_tokens = 0
            params.repetition_detection = RepetitionDetectionParams(
                max_pattern_size=1, min_pattern_size=1, min_count=repeats
            )
            self.repeating.add(key)
        request = Request(
            request_id=key,
            prompt_token_ids=list(prompt),
            sampling_params=params,
            pooling_params=None,
            arrival_time=self.now_ns / 1e9,
            block_hasher=_hasher(),
        )
        self.answered[key] = []
        self.scheduler.add_request(request)

    def abort(self, key: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(key, RequestStatus.FINISHED_ABORTED)

    @contextlib.contextmanager
    def refusals(self) -> Iterator[list[int]]:
        """By how many blocks it would not have fitted, each time that a running request gets none.

        Negative or zero: free blocks and pins together had enough.
        """
        manager, refused = self.scheduler.kv_cache_manager, list[int]()
        allocate = manager.allocate_slots

        def seen(request: Any, tokens: int, *args: Any, **kwargs: Any) -> Any:
            given = allocate(request, tokens, *args, **kwargs)
            if given is None and request.status.name == "RUNNING":
                slots = min(request.num_computed_tokens + tokens, self.context_max)
                held = map(len, manager.get_blocks(request.request_id).blocks)
                missing = sum(
                    max(0, needed - has)
                    for needed, has in zip(self.needed(slots), held, strict=True)
                )
                there = self.pool.get_num_free_blocks() + self.host.pins.reclaimable()
                refused.append(missing - there)
            return given

        manager.allocate_slots = seen
        try:
            yield refused
        finally:
            manager.allocate_slots = allocate

    def needed(self, tokens: int) -> list[int]:
        """The blocks for so many tokens in each group, where nothing of them is cached."""
        managers = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        return [-(-tokens // one.block_size) for one in managers]

    def schedule(self) -> dict[str, int]:
        """Begin an engine step; what it runs, in tokens."""
        output = self.scheduler.schedule()
        scheduled = dict(output.num_scheduled_tokens)
        for new in output.scheduled_new_reqs:
            stats = self.scheduler.requests[new.req_id].prefill_stats
            if stats is not None:
                self.cached.setdefault(new.req_id, stats.num_cached_tokens)
        complete = {key: not self.scheduler.requests[key].is_prefill_chunk for key in scheduled}
        self.in_flight.append((output, complete))
        return scheduled

    def update(self) -> None:
        """End the oldest engine step that is under way."""
        from vllm.v1.outputs import ModelRunnerOutput

        output, complete = self.in_flight.popleft()
        ids = list(complete)
        sampled = []
        for key in ids:
            answer = self.answered[key]
            place = 0 if key in self.repeating else len(answer)
            token = 3_000 + (place * 7 + sum(key.encode())) % 900
            sampled.append([token] if complete[key] else [])
        results = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={key: index for index, key in enumerate(ids)},
                sampled_token_ids=sampled,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        for group in results.values():
            for out in group.outputs:
                self.answered[out.request_id].extend(out.new_token_ids)

    def step(self) -> dict[str, int]:
        """One whole engine step."""
        scheduled = self.schedule()
        while self.in_flight:
            self.update()
        return scheduled

    def run(self, *, steps_max: int = 2_000) -> int:
        """Steps until nobody is left."""
        for count in range(steps_max):
            if not self.scheduler.has_unfinished_requests():
                return count
            self.step()
        raise AssertionError(f"not done after {steps_max} steps: {list(self.scheduler.requests)}")

    def check(self) -> None:
        """Assert what must hold at any time."""
        pool, host = self.pool, self.host
        assert len(pool.blocks) == self.blocks
        free = pool.free_block_queue.get_all_free_blocks()
        assert len(free) == pool.get_num_free_blocks()
        assert all(block.ref_cnt == 0 for block in free)
        held = {block.block_id for pin in host.pins for block in pin.blocks}
        wanted: dict[int, int] = dict.fromkeys(held, 1)
        for key in self.scheduler.requests:
            for group in self.scheduler.kv_cache_manager.get_blocks(key).blocks:
                for block in group:
                    # Where a window has passed, nothing is left but the null block.
                    if block.is_null:
                        continue
                    wanted[block.block_id] = wanted.get(block.block_id, 0) + 1
        assert len(free) + len(wanted) == self.blocks - 1, "a block is neither free nor used"
        for block in pool.blocks:
            if not block.is_null:
                assert block.ref_cnt == wanted.get(block.block_id, 0), block
        pins = host.pins
        assert pins.granted_total == len(pins) + sum(pins.ended_total.values())
        host.check()
        assert host.is_active, host.failures

    def check_quiet(self) -> None:
        """Assert that nothing is left once every pin's time is over."""
        self.run()
        self.advance(3_600)
        self.schedule()
        self.update()
        self.check()
        assert len(self.host.pins) == 0
        assert self.host.live_requests == 0
        assert self.pool.get_num_free_blocks() == self.blocks - 1
        assert self.scheduler.reset_prefix_cache()
