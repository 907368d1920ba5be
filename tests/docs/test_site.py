"""The site builds without a warning, and every link on its pages leads somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^()\s]+(?:\([^()]*\))?)\)")
HEADING = re.compile(r"^#{1,6} (?P<text>.+?)\s*$", re.M)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)


def prose(page: Path) -> str:
    """The page without code."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the site and code hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in HEADING.finditer(text):
        words = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"])
        anchor = re.sub(r"[^\w\s-]", "", words.lower()).strip()
        found.add(re.sub(r"\s", "-", anchor))
        found.add(re.sub(r"[\s-]+", "-", anchor))
    return found


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for link in LINK.finditer(prose(page)):
            if "://" not in link["target"] and not link["target"].startswith("mailto:"):
                yield page, link["target"]


def test_links_lead_somewhere() -> None:
    broken = []
    for page, target in links():
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_pages_of_the_site_link_to_nothing_outside_it() -> None:
    outside = [
        f"{page.relative_to(ROOT)}: {target}"
        for page, target in links()
        if page.is_relative_to(DOCS)
        and not (page.parent / target.partition("#")[0]).resolve().is_relative_to(DOCS)
    ]
    assert outside == []


class _Loader(yaml.SafeLoader):
    """Names of Python's things stay names."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: name)


def configuration() -> dict[str, Any]:
    read: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    return read


def nav(entries: Any) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else (entry,):
            yield from nav(value) if isinstance(value, list) else (value,)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(nav(configuration()["nav"]))
    assert len(listed) == len(set(listed))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages - set(listed) == {p for p in pages if p.startswith("adr/")}
    assert set(listed) <= pages


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    zensical = Path(sys.executable).parent / "zensical"
    built = subprocess.run(
        [zensical, "build", "--strict", "--clean", "-f", "mkdocs.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    home = (tmp_path / "site/index.html").read_text()
    assert "agent programs" in home
    made = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*.html")}
    assert {page.replace(".md", ".html") for page in nav(configuration()["nav"])} <= made
