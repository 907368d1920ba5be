"""Carrying a comparison out: by turns, resumable, in the simulator and live."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, web
from rich.console import Console

from agentsched.model import ConfigError
from agentsched_bench.compare import results
from agentsched_bench.compare.arms import Kind, Side, sides_of
from agentsched_bench.compare.cli import new_result, resumed
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.load import make_load
from agentsched_bench.compare.machine import disturbances, is_stalled
from agentsched_bench.compare.results import CompareResult, Machine, Run
from agentsched_bench.compare.run import (
    Plan,
    Store,
    _file_name,
    paced,
    run_all,
    simulate_all,
)
from agentsched_bench.compare.scenario import load_scenario
from agentsched_bench.compare.show import Estimate, print_comparison, span
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.report.page import render

_MAIN = "import sys; from agentsched.cli import main; sys.exit(main())"


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, "compare", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_run_replaces_what_an_interrupted_one_left(
    comparison: Callable[..., CompareResult], tmp_path: Path
) -> None:
    made = comparison({"direct": [{"a": 1.0}], "ours": [{"a": 2.0}]})
    made.runs[1].is_complete = False
    store = Store(made, path=tmp_path / "r.json.gz")
    assert store.has("direct", 0)
    assert not store.has("ours", 0)

    again = Run(arm="ours", repeat=0, seed=0, is_complete=True, programs=made.runs[0].programs)
    store.add(again)

    read = results.read(tmp_path / "r.json.gz")
    assert [(run.arm, run.is_complete) for run in read.runs] == [("direct", True), ("ours", True)]
    assert [arm.arm for arm in read.summary] == ["direct", "ours"]


def test_a_load_keeps_step_with_a_faster_engine(small: Path) -> None:
    load = make_load(load_scenario(small).workload, seed=0, beside=small.parent)

    fast = paced(load, speed=2.0)

    pairs = zip(load.starts_s, fast.starts_s, strict=True)
    assert all(a is not None and b == pytest.approx(a / 2) for a, b in pairs)
    before, after = load.plans[0].main.calls[0], fast.plans[0].main.calls[0]
    assert after.pause_s == pytest.approx(before.pause_s / 2)
    assert after.prompt_tokens == before.prompt_tokens


def test_the_same_seed_gives_the_same_load_and_another_one_another(small: Path) -> None:
    workload = load_scenario(small).workload

    def load(seed: int) -> object:
        made = make_load(workload, seed=seed, beside=small.parent)
        return [
            (plan.program, start) for plan, start in zip(made.plans, made.starts_s, strict=True)
        ]

    assert load(0) == load(0)
    assert load(0) != load(1)


def test_estimates_learn_from_what_has_run() -> None:
    estimate = Estimate(["a", "b", "a", "b"], expected_s=10)
    assert estimate.left_s() == 40
    estimate.ended("a", took_s=30)
    # The other arm has not run: it is taken for the average.
    assert estimate.left_s() == 90
    estimate.ended("b", took_s=10)
    assert estimate.left_s(in_run_s=5) == 35
    assert (span(0.2), span(42), span(600), span(7200)) == ("200 ms", "42 s", "10 min", "2.0 h")


def test_stalled_runs_are_made_anew_when_asked(
    comparison: Callable[..., CompareResult], tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    made = comparison({"direct": [{"a": 1.0}, {"a": 1.0}]})
    made.spec = {"arms": ["direct"], "measure": {"repeat": 2}}
    made.runs[1].machine = Machine(watched_s=60, kernel_stalls=4)
    results.write(made, path)

    def again(redo: bool, *, blocks: int = 0) -> list[int]:
        new = comparison({"direct": []})
        # An option that says which runs are made is no matter of what a run is.
        new.spec = {"arms": ["direct"], "measure": {"repeat": 2, "repeat_stalled": False}}
        new.spec |= {"blocks": blocks} if blocks else {}
        return [run.repeat for run in resumed(new, path, redo_stalled=redo).runs]

    assert again(False) == [0, 1]
    assert again(True) == [0]
    with pytest.raises(ConfigError, match="another comparison"):
        again(True, blocks=3)


def test_the_terminal_says_which_runs_the_machine_disturbed(
    comparison: Callable[..., CompareResult],
) -> None:
    made = comparison({"direct": [{"a": 1.0}] * 2, "ours": [{"a": 0.5}] * 2})
    made.runs[3].machine = Machine(watched_s=60, longest_wait_s=34, waiting="VLLM::EngineCor")
    made.summary = summarise(made)
    console = Console(record=True, width=160)

    print_comparison(made, console=console)

    text = console.export_text()
    assert "disturbed: ours, repeat 2: VLLM::EngineCor got no CPU for 34 s" in text
    assert "--redo-stalled makes the runs anew" in text
    assert any(
        line.split() == ["runs,", "machine", "stalled", "-", "1"] for line in text.split("\n")
    )


class Machines:
    """A machine whose kernel reports so many stalls in each run, one after the other."""

    def __init__(self, *stalls: int) -> None:
        self._stalls = list(stalls)

    @contextlib.contextmanager
    def watching(self, knows_own: bool) -> Iterator[Machines]:
        assert knows_own, "everything was started here"
        yield self

    def seen(self) -> Machine:
        return Machine(watched_s=5.0, kernel_stalls=self._stalls.pop(0))


class Said:
    """What a comparison said that it was doing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, *, number: int, runs: int, side: str, repeat: int, doing: str) -> None:
        self.lines.append(f"{repeat} {doing}")

    def progress(self, *, done: int, planned: int, note: str) -> None:
        """Not looked at."""

    def end(self, *, side: str, took_s: float) -> None:
        """Not looked at."""


