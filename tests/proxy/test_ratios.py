"""Bytes per token converge to what engines report, and stay within reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_upstream import Upstream

from agentsched.proxy.identity import BYTES_PER_TOKEN
from agentsched.proxy.ratios import TokenRatios


def test_an_unknown_model_has_the_usual_ratio() -> None:
    assert TokenRatios().of("m") == BYTES_PER_TOKEN


def test_the_estimate_converges_to_the_truth() -> None:
    ratios = TokenRatios()
    for size in range(1_000, 41_000, 1_000):
        used = ratios.of("m")
        ratios.learn("m", used=used, estimated=round(size / used), actual=round(size / 3.1))
    assert abs(ratios.of("m") - 3.1) < 0.01
    assert ratios.of("other") == BYTES_PER_TOKEN


def test_small_prompts_and_missing_usage_teach_nothing() -> None:
    ratios = TokenRatios()
    ratios.learn("m", used=4.0, estimated=10, actual=20)
    ratios.learn("m", used=4.0, estimated=1_000, actual=0)
    assert ratios.of("m") == BYTES_PER_TOKEN


@given(st.lists(st.tuples(st.text(max_size=2), st.integers(0, 10**9), st.integers(0, 10**9))))
def test_no_report_leads_out_of_bounds(reports: list[tuple[str, int, int]]) -> None:
    ratios = TokenRatios()
    for model, estimated, actual in reports:
        ratios.learn(model, used=ratios.of(model), estimated=estimated, actual=actual)
        assert 0.5 <= ratios.of(model) <= 40.0


def test_models_are_bounded() -> None:
    ratios = TokenRatios()
    for number in range(300):
        ratios.learn(f"m{number}", used=4.0, estimated=1_000, actual=2_000)
    assert ratios.of("m0") == BYTES_PER_TOKEN
    assert ratios.of("m299") == 2.0


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}


@pytest.mark.parametrize(("blocks", "ratio"), [([], 10.0), ([PICTURE], BYTES_PER_TOKEN)])
async def test_pictures_teach_nothing(
    proxy: Any, upstream: Upstream, blocks: list[Any], ratio: float
) -> None:
    async def script(exchange: Any) -> None:
        choice = {"index": 0, "message": {"content": "So."}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1_000, "completion_tokens": 5}
        await exchange.json({"id": "c", "choices": [choice], "usage": usage})

    upstream.script = script
    text = {"type": "text", "text": "word " * 2_000}
    response = await proxy.chat(messages=[{"role": "user", "content": [text, *blocks]}])
    assert response.status_code == 200
    assert proxy.gateway.ratios.of("m") == pytest.approx(ratio, rel=0.05)
