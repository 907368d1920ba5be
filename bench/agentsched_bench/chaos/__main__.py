"""`python -m agentsched_bench.chaos simulate|overload|streams|programs`: docs/reliability.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsched_bench.chaos.soak import simulate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agentsched_bench.chaos", description=__doc__)
    parser.add_argument("--result", type=Path, help="file that gets the result as JSON")
    verbs = parser.add_subparsers(dest="verb", required=True)
    seeds = verbs.add_parser("simulate", help="the whole proxy on virtual time, seed after seed")
    seeds.add_argument("--first", type=int, default=0, help="the first seed")
    seeds.add_argument("--seeds", type=int, default=200, help="how many; 0: as time allows")
    seeds.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    seeds.add_argument("--profile", default="agentsched", help="set of policies")
    seeds.add_argument("--scale", type=float, default=1.0, help="faults in place of the usual 1")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 where everything held."""
    given = _parser().parse_args(arguments)
    result: dict[str, Any] = simulate(
        first=given.first,
        seeds=given.seeds or None,
        minutes=given.minutes,
        profile=given.profile,
        scale=given.scale,
    )
    text = json.dumps(result, indent=1)
    if given.result is not None:
        given.result.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
