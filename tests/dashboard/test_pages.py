"""The files that come with the package are those that the sources in `web/` make."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "agentsched/dashboard/assets"
WEB = ROOT / "web"


def test_built_of_these_sources() -> None:
    names = [f"src/{name}" for name in sorted(path.name for path in (WEB / "src").iterdir())]
    made = hashlib.sha256()
    for name in [*names, "index.html"]:
        made.update(f"{name}\0".encode() + (WEB / name).read_bytes() + b"\0")
    built = (ASSETS / "sources.txt").read_text().strip()
    assert made.hexdigest() == built, "run: cd web && npm install && npm run build"


def test_small() -> None:
    """A page that loads at once, also from afar."""
    parts = [path for path in ASSETS.iterdir() if path.suffix in (".js", ".css", ".html")]
    assert len(parts) == 3
    assert sum(len(gzip.compress(path.read_bytes())) for path in parts) < 60_000
