"""The cost laws, against the coefficients that the embedded engine really has."""

from __future__ import annotations

from random import Random

import pytest

from agentsched.kernel.costs import EngineCost
from agentsched.model import SECOND, Nanos
from agentsched_bench.engine.cost import CostModel, preset

PRESETS = ("cpu-2core",)


def prefill_s(true: CostModel, *, uncached: int, prompt: int) -> float:
    """A lone prompt: its tokens, its steps of 2,048, and the call around them."""
    steps = -(-uncached // 2_048)
    work = true.prefill_ns(start=prompt - uncached, tokens=uncached)
    return (true.per_call_ns + steps * true.base_ns + work) / SECOND


def decode_s(true: CostModel, *, running: int, context: int) -> float:
    step = true.step(prefill_ns=0.0, decodes=running, decode_context=running * context)
    return step / SECOND


def nanos(value: float) -> Nanos:
    return Nanos(max(1, round(value * SECOND)))


def taught(
    true: CostModel, *, noise: float, samples: int = 300, stalls: bool = False
) -> EngineCost:
    """A cost model that saw the engine's own prices, step by step."""
    rng, learnt = Random("cost"), EngineCost()
    for number in range(samples):
        prompt = rng.randint(500, 20_000)
        uncached = rng.randint(64, prompt)
        running, output = rng.randint(1, 12), rng.randint(8, 200)
        first_s = prefill_s(true, uncached=uncached, prompt=prompt) * rng.gauss(1.0, noise)
        token_s = decode_s(true, running=running, context=prompt) * rng.gauss(1.0, noise)
        if stalls and number % 20 == 19:
            first_s *= 15.0
        learnt.learn(
            uncached_tokens=uncached,
            prompt_tokens=prompt,
            output_tokens=output,
            running_steps=running,
            to_first_token=nanos(first_s),
            to_last_token=nanos(token_s * (output - 1)),
        )
    return learnt


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("noise", "off"), [(0.0, 0.02), (0.05, 0.05), (0.15, 0.12)])
def test_the_true_prices_are_found(name: str, noise: float, off: float) -> None:
    true = preset(name).cost
    law = taught(true, noise=noise).law
    for uncached, prompt in ((4_000, 4_000), (2_000, 16_000), (16_000, 16_000)):
        said = law.first_token_s(uncached_tokens=uncached, prompt_tokens=prompt)
        assert said == pytest.approx(prefill_s(true, uncached=uncached, prompt=prompt), rel=off)
    for running, context in ((1, 4_000), (8, 16_000)):
        said = law.token_s(running_steps=running, context_tokens=context)
        assert said == pytest.approx(decode_s(true, running=running, context=context), rel=off)
    assert law.coefficients()["b"] * 1e-3 == pytest.approx(
        (true.per_prefill_token_ns + true.base_ns / 2_048) / SECOND, rel=max(off, 0.2)
    )


def test_stalled_calls_do_not_bend_it() -> None:
    true = preset("cpu-2core").cost
    law = taught(true, noise=0.05, stalls=True).law
    said = law.first_token_s(uncached_tokens=8_000, prompt_tokens=12_000)
    assert said == pytest.approx(prefill_s(true, uncached=8_000, prompt=12_000), rel=0.15)


def test_the_queue_has_its_price() -> None:
    true, rng, learnt = preset("cpu-2core").cost, Random(5), EngineCost()
    for _ in range(300):
        uncached, ahead = rng.randint(500, 6_000), rng.choice([0, 0, 2_000, 6_000])
        waited = ahead * true.per_prefill_token_ns / SECOND
        learnt.learn(
            uncached_tokens=uncached,
            prompt_tokens=uncached,
            ahead_tokens=ahead,
            output_tokens=1,
            to_first_token=nanos(prefill_s(true, uncached=uncached, prompt=uncached) + waited),
            to_last_token=Nanos(1),
        )
    assert learnt.law.coefficients()["q"] * 1e-3 * SECOND == pytest.approx(
        true.per_prefill_token_ns, rel=0.1
    )


def test_an_answers_context_is_that_of_its_middle() -> None:
    """A long answer to a short prompt teaches what a short answer to a longer prompt does."""
    short, long = EngineCost(), EngineCost()
    for number in range(200):
        context, running = 1_000 + 500 * (number % 9), 1 + number % 5
        token_s = 0.02 + 0.001 * running * context / 1_000
        for cost, output in ((short, 10), (long, 1_000)):
            cost.learn(
                uncached_tokens=0,
                prompt_tokens=context - output // 2,
                output_tokens=output,
                running_steps=running,
                to_first_token=Nanos(0),
                to_last_token=nanos(token_s * (output - 1)),
            )
    assert long.law.coefficients() == pytest.approx(short.law.coefficients(), rel=1e-6, abs=1e-9)
    assert long.law.coefficients()["f"] == pytest.approx(0.001, rel=0.02)


def test_confidence_comes_with_samples() -> None:
    true = preset("cpu-2core").cost
    few, many = (taught(true, noise=0.05, samples=n).law for n in (3, 300))
    assert EngineCost().law.prefill_confidence == 0.0
    assert few.prefill_confidence < 0.3 < 0.8 < many.prefill_confidence
    assert many.decode_confidence > 0.8
