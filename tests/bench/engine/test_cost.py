"""The cost model's arithmetic against what was measured on real vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.model.errors import ConfigError
from agentsched.model.time import in_seconds
from agentsched_bench.engine.cost import (
    CPU_2CORE,
    PRESETS,
    CostModel,
    from_json,
    preset,
    read_cost,
    to_json,
)


def prefill_seconds(cost: CostModel, *, start: int, tokens: int, chunk: int) -> float:
    """A lone prompt from `start` on, in chunks, with the overhead of the call."""
    total = cost.per_call_ns
    done = start
    while done < start + tokens:
        size = min(chunk, start + tokens - done)
        ns = cost.prefill_ns(start=done, tokens=size)
        total += cost.step(prefill_ns=ns, decodes=0, decode_context=0)
        done += size
    return total / 1e9


def test_cold_prompt_on_two_cores() -> None:
    # Measured on vLLM 0.32: 6,144 tokens cold 1.32 s.
    seconds = prefill_seconds(CPU_2CORE, start=0, tokens=6144, chunk=2048)
    assert seconds == pytest.approx(1.32, rel=0.06)


def test_long_prefix_and_little_new_on_two_cores() -> None:
    # Measured: 6,144 cached and 1,024 new 0.45 s.
    seconds = prefill_seconds(CPU_2CORE, start=6144, tokens=1024, chunk=2048)
    assert seconds == pytest.approx(0.45, rel=0.06)


def test_decoding_on_two_cores() -> None:
    # Measured: 8 requests at 6k context 12.6 ms a step.
    span = CPU_2CORE.step(prefill_ns=0, decodes=8, decode_context=8 * 6144)
    assert in_seconds(span) == pytest.approx(0.0126, rel=0.06)


@given(start=st.integers(0, 200_000), first=st.integers(1, 5000), second=st.integers(1, 5000))
def test_chunks_add_up(start: int, first: int, second: int) -> None:
    cost = CPU_2CORE
    whole = cost.prefill_ns(start=start, tokens=first + second)
    parts = cost.prefill_ns(start=start, tokens=first)
    parts += cost.prefill_ns(start=start + first, tokens=second)
    assert parts == pytest.approx(whole)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_hold_their_longest_request(name: str) -> None:
    chosen = preset(name)
    assert (chosen.blocks - 1) * chosen.block_size >= chosen.max_model_len
    assert chosen.cost.step(prefill_ns=0, decodes=1, decode_context=1000) > 0


def test_better_hardware_is_faster() -> None:
    # Prefill is bound by operations (A100 < H100 = H200), decoding by bandwidth (each better).
    prefill = [preset(n).cost.per_prefill_token_ns for n in ("a100", "h100", "h200")]
    decode = [preset(n).cost.per_decode_context_ns for n in ("a100", "h100", "h200")]
    base = [preset(n).cost.base_ns for n in ("a100", "h100", "h200")]
    assert prefill[0] > prefill[1] == prefill[2]
    assert decode[0] > decode[1] > decode[2]
    assert base[0] > base[1] > base[2]


def test_roofline_of_a_decode_step() -> None:
    # An 8B model in bf16 is 16 GB of weights: an H100 reads them in about 5 to 8 ms.
    span = preset("h100-8b").cost.step(prefill_ns=0, decodes=1, decode_context=0)
    assert 0.005 < in_seconds(span) < 0.009


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_round_trip(name: str, tmp_path: Path) -> None:
    cost = preset(name).cost
    assert from_json(to_json(cost)) == cost
    (tmp_path / "cost.json").write_bytes(to_json(cost))
    assert read_cost(tmp_path / "cost.json") == cost


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[",
        '{"base_ns": -1, "per_prefill_token_ns": 1, "per_prefill_position_ns": 1,'
        ' "per_decode_ns": 1, "per_decode_context_ns": 1}',
        '{"base_ns": "x", "per_prefill_token_ns": 1, "per_prefill_position_ns": 1,'
        ' "per_decode_ns": 1, "per_decode_context_ns": 1}',
    ],
)
def test_bad_cost_files_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(text)


def test_unknown_preset_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cpu-2core"):
        preset("b200")
    with pytest.raises(ConfigError, match="cannot read"):
        read_cost(tmp_path / "none.json")
