"""Runs vLLM's own scheduler on a scenario; the interpreter must be one that has vLLM.

Reads a list of scenarios as JSON from stdin, writes for each one record per engine step to stdout.
The model is only a configuration file: every sampled token comes from the scenario.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

MODEL = {
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


def make_scheduler(config: dict[str, Any], folder: str) -> Any:
    import torch
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        ModelConfig,
        ParallelConfig,
        SchedulerConfig,
        VllmConfig,
    )
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    Path(folder, "config.json").write_text(json.dumps(MODEL))
    model = ModelConfig(
        model=folder,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=config["max_model_len"],
        enforce_eager=True,
    )
    cache = CacheConfig(block_size=config["block_size"], enable_prefix_caching=True)
    cache.num_gpu_blocks = config["blocks"]
    scheduling = SchedulerConfig(
        max_num_seqs=config["max_num_seqs"],
        max_num_batched_tokens=config["max_num_batched_tokens"],
        max_model_len=config["max_model_len"],
        enable_chunked_prefill=True,
        is_encoder_decoder=False,
        policy=config["scheduling"],
        async_scheduling=False,
    )
    vllm_config = VllmConfig(
        model_config=model,
        cache_config=cache,
        scheduler_config=scheduling,
        parallel_config=ParallelConfig(),
        device_config=DeviceConfig("cpu"),
    )
    # Set again: the platform's defaults may have changed what the scenario asks for.
    cache.block_size = config["block_size"]
    cache.num_gpu_blocks = config["blocks"]
    scheduling.max_num_batched_tokens = config["max_num_batched_tokens"]
    spec = FullAttentionSpec(
        block_size=config["block_size"], num_kv_heads=1, head_size=32, dtype=torch.float32
    )
    return Scheduler(
        vllm_config=vllm_config,
        kv_cache_config=KVCacheConfig(
            num_blocks=config["blocks"],
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=config["block_size"],
        hash_block_size=config["block_size"],
        log_stats=True,
    )


def make_request(event: dict[str, Any], block_size: int) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    hash_function = get_hash_fn_by_name("sha256")
    init_none_hash(hash_function)
    parameters = SamplingParams(
        max_tokens=len(event["answer"]), min_tokens=len(event["answer"]), ignore_eos=True
    )
    return Request(
        request_id=event["id"],
        prompt_token_ids=list(event["prompt"]),
        sampling_params=parameters,
        pooling_params=None,
        arrival_time=event["arrived"],
        priority=event.get("priority", 0),
        block_hasher=get_request_block_hasher(block_size, hash_function),
    )


class Oracle:
    def __init__(self, scenario: dict[str, Any], folder: str) -> None:
        self.config = scenario["config"]
        self.scheduler = make_scheduler(self.config, folder)
        self.events = scenario["events"]
        self.answers: dict[str, list[int]] = {}
        self.finished: list[dict[str, Any]] = []
        self.names: dict[Any, str] = {}

    def feed(self, step: int) -> None:
        from vllm.v1.request import RequestStatus

        for event in self.events:
            if event["at"] != step:
                continue
            if event["kind"] == "abort":
                if event["id"] in self.scheduler.requests:
                    self.scheduler.finish_requests(event["id"], RequestStatus.FINISHED_ABORTED)
                continue
            self.answers[event["id"]] = list(event["answer"])
            self.scheduler.add_request(make_request(event, self.config["block_size"]))

    def step(self) -> dict[str, Any]:
        from vllm.v1.outputs import ModelRunnerOutput

        while True:
            before = len(self.scheduler.running)
            output = self.scheduler.schedule()
            scheduled = dict(output.num_scheduled_tokens)
            if scheduled or len(self.scheduler.running) == before:
                break
            # A step in which someone preempted itself and nobody ran: vLLM's loop goes on at once.
        ids = list(scheduled)
        sampled = []
        for key in ids:
            request = self.scheduler.requests[key]
            complete = request.num_computed_tokens >= request.num_tokens
            sampled.append([self.answers[key][request.num_output_tokens]] if complete else [])
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
        cached: dict[str, int] = {}
        for group in results.values():
            for out in group.outputs:
                if out.prefill_stats is not None:
                    cached[out.request_id] = out.prefill_stats.num_cached_tokens
        pool = self.scheduler.kv_cache_manager.block_pool
        free = pool.free_block_queue.get_all_free_blocks()
        return {
            "scheduled": scheduled,
            "running": [request.request_id for request in self.scheduler.running],
            "waiting": sorted(request.request_id for request in self.scheduler.waiting),
            "cached": cached,
            "free": [
                None if block.block_hash is None else self.label(block.block_hash) for block in free
            ],
        }

    def label(self, content: Any) -> str:
        return self.names.setdefault(content, f"b{len(self.names)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for scenario in json.load(sys.stdin):
            oracle = Oracle(scenario, folder)
            records = []
            for step in range(scenario["steps"]):
                oracle.feed(step)
                records.append(oracle.step())
            print("ORACLE " + json.dumps(records))


if __name__ == "__main__":
    main()
