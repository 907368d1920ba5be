"""The page: what it says, that it loads nothing, and that names cannot break it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.results import CompareResult, Machine, Replaced
from agentsched_bench.engine.cost import PRESETS
from agentsched_bench.report.page import render, write_page

Read = Callable[[str], Any]
GOLDEN = Path(__file__).with_name("outline.golden.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_the_structure_is_as_agreed(comparison: CompareResult, outline: Read) -> None:
    """`AGENTSCHED_UPDATE_GOLDEN=1` writes the file anew; the change is then a diff to review."""
    page = render([comparison], now="2026-11-21")
    lines = "\n".join(outline(page).lines) + "\n"
    lines = re.sub(r"agentsched \d+\.\d+\S*", "agentsched VERSION", lines)
    if os.environ.get("AGENTSCHED_UPDATE_GOLDEN"):
        GOLDEN.write_text(lines, encoding="utf-8")

    assert lines == GOLDEN.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_anywhere(comparison: CompareResult, outline: Read) -> None:
    page = render([comparison])

    assert all(address.startswith("#") for address in outline(page).addresses)
    assert "url(" not in page
    assert "@import" not in page
    # The only address is the name of a namespace.
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_names_are_text_and_never_markup(comparison: CompareResult) -> None:
    comparison.name = "<img src=x>"
    comparison.arms[0].about = "<i>"
    page = render([comparison])

    assert "<img" not in page
    assert "<i>" not in page.partition("<script")[0]
    # One end for the data and one for the program, and none inside.
    assert page.count("</script>") == 2


def test_verdicts_stand_in_the_page_without_any_script(comparison: CompareResult) -> None:
    text = render([comparison]).partition('<script type="application/json"')[0]

    assert "0.49×" in text
    assert "faster" in text
    assert "litellm: left out, not installed" in text
    assert "synthetic programs" in text


def test_a_run_that_the_machine_disturbed_is_said_first(comparison: CompareResult) -> None:
    stall = Machine(watched_s=60, gaps=1, gaps_s=31, longest_gap_s=31)
    comparison.runs[1].machine = stall
    comparison.runs[2].replaced = Replaced(machine=stall, jct_mean_s=84.0)
    comparison.summary = summarise(comparison)

    text = render([comparison]).partition('<script type="application/json"')[0]

    assert "disturbed by the machine" in text
    assert "agentsched, repeat 1: the machine stood still for 31 s" in text
    assert "direct, repeat 2: made again, for the machine stood still for 31 s" in text
    assert "1 of 2 repeats left out, the machine stood still" in text


def test_several_results_have_an_overview(comparison: CompareResult, outline: Read) -> None:
    page = render([comparison, comparison])

    assert "<section overview>" in outline(page).lines
    assert 'id="result-1"' in page


def test_what_nobody_completed_has_no_time(comparison: CompareResult) -> None:
    """An arm that answered nothing is not shown as level with direct, nor as instant."""
    for run in comparison.runs:
        for program in run.programs:
            program.jct_s, program.outcome = None, "failed"
        for call in run.calls:
            call.ttft_s, call.error = None, "HTTP 500"
    comparison.summary = summarise(comparison)
    alone = msgspec.structs.replace(comparison, summary=comparison.summary[:1])

    both = render([comparison, comparison]).partition('<script type="application/json"')[0]
    one = render([alone]).partition('<script type="application/json"')[0]

    assert ">1.00</td>" not in both
    assert "cannot be compared: no program completed on both" in both
    assert not re.search(r"\b0 ms", both)
    assert not re.search(r"\b0 ms", one)


def test_a_result_without_calls_has_no_timeline(comparison: CompareResult) -> None:
    for run in comparison.runs:
        run.calls = []

    page = render([comparison]).partition("<script>")[0]

    assert 'data-part="timeline"' not in page
    assert 'data-part="jct"' in page


def test_links_lead_somewhere(comparison: CompareResult) -> None:
    """Also where no run has come to its end."""
    for run in comparison.runs:
        run.is_complete = False
    comparison.summary = []

    page = render([comparison])

    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r' id="([^"]+)"', page))


def measured(path: Path, *, width: int, profile: Path) -> str:
    """The page as a browser has made it, with how many pictures it drew and how wide it came."""
    assert CHROMIUM is not None, "Chromium is not installed (scripts/install-services)"
    probe = (
        "<script>addEventListener('error', e => document.title = 'broken ' + e.message);"
        "setTimeout(() => { const s = document.querySelectorAll('svg');"
        "document.querySelectorAll('.names button')[0].click();"
        "document.body.dataset.svgs = s.length;"
        "document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth; }, 500)"
        "</script></body>"
    )
    page = path.read_text(encoding="utf-8").replace("</body>", probe)
    path.write_text(page, encoding="utf-8")

    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={profile}", f"--window-size={width},900",
         "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip

    assert "<title>broken" not in done.stdout
    return done.stdout


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_every_picture(
    comparison: CompareResult, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "page.html"
    write_page([comparison], path)

    made = measured(path, width=width, profile=tmp_path / "profile")

    drawn = re.search(r'data-svgs="(\d+)" data-wide="(-?\d+)"', made)
    assert drawn is not None
    # Ratios, two distributions, a timeline, the cache and the tenants.
    assert int(drawn[1]) == 6
    assert int(drawn[2]) <= 0, "the page is wider than the screen"
    assert "completed after" in made


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_long_names_do_not_make_the_page_wider(
    comparison: CompareResult, tmp_path: Path, width: int
) -> None:
    """Arms are written with all that is changed, and nothing in them is a place to break at."""
    long = "agentsched,order.ageing=0.5,admit.patience=2,place=session-affinity,place.speed=true"
    for run in comparison.runs:
        run.arm = {"agentsched": long * 2}.get(run.arm, run.arm)
    for row in comparison.arms:
        row.name = {"agentsched": long * 2, "litellm": long}.get(row.name, row.name)
    comparison.summary = summarise(comparison)
    path = tmp_path / "page.html"
    write_page([comparison], path)

    made = measured(path, width=width, profile=tmp_path / "profile")

    drawn = re.search(r'data-wide="(-?\d+)"', made)
    assert drawn is not None
    assert int(drawn[1]) <= 0


def test_results_of_one_name_are_told_apart(comparison: CompareResult, outline: Read) -> None:
    model = msgspec.structs.replace(comparison, how="simulated")
    later = msgspec.structs.replace(comparison, started_at="2026-11-22T10:00:00+00:00")
    other = msgspec.structs.replace(comparison, name="other")

    lines = outline(render([comparison, model, later, other])).lines

    for name in (
        "fixed, measured live, 2026-11-21 10:00:00 UTC",
        "fixed, simulated",
        "fixed, measured live, 2026-11-22 10:00:00 UTC",
        "other",
    ):
        assert f"li: {name}" in lines
        assert f"th: {name}" in lines
        assert f"h2: {name}" in lines


def test_the_caches_of_a_mixed_fleet_are_those_of_its_engines(comparison: CompareResult) -> None:
    comparison.spec = {"engine": {"kind": "sim", "blocks": 420, "fleet": ["2xcpu-2core"]}}
    room = 2 * (PRESETS["cpu-2core"].blocks - 1) * PRESETS["cpu-2core"].block_size

    assert f"2 x embedded engine, {room:,} KV tokens in all" in render([comparison])


def test_sums_over_unlike_numbers_of_runs_are_called_so(comparison: CompareResult) -> None:
    assert "unlike numbers of runs" not in render([comparison])
    comparison.runs = [run for run in comparison.runs if (run.arm, run.repeat) != ("direct", 1)]
    comparison.summary = summarise(comparison)

    assert "unlike numbers of runs (direct 1, agentsched 2)" in render([comparison])
