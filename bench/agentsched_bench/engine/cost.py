"""How long one engine step takes, as a formula with few constants that can be measured.

A step lasts

    base + sum over prefilled tokens  (per_prefill_token + per_prefill_position x position)
         + sum over decoding requests (per_decode + per_decode_context x context)

The first term is what a step costs with nothing in it (reading the weights, launching, scheduling),
the second is matrix work plus attention over what lies before, the third is reading a request's KV.
All constants are nanoseconds. `cpu-2core` was fitted to vLLM 0.32 with a tiny Llama on two CPU
cores. The GPU presets are roofline estimates, not measurements: see `roofline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model.errors import ConfigError
from agentsched.model.time import Nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The constants of one engine on one machine; every field is nanoseconds."""

    base_ns: float
    per_prefill_token_ns: float
    per_prefill_position_ns: float
    per_decode_ns: float
    per_decode_context_ns: float
    #: Per call, outside the engine: HTTP, tokenizing, detokenizing.
    per_call_ns: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < 1e15:
                raise ConfigError(f"cost model: {field.name} must be 0 or more, not {value!r}")

    def slower(self, factor: float) -> CostModel:
        """The same engine, whose steps take `factor` times as long; its calls do not."""
        return replace(
            self,
            base_ns=self.base_ns * factor,
            per_prefill_token_ns=self.per_prefill_token_ns * factor,
            per_prefill_position_ns=self.per_prefill_position_ns * factor,
            per_decode_ns=self.per_decode_ns * factor,
            per_decode_context_ns=self.per_decode_context_ns * factor,
        )

    def prefill_ns(self, *, start: int, tokens: int) -> float:
        """The time of prefilling `tokens` tokens of one request from position `start` on."""
        positions = tokens * start + tokens * (tokens - 1) // 2
        return tokens * self.per_prefill_token_ns + positions * self.per_prefill_position_ns

    def step(self, *, prefill_ns: float, decodes: int, decode_context: int) -> Nanos:
        """The length of one step.

        `prefill_ns` is the sum of `prefill_ns(...)` over its prefill chunks, `decode_context` the
        sum of the contexts of its `decodes` decoding requests.
        """
        decode_ns = decodes * self.per_decode_ns + decode_context * self.per_decode_context_ns
        return Nanos(max(1, round(self.base_ns + prefill_ns + decode_ns)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU's data sheet: dense bf16 operations and bytes per second, bytes of memory."""

    flops: float
    bandwidth: float
    memory: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder with grouped-query attention, in bf16."""

    parameters: float
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> float:
        return 2 * self.parameters

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A cost model with the engine sizes that go with it."""

    cost: CostModel
    blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


#: Data sheets: A100-80GB SXM, H100 SXM, H200 SXM.
_A100: Final = Gpu(flops=312e12, bandwidth=2.039e12, memory=80e9)
_H100: Final = Gpu(flops=989e12, bandwidth=3.35e12, memory=80e9)
_H200: Final = Gpu(flops=989e12, bandwidth=4.8e12, memory=141e9)

#: Four of them as one engine (tensor parallel); what they say to each other is left out.
_FOUR_A100: Final = Gpu(flops=4 * _A100.flops, bandwidth=4 * _A100.bandwidth, memory=320e9)

#: The shapes of Llama-3.1-8B, Qwen2.5-32B and Llama-3-70B, from their published configurations.
_DENSE_8B: Final = ModelShape(
    parameters=8.03e9, layers=32, query_heads=32, kv_heads=8, head_dim=128
)
_DENSE_32B: Final = ModelShape(
    parameters=32.8e9, layers=64, query_heads=40, kv_heads=8, head_dim=128
)
_DENSE_70B: Final = ModelShape(
    parameters=70.6e9, layers=80, query_heads=64, kv_heads=8, head_dim=128
)

# Shares of the data sheet that tuned kernels commonly reach. Stated once, so that a measured engine
# can be compared with them; `from_json` replaces the whole estimate by measured constants.
_MATMUL_SHARE: Final = 0.60
_ATTENTION_SHARE: Final = 0.40
_BANDWIDTH_SHARE: Final = 0.80
#: Scheduling, launching and sampling per step; the same per request in it.
_STEP_OVERHEAD_NS: Final = 1.5e6
_REQUEST_OVERHEAD_NS: Final = 12e3
_CALL_OVERHEAD_NS: Final = 4e6
#: vLLM's default memory share, and what activations and graphs take of it.
_MEMORY_SHARE: Final = 0.92
_ACTIVATION_BYTES: Final = 3e9


def roofline(*, gpu: Gpu, shape: ModelShape) -> CostModel:
    """Constants from first principles.

    - base: one read of the weights at the reachable bandwidth, plus a fixed overhead. A decode
      step is bound by this read; in a prefill step it hides behind the matrix work in part, so the
      sum is a little too long there (by less than `base`).
    - per prefilled token: 2 operations per parameter at the reachable matrix rate.
    - per position: 4 operations per layer, head and dimension (scores and values).
    - per context token of a decoding request: one read of its KV.
    """
    read = shape.weight_bytes / (gpu.bandwidth * _BANDWIDTH_SHARE)
    attention = 4 * shape.layers * shape.query_heads * shape.head_dim
    return CostModel(
        base_ns=round(read * 1e9 + _STEP_OVERHEAD_NS),
        per_prefill_token_ns=round(2 * shape.parameters / (gpu.flops * _MATMUL_SHARE) * 1e9, 1),
        per_prefill_position_ns=round(attention / (gpu.flops * _ATTENTION_SHARE) * 1e9, 5),
        per_decode_ns=_REQUEST_OVERHEAD_NS,
        per_decode_context_ns=round(
            shape.kv_bytes_per_token / (gpu.bandwidth * _BANDWIDTH_SHARE) * 1e9, 2
        ),
        per_call_ns=_CALL_OVERHEAD_NS,
    )


def _gpu_preset(*, gpu: Gpu, shape: ModelShape, max_num_batched_tokens: int) -> Preset:
    room = gpu.memory * _MEMORY_SHARE - shape.weight_bytes - _ACTIVATION_BYTES
    block_size = 16
    blocks = int(room // (shape.kv_bytes_per_token * block_size))
    assert blocks > 0
    return Preset(
        cost=roofline(gpu=gpu, shape=shape),
        blocks=blocks,
        block_size=block_size,
        max_num_seqs=256,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=min(131_072, (blocks - 1) * block_size),
    )


#: Fitted to vLLM 0.32 on two CPU cores: 6,144 tokens cold 1.32 s; 6,144 cached and 1,024 new
#: 0.45 s; 8 requests decoding at 6k context 12.6 ms a step.
CPU_2CORE: Final = CostModel(
    base_ns=2_500_000,
    per_prefill_token_ns=58_000,
    per_prefill_position_ns=53,
    per_decode_ns=90_000,
    per_decode_context_ns=190,
    per_call_ns=18_000_000,
)


#: The same engine where its API server, a proxy and the clients share the two cores with it: each
#: step and each call costs it time. Fitted to every second call of `direct` and `unlimited` in a
#: quiet live run of `thrash.toml`, variant `unshared` (2026-11-22), by `agentsched_bench.fidelity`;
#: on the other calls first tokens are off by 20 % and answers by 21 % (medians).
CPU_2CORE_SERVED: Final = CostModel(
    base_ns=7_800_000,
    per_prefill_token_ns=56_000,
    per_prefill_position_ns=54,
    per_decode_ns=55_000,
    per_decode_context_ns=86,
    per_call_ns=40_000_000,
)


def _presets() -> dict[str, Preset]:
    two_cores = Preset(
        cost=CPU_2CORE,
        blocks=1024,
        block_size=32,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        max_model_len=16_384,
    )
    presets = {
        "cpu-2core": two_cores,
        "cpu-2core-served": replace(two_cores, cost=CPU_2CORE_SERVED),
    }
    for name, gpu in (("a100", _A100), ("h100", _H100), ("h200", _H200)):
        for size, shape in (("8b", _DENSE_8B), ("32b", _DENSE_32B)):
            preset = _gpu_preset(gpu=gpu, shape=shape, max_num_batched_tokens=8192)
            presets[f"{name}-{size}"] = preset
        presets[name] = presets[f"{name}-8b"]
    presets["a100-70b-tp4"] = _gpu_preset(
        gpu=_FOUR_A100, shape=_DENSE_70B, max_num_batched_tokens=8192
    )
    return presets


PRESETS: Final[Mapping[str, Preset]] = _presets()


def preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        ConfigError: there is none of that name; the text lists those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(sorted(PRESETS))
        raise ConfigError(f"unknown preset {name!r}; there are: {known}") from None


def to_json(cost: CostModel) -> bytes:
    """`cost` as a JSON object with its field names."""
    return msgspec.json.encode(asdict(cost))


def from_json(data: bytes | str) -> CostModel:
    """The inverse of `to_json`.

    Raises:
        ConfigError: not such an object, a field is missing, unknown or not a number.
    """
    try:
        return msgspec.convert(msgspec.json.decode(data), CostModel, strict=True)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"cost model: {error}") from error


def read_cost(path: Path) -> CostModel:
    """Read a cost model file.

    Raises:
        ConfigError: the file cannot be read or is not a cost model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the cost model {path}: {error.strerror}") from error
    return from_json(data)