@pytest.mark.slow
def test_a_run_in_which_the_machine_stood_still_is_made_again_once(
    small: Path, tmp_path: Path
) -> None:
    scenario = load_scenario(small, changes=['arms=["direct"]'])
    sides = sides_of(scenario)
    loads = [make_load(scenario.workload, seed=n, beside=tmp_path) for n in range(2)]
    path, said = tmp_path / "r.json", Said()
    store = Store(new_result(scenario, sides, loads, how="live", alone_s={}), path=path)
    # The first repeat's second attempt is well, the second repeat's is not.
    plan = Plan(
        scenario=scenario, sides=sides, loads=loads, logs=tmp_path, peers=tmp_path, salt="s",
        watching=Machines(1, 0, 2, 3).watching,
    )  # fmt: skip

    asyncio.run(run_all(plan, store, said))

    first, second = results.read(path).runs
    assert not is_stalled(first)
    assert first.replaced is not None
    assert first.replaced.machine.kernel_stalls == 1
    assert first.replaced.jct_mean_s is not None
    assert is_stalled(second)
    assert second.replaced is not None
    assert second.replaced.machine.kernel_stalls == 2
    assert all(run.is_complete and run.log.endswith("-again.log") for run in (first, second))
    assert [line for line in said.lines if "again" in line] == [
        "0 again, for the kernel reported a stall once",
        "1 again, for the kernel reported a stall 2 times",
    ]
    one, two = disturbances(store.result)
    assert one.startswith("direct, repeat 1: made again, for the kernel reported a stall once")
    assert two.startswith("direct, repeat 2: the kernel reported a stall 3 times (in no figure")
    assert [arm.stalled for arm in store.result.summary] == [1]


@pytest.mark.slow
async def test_times_of_an_engine_that_is_there_already_are_the_clocks(
    small: Path, tmp_path: Path
) -> None:
    """`engine.speed` is how fast the embedded engine is started; this one runs as it runs."""
    config = EngineConfig.from_preset(preset("cpu-2core"))
    async with running_engine(ServerConfig(engine=config)) as served:
        urls = f'engine.urls=["{served.url}"]'
        scenario = load_scenario(small, changes=['arms=["direct"]', "engine.kind=url", urls])
        assert scenario.engine.speed == 20.0
        sides = sides_of(scenario)
        loads = [make_load(scenario.workload, seed=0, beside=tmp_path)]
        made = new_result(scenario, sides, loads, how="live", alone_s={})
        assert not any("times as fast" in note for note in made.notes)
        plan = Plan(
            scenario=scenario, sides=sides, loads=loads, logs=tmp_path, peers=tmp_path, salt="s"
        )
        begun = asyncio.get_running_loop().time()
        await run_all(plan, Store(made, path=None), Said())
        took_s = asyncio.get_running_loop().time() - begun

    (run,) = made.runs
    assert loads[0].last_start_s <= run.duration_s <= took_s


