"""`agentsched report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentsched.inspection.client import DEFAULT_URL, AdminKey, ControlClient, Url, in_path
from agentsched.model import ConfigError
from agentsched_bench.compare.results import CompareResult
from agentsched_bench.report.csv_files import write_csv
from agentsched_bench.report.figure import write_png
from agentsched_bench.report.page import write_page
from agentsched_bench.report.sources import from_story, load, only_program

Results = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[RESULT]...", help="Of compare, replay or simulate; or a journal."),
]
Program = Annotated[
    str | None,
    typer.Option(help="One program alone; without RESULT its story in the running proxy (--url)."),
]
Html = Annotated[
    Path | None, typer.Option("--out", "-o", help="The page [beside the first RESULT, .html].")
]
Png = Annotated[Path | None, typer.Option(help="A picture as well (of the first RESULT).")]
Csv = Annotated[Path | None, typer.Option(help="Tables as well, in this folder.")]
Title = Annotated[str, typer.Option(help="What the page is called.")]


def report(
    result: Results = None,
    *,
    out: Html = None,
    png: Png = None,
    csv: Csv = None,
    program: Program = None,
    title: Title = "",
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Write one HTML page about results: verdicts, figures, distributions, timelines, decisions.

    The page holds everything it needs and works without a network.
    """
    if not result and program is None:
        raise ConfigError("nothing to report on (give a RESULT, or --program and --url)")
    loaded = [load(path) for path in result or ()]
    if program is not None:
        loaded = [only_program(each, program) for each in loaded] or [
            _story(program, url=url, admin_key=admin_key)
        ]
    page = out or _beside(result[0] if result else Path(f"{_file_name(program or '')}.html"))
    size = write_page(loaded, page, title=title)
    typer.echo(f"{page} ({size / 1024:.0f} KB)")
    if png is not None:
        write_png(loaded[0], png)
        typer.echo(str(png))
    if csv is not None:
        for path in write_csv(loaded, csv):
            typer.echo(str(path))


def _story(program: str, *, url: str, admin_key: str | None) -> CompareResult:
    with ControlClient(url, admin_key=admin_key) as client:
        told = client.get_json(f"/programs/{in_path(program)}/story")
    return from_story(told["entries"], program=program)


def _beside(path: Path) -> Path:
    name = path.name
    for ending in (".gz", ".json", ".journal", ".ndjson", ".html"):
        name = name.removesuffix(ending)
    return path.with_name(f"{name}.html")


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)[:80]
