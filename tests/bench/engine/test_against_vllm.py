"""Our model against vLLM's own scheduler: the same steps, hits, preemptions and eviction order."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentsched.model.time import Instant
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.model import EngineModel
from agentsched_bench.engine.requests import EngineConfig, Generation, Scheduling
from agentsched_bench.engine.tokens import TokenChain

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
STEPS = 120


def scenario(seed: int) -> dict[str, Any]:
    """Conversations that grow and branch in a pool too small for them, with aborts."""
    rng = random.Random(seed)
    block_size = rng.choice([2, 4, 8])
    max_model_len = block_size * rng.randint(8, 16)
    config = {
        "block_size": block_size,
        "max_model_len": max_model_len,
        "blocks": max_model_len // block_size + 1 + rng.choice([0, 2, 8, 24]),
        "max_num_seqs": rng.choice([1, 2, 4, 8]),
        # vLLM wants at least `max_num_seqs` here.
        "max_num_batched_tokens": rng.choice([8, 16, 64, 256]),
        "scheduling": rng.choice(["fcfs", "priority"]),
    }
    histories = [[rng.randint(1, 3) for _ in range(rng.randint(1, 12))] for _ in range(4)]
    events: list[dict[str, Any]] = []
    for index in range(40):
        at = rng.randint(0, 50)
        prompt = rng.choice(histories)[: max_model_len - 2]
        answer = [rng.randint(1, 3) for _ in range(rng.randint(1, max_model_len - len(prompt)))]
        answer = answer[: rng.choice([1, 8, 24, 60])]
        events.append(
            {
                "kind": "add",
                "at": at,
                "arrived": at + index / 1000,
                "id": f"r{index:02}",
                "prompt": prompt,
                "answer": answer,
                "priority": rng.randint(-1, 1) if config["scheduling"] == "priority" else 0,
            }
        )
        if rng.random() < 0.15:
            events.append({"kind": "abort", "at": at + rng.randint(1, 9), "id": f"r{index:02}"})
        if rng.random() < 0.7:
            grown = [*prompt, *answer, *(rng.randint(1, 3) for _ in range(rng.randint(0, 9)))]
            histories[rng.randrange(4)] = grown[: max_model_len - 2]
    events.sort(key=lambda event: (event["at"], event["kind"] == "abort"))
    return {"config": config, "events": events, "steps": STEPS}


def ours(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The records that the oracle writes, from our model."""
    config = given["config"]
    model = EngineModel(
        EngineConfig(**{**config, "scheduling": Scheduling(config["scheduling"])}, cost=CPU_2CORE)
    )
    names: dict[int, str] = {}
    records = []
    for step in range(given["steps"]):
        for event in given["events"]:
            if event["at"] != step:
                continue
            if event["kind"] == "abort":
                model.abort(event["id"])
                continue
            tokens = [*event["prompt"], *event["answer"]]
            generation = Generation(
                id=event["id"],
                chain=TokenChain(tokens, block_size=config["block_size"]),
                prompt_tokens=len(event["prompt"]),
                output_tokens=len(event["answer"]),
                priority=event["priority"],
            )
            assert model.add(generation, now=Instant(round(event["arrived"] * 1000))) is None
        records.append(one_step(model, now=Instant(step), names=names))
        model.check()
    return records


def one_step(model: EngineModel, *, now: Instant, names: dict[int, str]) -> dict[str, Any]:
    scheduled: dict[str, int] = {}
    cached: dict[str, int | None] = {}
    if model.begin(now=now) is not None:
        scheduled = model.in_flight()
        found = {key: model.cached_tokens(key) for key in scheduled}
        cached = {key: found[key] for key in model.finish().first}
    running = model.running()
    return {
        "scheduled": scheduled,
        "running": list(running),
        "waiting": sorted(set(model.live()) - set(running)),
        "cached": cached,
        "free": [
            None if content is None else names.setdefault(content, f"b{len(names)}")
            for content in model.cache.eviction_order()
        ],
    }


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_equals_vllm_step_by_step() -> None:
    if not PYTHON.exists():
        pytest.skip("no vLLM in .venv-vllm: scripts/test installs it")
    scenarios = [scenario(seed) for seed in range(120)]
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("vllm_oracle.py"))],
        input=json.dumps(scenarios),
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("ORACLE ")]
    assert len(lines) == len(scenarios)
    preempted = hits = 0
    for seed, (given, line) in enumerate(zip(scenarios, lines, strict=True)):
        mine = ours(given)
        for step, (expected, got) in enumerate(
            zip(json.loads(line.removeprefix("ORACLE ")), mine, strict=True)
        ):
            assert got == expected, f"seed {seed}, step {step}, {given['config']}"
            assert list(got["scheduled"]) == list(expected["scheduled"]), f"seed {seed}"
        preempted += sum(
            len(set(before["running"]) & set(after["waiting"]))
            for before, after in itertools.pairwise(mine)
        )
        hits += sum(sum(record["cached"].values()) for record in mine)
    # The scenarios would say little if they never ran out of blocks.
    assert preempted > 80
    assert hits > 1000