def test_a_result_is_complete_with_the_repeats_of_arms_that_were_left_out(small: Path) -> None:
    """`--only`: what is not run this time may lack repeats all the same."""
    scenario = load_scenario(small)
    sides = sides_of(scenario)
    loads = [make_load(scenario.workload, seed=n, beside=small.parent) for n in range(2)]
    store = Store(new_result(scenario, sides, loads, how="simulated", alone_s={}), path=None)

    def simulate(*chosen: Side) -> bool:
        plan = Plan(
            scenario=scenario, sides=chosen, loads=loads, logs=Path(), peers=Path(), salt="s"
        )
        simulate_all(plan, store, Said())
        return store.result.is_complete

    assert not simulate(sides[0])
    assert simulate(sides[1])
    store.result.runs = [run for run in store.result.runs if run.arm == sides[0].name]
    store.row(sides[1].name).missing = "it is not installed"
    assert simulate(sides[0])


def test_an_arm_that_fails_in_a_later_repeat_leaves_a_result_that_is_not_complete(
    comparison: Callable[..., CompareResult],
) -> None:
    """It did not start a second time: its result said that all runs were there."""
    made = comparison({"direct": [{"a": 1.0}] * 3, "ours": [{"a": 1.0}], "never": []})
    made.arms[1].missing = "ours did not start"
    made.arms[2].missing = "it is not installed"
    store = Store(made, path=None)

    assert not store.has_all(3)
    store.save()
    console = Console(file=io.StringIO(), width=120)
    print_comparison(made, console=console)

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "ours: left out after 1 run, ours did not start" in lines
    assert "never: left out, it is not installed" in lines
    assert "Not all runs are done: the same command goes on where this one stopped." in lines
    page = render([made])
    assert "not all runs are done" in page
    assert "ours: left out after 1 run, ours did not start" in page
    made.runs = [run for run in made.runs if run.arm == "direct"]
    assert store.has_all(3)


def test_an_arm_that_did_not_even_start_once_leaves_a_result_that_is_not_complete(
    comparison: Callable[..., CompareResult], tmp_path: Path
) -> None:
    """It could be tried again, as one that failed later; what is not installed here cannot."""
    made = comparison({"direct": [{"a": 1.0}], "ours": [], "never": []})
    made.arms[1].missing, made.arms[1].has_failed = "ours did not start", True
    made.arms[2].missing = "it is not installed"
    store = Store(made, path=tmp_path / "r.json")
    assert not store.has_all(1)
    store.save()
    assert [row.has_failed for row in results.read(tmp_path / "r.json").arms] == [
        False,
        True,
        False,
    ]
    made.arms[1].has_failed = False
    assert store.has_all(1)


def test_no_two_arms_write_the_same_files() -> None:
    long = "agentsched," + "x" * 80
    arms = ["fcfs", "plugin:fcfs", "plugin-fcfs", f"{long}1", f"{long}2"]

    names = [_file_name(arm, arms) for arm in arms]

    assert len(set(names)) == len(arms)
    assert names[0] == "fcfs"
    assert max(len(name) for name in names) <= 80
    assert _file_name("plugin:fcfs", ["plugin:fcfs", "fcfs"]) == "plugin-fcfs"


