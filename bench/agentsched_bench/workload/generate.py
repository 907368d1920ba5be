"""Synthetic recordings with the shapes that were published for real ones.

Every recording says `synthetic: true` and has a source that begins with `synthetic`. Shapes are
medians and 90th percentiles of public figures (steps, prompts, answers, tool times); nothing is
copied from anybody's recording. The sample that ships is made by

    agentsched trace generate --programs 60 --seed 7 --out sample.jsonl.gz
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from agentsched_bench.workload.trace import RecordedStep, RecordedTool, Recording

#: Standard deviations from a normal distribution's median to its 90th percentile.
_Z90: Final = 1.2815515655446004


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """A log-normal distribution by its median and 90th percentile, cut at both ends."""

    p50: float
    p90: float
    low: float = 0.0
    high: float = math.inf

    def draw(self, rng: random.Random) -> float:
        sigma = math.log(self.p90 / self.p50) / _Z90
        return min(max(self.p50 * math.exp(rng.gauss(0.0, sigma)), self.low), self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentShape:
    """What the programs of one agent look like. Times in seconds.

    `shared_tokens` is the agent's system prompt and tools, the same for all its programs; `task`
    what the user asked, `result` what a tool's answer adds to the prompt. A step cuts the prompt
    (old observations elided, or compaction) with probability `cut_share`.
    """

    agent: str
    model: str
    steps: LogNormal
    shared_tokens: int
    task_tokens: LogNormal
    result_tokens: LogNormal
    output_tokens: LogNormal
    tools: Mapping[str, tuple[float, LogNormal]] = field(default_factory=dict)
    prefill_tokens_per_s: float = 8000.0
    decode_tokens_per_s: float = 70.0
    sub_agent_share: float = 0.0
    cut_share: float = 0.0


_SHELL: Final = AgentShape(
    agent="shell-agent",
    model="synthetic-large",
    steps=LogNormal(p50=36, p90=66, low=4, high=120),
    shared_tokens=1_200,
    task_tokens=LogNormal(p50=900, p90=2_200, low=100, high=8_000),
    result_tokens=LogNormal(p50=180, p90=1_300, low=5, high=8_000),
    output_tokens=LogNormal(p50=89, p90=681, low=10, high=2_500),
    tools={"bash": (1.0, LogNormal(p50=0.18, p90=0.8, low=0.02, high=60))},
)
_CODING: Final = AgentShape(
    agent="coding-agent",
    model="synthetic-medium",
    steps=LogNormal(p50=24, p90=60, low=3, high=130),
    shared_tokens=15_400,
    task_tokens=LogNormal(p50=3_400, p90=4_800, low=500, high=9_000),
    result_tokens=LogNormal(p50=160, p90=1_500, low=10, high=9_000),
    output_tokens=LogNormal(p50=144, p90=601, low=15, high=2_000),
    tools={
        "Bash": (0.5, LogNormal(p50=0.6, p90=2.8, low=0.05, high=90)),
        "Read": (0.3, LogNormal(p50=0.03, p90=0.08, low=0.01, high=1)),
        "Edit": (0.15, LogNormal(p50=0.05, p90=0.15, low=0.01, high=1)),
        "Grep": (0.05, LogNormal(p50=0.1, p90=0.6, low=0.02, high=5)),
    },
    sub_agent_share=0.12,
    cut_share=0.004,
)
SHAPES: Final = (_SHELL, _CODING)


def generate(
    *, programs: int, seed: int, interarrival_s: float = 8.0, steps_max: int | None = None
) -> Iterator[Recording]:
    """`programs` synthetic programs with their sub-agents; the same seed gives the same lines."""
    rng = random.Random(f"agentsched/{seed}")
    start_s = 0.0
    for number in range(programs):
        shape = SHAPES[number % len(SHAPES)]
        name = f"synthetic-{shape.agent}-{seed}-{number:04d}"
        main = _recording(name, shape, rng, start_s=start_s, steps_max=steps_max)
        child = None
        if rng.random() < shape.sub_agent_share and len(main.steps) > 3:
            main, child = _with_sub_agent(main, shape, rng)
        yield main
        if child is not None:
            yield child
        start_s = round(start_s + rng.expovariate(1.0 / interarrival_s), 3)


def _recording(
    name: str,
    shape: AgentShape,
    rng: random.Random,
    *,
    start_s: float,
    steps_max: int | None,
    parent: str | None = None,
) -> Recording:
    count = round(shape.steps.draw(rng))
    steps = tuple(_steps(shape, rng, count=min(count, steps_max or count)))
    return Recording(
        session_id=name,
        source="synthetic",
        workload="synthetic",
        agent=shape.agent if parent is None else f"{shape.agent}/sub-agent",
        model=shape.model,
        start_s=start_s,
        token_source={"input": "synthetic", "output": "synthetic", "result": "synthetic"},
        parent=parent,
        synthetic=True,
        steps=steps,
    )


def _steps(shape: AgentShape, rng: random.Random, *, count: int) -> Iterator[RecordedStep]:
    prompt = shape.shared_tokens + round(shape.task_tokens.draw(rng))
    new: int | None = None
    prefix = shape.shared_tokens
    clock_s = 0.0
    for index in range(count):
        output = round(shape.output_tokens.draw(rng))
        llm_s = 0.2 + (prompt - prefix) / shape.prefill_tokens_per_s
        llm_s = round(llm_s + output / shape.decode_tokens_per_s, 3)
        tool = _tool(shape, rng)
        is_last = index == count - 1
        yield RecordedStep(
            step=index,
            t_s=round(clock_s, 3),
            input_tokens=prompt,
            new_input_tokens=new,
            prefix_tokens=prefix,
            output_tokens=output,
            llm_s=llm_s,
            gap_s=None if is_last else tool.duration_s,
            gap_kind="unknown" if is_last else "tool",
            tools=() if is_last else (tool,),
        )
        clock_s += llm_s + (tool.duration_s or 0.0)
        if index and rng.random() < shape.cut_share:
            # Compaction: the agent's own prompt stays, the rest becomes a summary.
            new, prefix = None, shape.shared_tokens
            prompt = shape.shared_tokens + max(200, round((prompt - prefix) * 0.2))
        else:
            new, prefix = (tool.result_tokens or 0) + 10, prompt
            prompt = prompt + output + new


def _tool(shape: AgentShape, rng: random.Random) -> RecordedTool:
    names = list(shape.tools)
    name = rng.choices(names, weights=[shape.tools[n][0] for n in names])[0]
    return RecordedTool(
        name=name,
        duration_s=round(shape.tools[name][1].draw(rng), 3),
        result_tokens=round(shape.result_tokens.draw(rng)),
    )


def _with_sub_agent(
    main: Recording, shape: AgentShape, rng: random.Random
) -> tuple[Recording, Recording]:
    """Let one step of `main` start a sub-agent and wait for it."""
    at = rng.randrange(1, len(main.steps) - 1)
    call = main.steps[at]
    begun_s = round((call.t_s or 0.0) + (call.llm_s or 0.0), 3)
    child_shape = AgentShape(
        agent=shape.agent,
        model=shape.model,
        steps=LogNormal(p50=12, p90=24, low=2, high=40),
        shared_tokens=9_700,
        task_tokens=LogNormal(p50=1_100, p90=1_500, low=300, high=3_000),
        result_tokens=shape.result_tokens,
        output_tokens=shape.output_tokens,
        tools=shape.tools,
    )
    child = _recording(
        f"{main.session_id}/agent-1",
        child_shape,
        rng,
        start_s=round((main.start_s or 0.0) + begun_s, 3),
        steps_max=None,
        parent=main.session_id,
    )
    last = child.steps[-1]
    busy_s = round((last.t_s or 0.0) + (last.llm_s or 0.0), 3)
    result = call.tools[0].result_tokens
    task = RecordedTool(name="Task", duration_s=busy_s, result_tokens=result)
    later_s = busy_s - (call.gap_s or 0.0)
    steps = [*main.steps[:at], msgspec.structs.replace(call, gap_s=busy_s, tools=(task,))]
    steps.extend(
        msgspec.structs.replace(step, t_s=round((step.t_s or 0.0) + later_s, 3))
        for step in main.steps[at + 1 :]
    )
    parent = msgspec.structs.replace(main, steps=tuple(steps))
    return parent, msgspec.structs.replace(child, parent_t_s=begun_s)


def sample_path() -> Path:
    """The synthetic sample that ships with the package (60 programs)."""
    return Path(str(resources.files("agentsched_bench.workload") / "samples" / "sample.jsonl.gz"))
