"""A real agent as the load: scripts of the recording, what is refused, and one real run."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from agentsched.model import ConfigError
from agentsched_bench.clients.command_lines import is_installation
from agentsched_bench.compare import agents, results
from agentsched_bench.compare.agents import scripts_of, task_of, with_playback
from agentsched_bench.compare.arms import sides_of
from agentsched_bench.compare.load import Load, make_load
from agentsched_bench.compare.scenario import load_scenario
from agentsched_bench.compare.witness import witnessing
from agentsched_bench.engine.playback import Playback

CLIENTS = Path(__file__).parents[3] / ".clients"


def _load(small: Path, *, seed: int = 0) -> Load:
    return make_load(load_scenario(small).workload, seed=seed, beside=small.parent)


def test_scripts_follow_the_recording(small: Path) -> None:
    load = _load(small)

    scripts = scripts_of([load], pace=1.0)

    assert [script.match for script in scripts] == [task_of(0, n) for n in range(len(load.plans))]
    for script, plan in zip(scripts, load.plans, strict=True):
        assert len(script.answers) == len(plan.main.calls)
        *looks, last = [answer.tool_calls[0].text() for answer in script.answers]
        pauses = [f"sleep {call.pause_s:.2f}" for call in plan.main.calls[:-1]]
        assert all(pause in look for pause, look in zip(pauses, looks, strict=True))
        assert "COMPLETE_TASK" in last


def test_every_repeat_has_scripts_of_its_own(small: Path) -> None:
    loads = [_load(small, seed=n) for n in range(2)]
    assert [p.program for p in loads[0].plans] != [p.program for p in loads[1].plans]
    scripts = Playback(tuple(scripts_of(loads, pace=1.0)))

    for repeat, load in enumerate(loads):
        for number, plan in enumerate(load.plans):
            task = task_of(repeat, number)
            answers = [
                scripts.answer(first_user=task, answers=n) for n in range(len(plan.main.calls))
            ]
            told = [answer.tool_calls[0].text() for answer in answers if answer is not None]
            assert [
                f"sleep {call.pause_s:.2f}; " in text
                for call, text in zip(plan.main.calls, told, strict=True)
            ] == [True] * (len(told) - 1) + [False]
            assert "COMPLETE_TASK" in told[-1]


def test_tools_keep_step_with_a_faster_engine(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "is_installation", lambda folder: True)
    scenario = load_scenario(
        small, changes=["measure.client=mini-swe-agent", "engine.speed=4", "measure.repeat=1"]
    )
    load = _load(small)

    with_playback(scenario, [load], logs=tmp_path, sides=sides_of(scenario))

    written = (tmp_path / "scripts.jsonl").read_text()
    pauses = [call.pause_s for plan in load.plans for call in plan.main.calls[:-1]]
    slept = [float(text) for text in re.findall(r"sleep ([\d.]+);", written)]
    assert slept == pytest.approx([pause / 4 for pause in pauses], abs=0.006)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("measure.client=nosuch", "no client 'nosuch'"),
        ("engine.kind=vllm", "plays back"),
    ],
)
def test_what_a_real_agent_cannot_do_is_refused(
    small: Path, tmp_path: Path, change: str, said: str
) -> None:
    scenario = load_scenario(small, changes=["measure.client=mini-swe-agent", change])

    with pytest.raises(ConfigError, match=said):
        with_playback(scenario, [_load(small)], logs=tmp_path, sides=sides_of(scenario))


def test_arms_with_different_clients_do_not_compare(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "is_installation", lambda folder: True)
    text = 'arms=[{name="a", run="direct", client="mini-swe-agent"}, {name="b", run="direct"}]'
    scenario = load_scenario(small, changes=[text])

    with pytest.raises(ConfigError, match="do not compare"):
        with_playback(scenario, [_load(small)], logs=tmp_path, sides=sides_of(scenario))


async def test_a_witness_passes_calls_on_and_notes_them() -> None:
    seen: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.path, request.headers["x-own"]))
        if request.path.endswith("broken"):
            return web.Response(status=429, text="later")
        usage = {
            "prompt_tokens": 30,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 16},
        }
        headers = {"x-agentsched-program": "p-x", "x-agentsched-decision": "order=f wait_ms=40"}
        return web.json_response({"usage": usage}, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    news = asyncio.Event()
    try:
        upstream = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with witnessing(upstream, on_call=news.set) as witness, ClientSession() as client:
            for path in ("v1/chat/completions", "v1/chat/completions", "v1/broken"):
                url = f"{witness.url}/p7/{path}"
                async with client.post(url, json={}, headers={"x-own": "kept"}) as response:
                    await response.read()
    finally:
        await runner.cleanup()

    assert seen[0] == ("/v1/chat/completions", "kept")
    assert news.is_set()
    first, second, broken = witness.calls
    assert (first.program, first.prompt_tokens, first.cached_tokens) == ("p7", 30, 16)
    assert (first.label, first.held_s) == ("p-x", 0.04)
    assert (second.step, second.known_tokens) == (1, 30)
    assert broken.error.startswith("HTTP 429")


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_mini_swe_agent_plays_both_arms(small: Path, tmp_path: Path) -> None:
    if not is_installation(CLIENTS):
        pytest.fail("no agent clients (run scripts/install-clients)")
    (tmp_path / ".clients").symlink_to(CLIENTS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import sys; from agentsched.cli import main; sys.exit(main())"),
        *("compare", str(small), "--repeat", "1", "--out", "r.json", "--json"),
        *("--set", "measure.client=mini-swe-agent", "--set", "engine.speed=1.0"),
        *("--set", "workload.programs=2", "--arm", "direct", "--arm", "agentsched"),
        *("--set", "engine.max_model_len=16384", "--set", "engine.blocks=800"),
        cwd=tmp_path,
    )
    try:
        async with asyncio.timeout(380):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.terminate()

    result = results.read(tmp_path / "r.json")
    direct, ours = result.runs
    assert [p.outcome for run in (direct, ours) for p in run.programs] == ["completed"] * 4
    assert len(direct.calls) == len(ours.calls)
    # A client that says nothing of who it is, and is known all the same.
    assert result.summary[1].recognised_share == 1.0
