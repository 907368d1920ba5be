"""`python -m agentsched_bench.reference`: draw the reference pages into docs/reference."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from agentsched.bus.messages import schemas
from agentsched.proxy import openapi as packaged
from agentsched_bench.reference import commands, http, metrics
from agentsched_bench.reference.recording import record

#: What proxies serve, in the package.
PACKAGED = Path(packaged.__file__).with_name(packaged.FILE)


def pages(openapi: str) -> dict[str, str]:
    """File -> content, for all that is drawn."""
    return {
        "bus.json": json.dumps(schemas(), indent=1) + "\n",
        "cli.md": commands.to_page(),
        "metrics.md": metrics.to_page(),
        "openapi.json": openapi,
        "http.md": http.to_page(json.loads(openapi)),
    }


def served(openapi: str) -> str:
    """The same as every proxy serves it of itself: short, and relative to where it was read."""
    described = json.loads(openapi) | {"servers": [{"url": "/"}]}
    return json.dumps(described, separators=(",", ":"), ensure_ascii=False) + "\n"


def drawn_openapi() -> str:
    """The description of the control plane, made of what a proxy answers now."""
    described = http.to_openapi(asyncio.run(record()))
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Draw, or with `--check` only say what is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--folder", type=Path, default=Path("docs/reference"))
    given = parser.parse_args()
    stale = 0
    openapi = drawn_openapi()
    drawn = {given.folder / name: text for name, text in pages(openapi).items()}
    drawn[PACKAGED] = served(openapi)
    for path, text in drawn.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{path} {'is out of date' if given.check else 'drawn'}")
        if not given.check:
            path.write_text(text, encoding="utf-8")
    return int(given.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