@contextlib.asynccontextmanager
async def _relaying(upstream: str) -> AsyncIterator[str]:
    """What says whose calls are, as a proxy of ours does, and takes no reports of tools."""

    async def relay(request: web.Request) -> web.Response:
        if "agentsched" in request.path:
            return web.Response(status=404)
        data, url = await request.read(), f"{upstream}{request.path}"
        async with client.request(request.method, url, data=data) as answer:
            headers = {"content-type": answer.content_type, "x-agentsched-program": "p"}
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)

    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{rest:.*}", relay)
    runner = web.AppRunner(app)
    await runner.setup()
    async with ClientSession() as client:
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.mark.slow
async def test_what_fails_in_a_task_of_one_arm_does_not_cost_the_others_their_runs(
    small: Path, tmp_path: Path
) -> None:
    config = EngineConfig.from_preset(preset("cpu-2core"))
    async with (
        running_engine(ServerConfig(engine=config)) as served,
        _relaying(served.url) as relay,
    ):
        changes = [
            "engine.kind=url", f'engine.urls=["{served.url}"]', "measure.repeat=1",
            "workload.programs=1", "workload.steps_max=2", "workload.gap_cap_s=0.1",
            "measure.tells_tools=true", 'arms=["fcfs", "direct"]',
        ]  # fmt: skip
        scenario = load_scenario(small, changes=changes)
        ours, direct = sides_of(scenario)
        sides = [replace(ours, kind=Kind.URL, url=relay), direct]
        loads = [make_load(scenario.workload, seed=0, beside=tmp_path)]
        made = new_result(scenario, sides, loads, how="live", alone_s={})
        plan = Plan(
            scenario=scenario, sides=sides, loads=loads, logs=tmp_path, peers=tmp_path, salt="s"
        )

        await run_all(plan, Store(made, path=None), Said())

    assert [(run.arm, run.is_complete) for run in made.runs][-1] == ("direct", True)
    assert made.arms[0].missing.endswith("takes no reports of tools")
    assert made.arms[0].has_failed
    assert not made.is_complete


@pytest.mark.slow
def test_simulated_twice_is_equal_and_goes_on_where_it_stopped(small: Path, tmp_path: Path) -> None:
    done = command(str(small), "--simulate", "--out", "a.json", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [arm["arm"] for arm in msgspec.json.decode(done.stdout)] == ["direct", "passthrough"]
    command(str(small), "--simulate", "--out", "b.json", folder=tmp_path)
    first, second = results.read(tmp_path / "a.json"), results.read(tmp_path / "b.json")
    assert first.runs == second.runs
    assert first.is_complete

    more = command(str(small), "--simulate", "--out", "a.json", "--repeat", "3", folder=tmp_path)

    assert more.returncode == 0, more.stderr
    assert "run 1 of 2" in more.stderr
    longer = results.read(tmp_path / "a.json")
    assert [(r.arm, r.repeat) for r in longer.runs[4:]] == [("direct", 2), ("passthrough", 2)]
    assert longer.runs[:4] == first.runs


@pytest.mark.slow
def test_another_comparison_is_not_written_over(small: Path, tmp_path: Path) -> None:
    command(str(small), "--simulate", "--out", "a.json", folder=tmp_path)

    other = command(
        str(small), "--simulate", "--out", "a.json", "--set", "engine.blocks=400", folder=tmp_path
    )

    assert other.returncode == 2
    assert "holds another comparison" in other.stderr


@pytest.mark.slow
def test_live_arms_are_started_measured_and_stopped(small: Path, tmp_path: Path) -> None:
    done = command(
        str(small), "--repeat", "1", "--arm", "direct", "--arm", "agentsched",
        "--arm", "gone=false {port}", "--out", "live.json", "--report", "live.html",
        folder=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    result = results.read(tmp_path / "live.json")
    assert [(run.arm, run.is_complete) for run in result.runs] == [
        ("direct", True),
        ("agentsched", True),
    ]
    direct, ours = result.runs
    assert len(direct.calls) == len(ours.calls) > 0
    assert all(call.cached_tokens is not None for call in direct.calls)
    assert all(call.held_s is not None and call.label for call in ours.calls)
    assert ours.decisions_total["Dispatch"] == len(ours.calls)
    assert direct.busy_share is not None
    assert direct.readings
    assert all(run.machine is not None and run.machine.watched_s > 0 for run in (direct, ours))
    assert "did not start" in result.arms[2].missing
    assert not result.is_complete
    assert "Not all runs are done: the same command goes on" in " ".join(done.stdout.split())
    assert (tmp_path / "live.logs/agentsched-0.log").exists()
    assert (tmp_path / "live.html").stat().st_size > 20_000


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_running(
    small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    text = small.read_text().replace("speed = 20.0", "speed = 0.2")
    small.write_text(text)
    arguments = ["compare", str(small), "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", _MAIN, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if line.startswith(b"run "))
        assert told.startswith(b"run 1 of "), "its engine serves, and the first run has begun"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        process.communicate()

    assert process.returncode == 130
    assert not results.read(out).is_complete
    assert children
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []
