"""The plugin in vLLM's real scheduler and block pool, without a model: `trials` and `machine`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from agentsched_bench.vllm_local.plugin_path import plugin_env

HERE = Path(__file__).parent
#: What the machine needs besides; it is pure enough for another environment's Python.
_HYPOTHESIS = ("hypothesis", "sortedcontainers", "_hypothesis_globals", "_hypothesis_ftz_detector")

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


def run(python: Path, folder: Path, script: str, *arguments: str) -> list[str]:
    """The lines that a script prints under vLLM's Python."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "AGENTSCHED_"))}
    env |= plugin_env(folder, packages=_HYPOTHESIS) | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [str(python), str(HERE / script), *arguments],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6_000:]
    return done.stdout.splitlines()


def test_every_trial(vllm_python: Path, tmp_path: Path) -> None:
    lines = run(vllm_python, tmp_path, "trials.py")
    results = [json.loads(line[6:]) for line in lines if line.startswith("TRIAL ")]
    failed = [f"{one['name']}:\n{one['error']}" for one in results if one["error"]]
    assert not failed, "\n".join(failed)
    assert len(results) >= 15


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": "0.9", "tenant_budget": "0.6", "grace": "60s"},
        {"budget": "1.0", "tenant_budget": "1.0", "order": "program-fcfs", "pin": "fixed"},
        {"budget": "0.5", "tenant_budget": "0.5", "pins_max": "2", "grace": "0s"},
    ],
    ids=["pins", "order and policy", "few"],
)
def test_no_order_of_events_breaks_it(
    vllm_python: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    seen = machine(vllm_python, tmp_path, 120, settings, "full")
    # It would say little had nothing happened.
    assert seen["steps"] > 1_000
    assert seen["hits"] > 50


@pytest.mark.parametrize(
    "layout",
    ["sliding", "two sliding", "chunked", "two lengths", "sliding alone", "drafting"],
)
def test_nor_does_it_where_groups_of_layers_share_the_pool(
    vllm_python: Path, tmp_path: Path, layout: str
) -> None:
    """Models whose layers are not all of one kind, and one whose layers all have a window."""
    settings = {"budget": "0.9", "tenant_budget": "0.6", "grace": "60s"}
    seen = machine(vllm_python, tmp_path, 120, settings, layout)
    assert seen["steps"] > 1_000
    assert seen["hits"] > 50
    assert seen["pins"] > 50


def machine(
    python: Path, folder: Path, examples: int, settings: dict[str, str], layout: str
) -> dict[str, int]:
    """What the state machine met in so many examples."""
    lines = run(python, folder, "machine.py", str(examples), "40", json.dumps(settings), layout)
    seen: dict[str, int] = json.loads(next(x[8:] for x in lines if x.startswith("MACHINE ")))
    return seen
