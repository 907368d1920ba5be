"""Prometheus text under vLLM's names."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

from agentsched_bench.engine.requests import EngineConfig, Finished, Gauges

_TTFT_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_GAP_S: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
_LATENCY_S: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip

_REASONS: Final = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        """The samples in Prometheus text."""
        lines = []
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}",{labels}}} {total:.1f}')
        lines.append(f"{name}_count{{{labels}}} {total:.1f}")
        lines.append(f"{name}_sum{{{labels}}} {self._sum!r}")
        return lines


class Measures:
    """What the server measures in real time, next to the model's own counters."""

    __slots__ = ("first_token", "gap", "latency", "reasons", "rejected")

    def __init__(self) -> None:
        self.first_token = Histogram(_TTFT_S)
        self.gap = Histogram(_GAP_S)
        self.latency = Histogram(_LATENCY_S)
        self.reasons: Counter[str] = Counter()
        self.rejected = 0

    def token(self, seconds: float, first: bool) -> None:
        """A token came `seconds` after the one before, or after the arrival."""
        (self.first_token if first else self.gap).observe(seconds)

    def ended(self, seconds: float, _done: Finished) -> None:
        """A generation has given all of its tokens."""
        self.latency.observe(seconds)

    def finished(self, reason: str) -> None:
        """Count an end by its finish reason, in vLLM's words."""
        self.reasons["stop" if reason == "tool_calls" else reason] += 1


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def exposition(*, gauges: Gauges, measures: Measures, config: EngineConfig, model: str) -> str:
    """The `/metrics` page."""
    labels = f'engine="0",model_name="{_escape(model)}"'
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: dict[str, float]) -> None:
        sample_name = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
        lines.append(f"# HELP {sample_name} {text}")
        lines.append(f"# TYPE {sample_name} {kind}")
        lines.extend(
            f"{sample_name}{{{labels}{extra}}} {float(value)}" for extra, value in samples.items()
        )

    def one(name: str, kind: str, text: str, value: float) -> None:
        family(name, kind, text, {"": value})

    one("num_requests_running", "gauge", "Number of requests in model execution batches.",
        gauges.running)  # fmt: skip
    one("num_requests_waiting", "gauge", "Number of requests waiting to be processed.",
        gauges.waiting)  # fmt: skip
    one("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.",
        gauges.cache_usage)  # fmt: skip
    one("prefix_cache_queries", "counter", "Prefix cache queries, in queried tokens.",
        gauges.prefix_queries)  # fmt: skip
    one("prefix_cache_hits", "counter", "Prefix cache hits, in cached tokens.",
        gauges.prefix_hits)  # fmt: skip
    one("num_preemptions", "counter", "Cumulative number of preemptions.", gauges.preemptions)
    one("prompt_tokens", "counter", "Number of prefill tokens processed.", gauges.prompt_tokens)
    family(
        "prompt_tokens_by_source", "counter", "Number of prompt tokens by source.",
        {
            ',source="local_compute"': gauges.prefilled_tokens,
            ',source="local_cache_hit"': max(0, gauges.prefix_hits - gauges.tier_tokens),
            ',source="external_kv_transfer"': gauges.tier_tokens,
        },
    )  # fmt: skip
    one("generation_tokens", "counter", "Number of generation tokens processed.",
        gauges.generation_tokens)  # fmt: skip
    family(
        "request_success", "counter", "Count of successfully processed requests.",
        {f',finished_reason="{reason}"': measures.reasons[reason] for reason in _REASONS},
    )  # fmt: skip
    family(
        "admission_rejections", "counter", "Admission attempts rejected by a queue limit.",
        {',reason="max_num_queued_reqs"': measures.rejected},
    )  # fmt: skip
    info = {
        "block_size": config.block_size,
        "num_gpu_blocks": config.blocks,
        "enable_prefix_caching": config.prefix_caching,
        "engine": 0,
    }
    pairs = ",".join(f'{key}="{value}"' for key, value in sorted(info.items()))
    lines.append("# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig")
    lines.append("# TYPE vllm:cache_config_info gauge")
    lines.append(f"vllm:cache_config_info{{{pairs}}} 1.0")
    for name, text, histogram in (
        ("time_to_first_token_seconds", "Time to first token.", measures.first_token),
        ("inter_token_latency_seconds", "Time between tokens.", measures.gap),
        ("e2e_request_latency_seconds", "Latency of whole requests.", measures.latency),
    ):
        lines.append(f"# HELP vllm:{name} {text}")
        lines.append(f"# TYPE vllm:{name} histogram")
        lines.extend(histogram.lines(f"vllm:{name}", labels))
    return "\n".join(lines) + "\n"
