"""The documentation's pictures of the dashboard: each is shown on its page."""

from __future__ import annotations

from pathlib import Path

from agentsched_bench.portrait.dashboard import VIEWS

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_shows_every_picture() -> None:
    page = (DOCS / "dashboard.md").read_text()
    for view in VIEWS:
        assert (DOCS / "images" / view.file).is_file()
        assert f"(images/{view.file})" in page
