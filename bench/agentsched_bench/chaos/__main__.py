"""`python -m agentsched_bench.chaos simulate|overload|refusals|streams|...`.

See docs/reliability.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsched_bench.chaos.covered import covered, to_lines
from agentsched_bench.chaos.load import overload, programs, streams
from agentsched_bench.chaos.mutants import mutants
from agentsched_bench.chaos.refusals import refusals
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
    flood = verbs.add_parser("overload", help="ten times what the engine can do, for a while")
    flood.add_argument("--seconds", type=float, default=10.0, help="of each part")
    flood.add_argument("--factor", type=float, default=10.0, help="requests over capacity")
    noes = verbs.add_parser("refusals", help="what a 429 costs the proxy, beside an answer")
    noes.add_argument("--calls", type=int, default=2_000, help="of each shape")
    noes.add_argument("--waiting", type=int, default=64, help="steps in the queue meanwhile")
    many = verbs.add_parser("streams", help="many streams open at once")
    many.add_argument("--count", type=int, default=2_000)
    lives = verbs.add_parser("programs", help="many programs alive at once")
    lives.add_argument("--count", type=int, default=10_000)
    changes = verbs.add_parser("mutants", help="small changes to the code: do its tests notice?")
    changes.add_argument("--count", type=int, default=60)
    changes.add_argument("--seed", type=int, default=1)
    changes.add_argument("--minutes", type=float, default=20.0)
    changes.add_argument("--jobs", type=int, default=1, help="changes tried at a time")
    changes.add_argument("--only", nargs="+", default=(), help="modules (kernel, policies, proxy)")
    ways = verbs.add_parser("covered", help="what a `coverage json` report says of each room")
    ways.add_argument("report", type=Path)
    ways.add_argument("rooms", nargs="+", help="folders, as they stand in the report")
    ways.add_argument("--least", type=float, default=0.95, help="share of branches that is enough")
    return parser


def _run(given: argparse.Namespace) -> dict[str, Any]:
    match given.verb:
        case "overload":
            return asyncio.run(overload(seconds=given.seconds, factor=given.factor))
        case "refusals":
            return asyncio.run(refusals(calls=given.calls, waiting=given.waiting))
        case "streams":
            return asyncio.run(streams(count=given.count))
        case "programs":
            return asyncio.run(programs(count=given.count))
        case "mutants":
            return mutants(
                count=given.count,
                seed=given.seed,
                minutes=given.minutes,
                jobs=given.jobs,
                only=given.only,
            )
        case "covered":
            found = covered(given.report, rooms=tuple(given.rooms))
            print("\n".join(to_lines(found, least=given.least)), file=sys.stderr)
            return {"holds": found["whole"]["branches_taken"] >= given.least, **found}
        case _:
            return simulate(
                first=given.first,
                seeds=given.seeds or None,
                minutes=given.minutes,
                profile=given.profile,
                scale=given.scale,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 where everything held."""
    given = _parser().parse_args(arguments)
    result = _run(given)
    text = json.dumps(result, indent=1)
    if given.result is not None:
        given.result.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
