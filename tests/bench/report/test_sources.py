"""Every kind of result becomes a report: comparisons, replays, simulations, journals, stories."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentsched.kernel import JournalHeader, encode
from agentsched.model import AgentschedError, ConfigError, Limits
from agentsched.policy import Choice
from agentsched_bench.compare import results
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.inference import Verdict
from agentsched_bench.compare.results import CompareResult
from agentsched_bench.live.results import TraceRow
from agentsched_bench.replay.journal_file import JournalWriter, open_journal
from agentsched_bench.report.csv_files import write_csv
from agentsched_bench.report.figure import _tokens, write_png
from agentsched_bench.report.page import render
from agentsched_bench.report.sources import from_simulation, from_story, load, only_program
from agentsched_bench.sim.results import SimResult, SimRow
from agentsched_bench.workload.statistics import spread

ROOT = Path(__file__).parents[3]
_MAIN = "import sys; from agentsched.cli import main; sys.exit(main())"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("name", ["c.json", "c.json.gz"])
def test_comparisons_are_read(comparison: CompareResult, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    results.write(comparison, path)

    assert load(path) == comparison


def test_recorded_replays_are_read() -> None:
    made = load(ROOT / "bench/results/burst-vllm.json")

    assert made.how == "live"
    assert [arm.arm for arm in made.summary] == ["direct", "agentsched"]
    ours = made.summary[1]
    assert ours.jct is not None
    assert ours.jct.pairs == 24
    assert ours.jct.value < 0.8
    assert "agentsched" in render([made])


@pytest.mark.parametrize("path", sorted((ROOT / "bench/results").glob("sim-*.json")), ids=str)
def test_recorded_simulations_are_read(path: Path) -> None:
    made = load(path)
    seeds = json.loads(path.read_text())["seeds"]

    assert len(seeds) >= 3
    assert made.how == "simulated"
    assert made.summary[0].jct is None
    assert all(arm.jct is not None and arm.jct.repeats == len(seeds) for arm in made.summary[1:])
    assert render([made])


def _row(arm: str, seed: int, *jct_s: float, failed: int = 0, rejected: int = 0) -> SimRow:
    times = spread(jct_s)
    return SimRow(
        arm=arm, seed=seed, programs=len(jct_s), failed=failed, calls=9, jct_s=times,
        slowdown=times, first_token_wait_s=times, held_s=times, prompt_tokens=9, cached_share=0.5,
        again_tokens=0, output_tokens=9, busy_share=0.5, makespan_s=9.0, forced=0,
        rejected=rejected,
    )  # fmt: skip


def _simulation(*rows: SimRow) -> SimResult:
    trace = TraceRow(name="t", sha256="", programs=2, calls=9, is_synthetic=True)
    return SimResult(
        schema="agentsched.simulation/1", command=[], versions={}, trace=trace, options={},
        seeds=[1, 2, 3], rows=list(rows),
    )  # fmt: skip


def test_a_simulation_in_which_programs_gave_up_has_no_winner() -> None:
    """Whoever loses the slow ones is fast on the others."""
    slow = [_row("direct", seed, *[40.0] * 20) for seed in (1, 2, 3)]
    fast = [_row("ours", seed, *[10.0] * 20, rejected=5) for seed in (1, 2, 3)]
    lossy = [_row("ours", s, *[10.0] * 15, failed=5, rejected=100) for s in (1, 2, 3)]

    sure = from_simulation(_simulation(*slow, *fast)).summary[1]
    unsure = from_simulation(_simulation(*slow, *lossy)).summary[1]
    other = from_simulation(_simulation(*lossy, *slow)).summary[1]

    assert (sure.verdict, sure.errors, sure.retries) == (Verdict.BETTER, 0, 15)
    assert (unsure.verdict, unsure.errors, unsure.retries) == (Verdict.UNKNOWN, 15, 285)
    assert unsure.sentence.startswith(
        "cannot be said: of 60 programs 15 gave up, and 0 on direct (it would be: better"
    )
    assert other.verdict is Verdict.UNKNOWN


def test_a_seed_under_which_nobody_completed_shortens_no_mean() -> None:
    made = from_simulation(_simulation(_row("direct", 1, 40.0), _row("direct", 2, failed=1)))

    assert made.summary[0].jct_s.mean == 40.0


def test_an_arm_under_which_nobody_completed_has_no_slowdown_of_nought() -> None:
    made = from_simulation(_simulation(_row("direct", 1, 40.0), _row("ours", 1, failed=2)))
    arm = made.summary[1]

    assert (arm.slowdown, arm.held_s) == (None, None)
    assert "0.00 / 0.00" not in render([made])
    assert made.summary[0].slowdown is not None


def test_a_measured_and_a_simulated_result_stay_apart(
    comparison: CompareResult, tmp_path: Path
) -> None:
    """And so do those of one scenario before and after a change."""
    model = msgspec.structs.replace(comparison, how="simulated")
    later = msgspec.structs.replace(comparison, started_at="2026-11-22T10:00:00+00:00")
    several = [comparison, model, later]
    keys = {
        "summary.csv": ("arm",),
        "programs.csv": ("arm", "repeat", "program"),
        "calls.csv": ("arm", "repeat", "conversation", "step"),
    }

    for path in write_csv(several, tmp_path):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        wanted = ("comparison", "how", "started_at", *keys[path.name])
        assert len({tuple(row.get(key) for key in wanted) for row in rows}) == len(rows)


def _journal(path: Path, tmp_path: Path) -> None:
    """A journal of a simulation, as a proxy writes it."""
    from agentsched_bench.compare.load import make_load
    from agentsched_bench.compare.scenario import make_scenario
    from agentsched_bench.compare.simulated import journal_of

    scenario = make_scenario(
        {
            "name": "j",
            "engine": {"blocks": 300},
            "workload": {
                "programs": 3,
                "steps_max": 3,
                "arrivals": {"process": "regular", "rate": 1.0},
                "sources": [{"trace": "sample"}],
            },
        },
        where="test",
    )
    load = make_load(scenario.workload, seed=0, beside=tmp_path)
    header = JournalHeader(
        profile="agentsched", choices={"order": Choice(name="fcfs")}, limits=Limits()
    )
    with JournalWriter(path, header) as writer:
        for entry in journal_of("agentsched", load, scenario):
            writer.write(entry)


@pytest.mark.parametrize("name", ["j.ndjson", "j.journal.gz"])
def test_journals_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _journal(path, tmp_path)

    made = load(path)

    assert made.how == "journal"
    assert made.arms[0].about == "profile agentsched"
    (run,) = made.runs
    assert len(run.programs) == 3
    assert len(run.calls) == 9
    assert all(call.held_s is not None and call.ttft_s is not None for call in run.calls)
    assert "read from a journal" in render([made])


def test_a_story_becomes_the_gantt_of_its_program(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    _journal(path, tmp_path)
    with open_journal(path) as reader:
        entries = [msgspec.json.decode(encode(entry)) for entry in reader]

    made = from_story(entries, program="p1")

    assert {call.program for call in made.runs[0].calls} == {"p1"}
    assert len(made.runs[0].calls) == 3
    with pytest.raises(ConfigError, match="nothing about program 'p9'"):
        from_story(entries, program="p9")


def test_one_program_of_a_result(comparison: CompareResult) -> None:
    made = only_program(comparison, "p1")

    assert {call.program for run in made.runs for call in run.calls} == {"p1"}
    with pytest.raises(ConfigError, match="no program 'nobody'"):
        only_program(made, "nobody")


def test_no_number_of_whole_runs_stands_under_one_programs_name(comparison: CompareResult) -> None:
    made = only_program(comparison, "p1")

    assert (made.trace.programs, made.trace.calls) == (1, 4)
    ours = made.summary[1]
    assert (ours.completed, ours.calls) == (2, 8)
    assert (ours.preemptions, ours.busy_share) == (None, None)
    # Of its own ten seconds in each of two runs, not of the twelve that these took.
    assert ours.throughput_tokens_s == pytest.approx(ours.output_tokens / 20)
    (run, _) = (run for run in made.runs if run.arm == "agentsched")
    assert run.decisions_total == {"Dispatch of all programs": 7, "Pin of all programs": 1}
    assert "1 programs, 4 calls" in render([made])


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"not json", b'{"schema": "other/1"}', gzip.compress(b"{}", mtime=0)[:9]],
)
def test_what_is_no_result_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)

    with pytest.raises(AgentschedError, match=r"bad\.json"):
        load(path)


def test_what_is_not_there_is_said_in_few_words(tmp_path: Path) -> None:
    path = tmp_path / "none.json"

    with pytest.raises(AgentschedError) as raised:
        load(path)
    assert str(raised.value) == f"{path}: No such file or directory"


def corrupt(data: bytes) -> bytes:
    """Packed, and damaged inside: no end too soon, and no check sum that is wrong."""
    packed = bytearray(gzip.compress(data, mtime=0))
    packed[20] ^= 0x77
    return bytes(packed)


@pytest.mark.parametrize("name", ["bad.json.gz", "bad.journal.gz"])
def test_what_is_damaged_inside_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(corrupt(b'{"journal": 1, "agentsched": "0.1"}\n' * 500))

    with pytest.raises(AgentschedError, match="bad"):
        load(path)
    with pytest.raises(AgentschedError, match="bad"):
        results.read(path)


def test_a_result_may_be_called_journal(comparison: CompareResult, tmp_path: Path) -> None:
    """A scenario in `journal.toml`, say."""
    made = msgspec.structs.replace(comparison, name="journal", command=["compare", "journal"])
    results.write(made, tmp_path / "r.json")

    assert load(tmp_path / "r.json").name == "journal"


def test_tables_hold_every_program_and_call(comparison: CompareResult, tmp_path: Path) -> None:
    paths = write_csv([comparison], tmp_path / "csv")

    rows = {path.name: path.read_text().splitlines() for path in paths}
    assert len(rows["summary.csv"]) == 1 + 2
    assert len(rows["programs.csv"]) == 1 + 4 * 2
    assert len(rows["calls.csv"]) == 1 + 4 * 7
    assert "jct_s.p95" in rows["summary.csv"][0]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t"])
def test_a_name_in_a_table_is_no_formula(
    comparison: CompareResult, tmp_path: Path, sign: str
) -> None:
    name = f'{sign}HYPERLINK("http://x")'
    comparison.runs[0].programs[0].program = comparison.runs[0].calls[0].error = name
    write_csv([comparison], tmp_path / "csv")

    for table, column in (("programs.csv", "program"), ("calls.csv", "error")):
        with (tmp_path / "csv" / table).open(newline="", encoding="utf-8") as file:
            shown = [row[column] for row in csv.DictReader(file)]
        assert f"'{name}" in shown
        assert name not in shown


@pytest.mark.slow
def test_a_picture_is_drawn(comparison: CompareResult, tmp_path: Path) -> None:
    write_png(comparison, tmp_path / "p.png")

    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_names_in_a_picture_are_no_formulas(comparison: CompareResult, tmp_path: Path) -> None:
    name = r"$\cost$"
    comparison.name = comparison.baseline = comparison.summary[0].arm = name
    comparison.summary[1].arm = name + "!"

    write_png(comparison, tmp_path / "r.png")

    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_the_command_writes_all_of_it(comparison: CompareResult, tmp_path: Path) -> None:
    results.write(comparison, tmp_path / "c.json")

    done = run("report", "c.json", "--csv", "tables", "--png", "c.png", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c.html").exists()
    assert (tmp_path / "c.png").exists()
    assert (tmp_path / "tables/calls.csv").exists()
    nothing = run("report", folder=tmp_path)
    assert nothing.returncode == 2
    assert "nothing to report on" in nothing.stderr


@pytest.mark.slow
def test_tokens_are_drawn_of_a_run_and_as_far_as_they_were_told(comparison: CompareResult) -> None:
    """An arm of which one run is missing has not computed half, nor one that tells nothing 0."""
    from matplotlib.figure import Figure

    def drawn() -> tuple[str, list[float]]:
        comparison.summary = summarise(comparison)
        axes: Any = Figure().subplots()
        _tokens(axes, comparison.summary)
        ends: dict[float, float] = {}
        for bar in axes.patches:
            ends[bar.get_y()] = bar.get_x() + bar.get_width()
        return axes.get_title(loc="left"), list(ends.values())

    title, ends = drawn()
    assert title == "Prompt tokens, thousands"
    assert ends == pytest.approx([16.4, 16.4])
    comparison.runs = [run for run in comparison.runs if (run.arm, run.repeat) != ("direct", 1)]
    for run in comparison.runs:
        for call in run.calls if run.arm == "agentsched" else ():
            call.cached_tokens = None

    title, ends = drawn()
    assert title == "Prompt tokens of a run, thousands"
    assert ends == pytest.approx([8.2, 8.2])
