"""Results that pages quote are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "bench" / "results"
MEASURED = DOCS / "benchmarks"
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
NAME = re.compile(r"`(?P<folder>bench/results/)?(?P<name>[\w.*-]+\.json)`")
#: What stands for a part of a name where one sentence quotes several results.
OPEN = re.compile(r"RATE|SEED|SPAN|\*")


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
