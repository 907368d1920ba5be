"""Draws the parts of the documentation that repeat the code: `python docs/draw.py [--check]`.

Each stands between `<!-- drawn: NAME -->` and `<!-- end -->` in docs/architecture.md.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "architecture.md"
PACKAGES: Final = (
    "agentsched",
    "graphs/agentsched_graphs",
    "policies/agentsched_policies",
    "adapters/agentsched_adapters",
    "bench/agentsched_bench",
)
_PART: Final = re.compile(
    r"(?P<head><!-- drawn: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- end -->)", re.DOTALL
)


def modules() -> str:
    """One line for each module: its path, and the first sentence of its docstring."""
    lines = []
    for package in PACKAGES:
        lines += ["", f"**`{package}/`**", ""]
        for path in sorted((ROOT / package).rglob("*.py")):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if said:
                name = path.relative_to(ROOT / package).as_posix()
                lines.append(f"- `{name}`: {first_sentence(said)}")
    return "\n".join(lines[1:]) + "\n"


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s+(?=[A-Z])", paragraph)[0]


DRAWINGS: Final[dict[str, Callable[[], str]]] = {"modules": modules}


def draw(page: str) -> str:
    """The page with every drawn part made anew."""

    def drawn(part: re.Match[str]) -> str:
        return f"{part['head']}{DRAWINGS[part['name']]()}{part['tail']}"

    return _PART.sub(drawn, page)


def main() -> int:
    """Draw; with `--check` only say whether the page is as it would be drawn."""
    old = PAGE.read_text(encoding="utf-8")
    new = draw(old)
    if old == new:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run scripts/check --fix")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
