"""The lock file of the dashboard's sources is whole, so that `npm ci` takes it on any platform.

npm leaves out what it did not need where the file was written, or could not find at that moment,
and then refuses its own file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WEB = Path(__file__).parent.parent.parent / "web"


def places(package: str, name: str) -> list[str]:
    """Where a package of this name is looked for by the one at `package`, nearest first."""
    inside = package.split("/node_modules/") if package else []
    return [
        "/node_modules/".join([*inside[:depth], name]) if depth else f"node_modules/{name}"
        for depth in range(len(inside), -1, -1)
    ]


def test_everything_that_is_named_is_listed() -> None:
    packages: dict[str, Any] = json.loads((WEB / "package-lock.json").read_text())["packages"]
    named = {
        (package, name)
        for package, entry in packages.items()
        for kind in ("dependencies", "devDependencies", "optionalDependencies")
        for name in entry.get(kind, {})
    }
    assert len(named) > 100
    missing = {
        f"{name} of {package or 'the dashboard'}"
        for package, name in named
        if not any(place in packages for place in places(package, name))
    }
    assert missing == set()


def test_it_is_of_what_the_sources_ask_for() -> None:
    asked = json.loads((WEB / "package.json").read_text())
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"][""]
    for kind in ("dependencies", "devDependencies"):
        assert locked[kind] == asked[kind]


def test_each_is_known_by_what_it_holds() -> None:
    packages: dict[str, Any] = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert [name for name, entry in packages.items() if name and "integrity" not in entry] == []
