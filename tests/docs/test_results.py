"""Results that pages quote are there, and the table of answers says what its pages say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "bench" / "results"
MEASURED = DOCS / "benchmarks"
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
NAME = re.compile(r"`(?P<folder>bench/results/)?(?P<name>[\w.*-]+\.json)`")
#: What stands for a part of a name where one sentence quotes several results.
OPEN = re.compile(r"RATE|SEED|SPAN|\*")
LINK = re.compile(r"\]\((?P<page>[^)#\s]+)[^)]*\)")
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?!\w)")


def quoted() -> Iterator[tuple[Path, str]]:
    """Each result that a page names: everywhere by its folder, on pages of measurements without."""
    for page in sorted(DOCS.rglob("*.md")):
        for found in NAME.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
            if found["folder"] or page.parent == MEASURED:
                yield page, found["name"]


def test_results_that_pages_quote_are_there() -> None:
    names = list(quoted())
    assert len(names) > 50
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page, name in names
        if not any(RESULTS.glob(OPEN.sub("*", name)))
    ]
    assert missing == []


def numbers(text: str) -> set[str]:
    """Numbers in a text, without the commas between thousands."""
    return {found.replace(",", "") for found in NUMBER.findall(text)}


def answers() -> list[str]:
    """Rows of the table of answers."""
    table = (DOCS / "benchmarks.md").read_text(encoding="utf-8").partition("## The pages")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    return rows[1:]


@pytest.mark.parametrize("row", answers(), ids=lambda row: row[:40])
def test_numbers_in_short_are_on_the_pages_that_they_link_to(row: str) -> None:
    pages = {DOCS / found["page"] for found in LINK.finditer(row)}
    told = set[str]().union(*(numbers(page.read_text(encoding="utf-8")) for page in pages))
    question, *answer, _ = row.strip("| ").split(" | ")
    assert len(answer) == 3, question
    assert numbers(LINK.sub("]", " ".join(answer))) - told == set[str]()


def test_latency_that_was_measured_is_in_the_table_of_overhead() -> None:
    """Each figure is the result's median in milliseconds; a "-" has no number there."""
    result = json.loads((RESULTS / "overhead-2026-11-21.json").read_text(encoding="utf-8"))
    measured = {
        (c["shape"], c["is_stream"], str(c["concurrency"]), row["arm"]): row
        for row in result["rows"]
        for c in (row["cell"],)
    }
    page = (MEASURED / "overhead.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+ KB), (whole|stream), (\d+) \|(.*)\|$", page, re.M)
    assert len(rows) == 8
    for shape, kind, concurrency, cells in rows:
        for name, cell in zip(("p50", "p99"), cells.split(" | ")[-2:], strict=True):
            for arm, told in zip(
                ("agentsched", "vllm-router-programs"), cell.strip().split(" / "), strict=True
            ):
                key = (shape.replace(" ", ""), kind == "stream", concurrency, arm)
                figure = measured[key][f"added_{name}_us"]
                digits = len(told.partition(".")[2])
                assert told == (f"{figure['median'] / 1e3:.{digits}f}" if figure else "-"), key
