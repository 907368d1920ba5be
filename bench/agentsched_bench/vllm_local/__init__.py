"""A real vLLM on this machine's CPU, with a tiny model made on the spot: no GPU, no download."""

from __future__ import annotations

from agentsched_bench.vllm_local.launcher import LocalVllm, LocalVllmConfig, find_python

__all__ = ["LocalVllm", "LocalVllmConfig", "find_python"]
