"""The page on traces says what the types say."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched_bench.workload.importers import IMPORTERS
from agentsched_bench.workload.reference import BEGIN, END, main, reference, updated

PAGE = Path(__file__).parents[3] / "docs" / "traces.md"


def test_the_page_is_not_stale() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert updated(page) == page, (
        "run: python -m agentsched_bench.workload.reference docs/traces.md"
    )


@pytest.mark.parametrize("name", [known.name for known in IMPORTERS])
def test_the_page_names_every_format(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


def test_the_reference_is_put_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nstale text\n{END}\nafter\n")
    main(iter([str(path)]))
    text = path.read_text()
    assert "stale text" not in text
    assert reference() in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
