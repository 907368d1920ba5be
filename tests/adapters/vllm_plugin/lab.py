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


@cache
def _config(blocks: int, context_max: int, running_max: int, step_tokens: int) -> Any:
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
    cache_config = CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=True)
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
    cache_config.block_size = BLOCK_SIZE
    cache_config.num_gpu_blocks = blocks
    scheduling.max_num_batched_tokens = step_tokens
    return config


@cache
def _hasher() -> Any:
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    function = get_hash_fn_by_name("sha256")
    init_none_hash(function)
    return get_request_block_hasher(BLOCK_SIZE, function)


class Lab:
    """One scheduler. `settings` are the plugin's variables; None runs stock `AsyncScheduler`."""

    def __init__(
        self,
        settings: dict[str, str] | None,
        *,
        blocks: int = 28,
        context_max: int = 100,
        running_max: int = 4,
        step_tokens: int = 24,
    ) -> None:
        import torch
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from agentsched_adapters.vllm_plugin.scheduler import ProgramScheduler

        for name in [n for n in os.environ if n.startswith("AGENTSCHED_PLUGIN_")]:
            del os.environ[name]
        for name, value in (settings or {}).items():
            os.environ[f"AGENTSCHED_PLUGIN_{name.upper()}"] = value
        config = _config(blocks, context_max, running_max, step_tokens)
        spec = FullAttentionSpec(
            block_size=BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32
        )
        make = AsyncScheduler if settings is None else ProgramScheduler
        self.scheduler = make(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
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
        #: Cached prompt tokens of each request when it was first scheduled.
        self.cached: dict[str, int] = {}

    @property
    def pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def add(
        self, key: str, prompt: list[int], *, tokens: int, xargs: dict[str, Any] | None = None
    ) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
        params.extra_args = dict(xargs or {})
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
                held = sum(map(len, manager.get_blocks(request.request_id).blocks))
                there = self.pool.get_num_free_blocks() + self.host.pins.reclaimable()
                refused.append(-(-slots // BLOCK_SIZE) - held - there)
            return given

        manager.allocate_slots = seen
        try:
            yield refused
        finally:
            manager.allocate_slots = allocate

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
            token = 3_000 + (len(answer) * 7 + sum(key.encode())) % 900
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
