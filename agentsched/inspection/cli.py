"""`agentsched programs`, `agentsched graph` and `agentsched story`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from agentsched.inspection.client import (
    DEFAULT_URL,
    AdminKey,
    AsJson,
    ControlClient,
    Url,
)
from agentsched.inspection.words import plain
from agentsched.model import ConfigError
from agentsched_graphs.export import from_json

Program = Annotated[
    str,
    typer.Argument(
        help="The program's id, as `agentsched programs` shows; or its agent's name for it."
    ),
]

#: Fields of events and commands that every line of a story would repeat.
_REPEATED: Final = frozenset({"program", "tenant", "prefixes", "prefix", "step"})
_VALUE_CHARS_MAX: Final = 48
#: Of a tenant's and an agent's name on one line: a key's hash is no longer.
_NAME_WIDTH_MAX: Final = 16
_WIDTH_MAX: Final = 1_000
#: Those of the SDK, and all that say that they are over, end with their last call.
_NONE: Final = "no program is live (of one that has ended `agentsched story PROGRAM` tells)"


class State(StrEnum):
    """What a program as a whole is doing."""

    RUNNING = "running"
    WAITING = "waiting"
    PINNED = "pinned"
    PAUSED = "paused"
    IDLE = "idle"


class Format(StrEnum):
    """What `agentsched graph` writes."""

    MERMAID = "mermaid"
    DOT = "dot"
    JSON = "json"
    PNG = "png"
    SVG = "svg"

    @property
    def is_picture(self) -> bool:
        return self in (Format.PNG, Format.SVG)


def programs(
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="So many are left out.")] = 0,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    state: Annotated[State | None, typer.Option(help="Only those that do this.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only this kind of agent's.")] = None,
    is_json: AsJson = False,
) -> None:
    """List the live programs of a running proxy, the latest first."""
    query: dict[str, str | int] = {"limit": limit, "offset": offset}
    wanted = {"tenant": tenant, "state": state, "agent": agent}
    query |= {name: str(value) for name, value in wanted.items() if value is not None}
    with ControlClient(url, admin_key=admin_key) as client:
        listed = client.get_json("/programs", **query)
    if is_json:
        print(json.dumps(listed))
        return
    shown = listed["programs"]
    if not shown:
        print(none_shown(listed["total"], has_filter=len(query) > 2))
        return
    console = Console()
    print_programs(shown, console)
    end = offset + len(shown)
    if listed["total"] > end:
        console.print(f"{listed['total'] - end} more (--offset {end})", highlight=False)


def none_shown(total: int, *, has_filter: bool) -> str:
    """What a list without a line says; `total` is how many programs there are that match."""
    if total:
        return f"no more than {total}"
    return "no program matches" if has_filter else _NONE


def print_programs(rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """A table that may be wider than its console: ids are there to be copied."""
    table = program_table(rows)
    needed = Measurement.get(console, console.options.update(width=_WIDTH_MAX), table).minimum
    # A table is never printed wider than its console, whatever width it is given.
    console.width = max(console.width, needed)
    console.print(table)


def program_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A program a line. Ids are whole, however long; with no tenant in them, on 80 columns."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    cells = [_program_row(row) for row in rows]
    longest = max((program.cell_len for program, *_ in cells), default=0)
    table.add_column("program", no_wrap=True, min_width=longest)
    for title in ("tenant", "agent"):
        table.add_column(title, overflow="fold", max_width=_NAME_WIDTH_MAX)
    for title in ("steps", "live", "idle", "prompt", "cached", "output"):  # in tokens
        table.add_column(title, justify="right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def _program_row(row: Mapping[str, Any]) -> list[Text]:
    prompt = row["prompt_tokens"]
    told = prompt - row.get("untold_tokens", 0)  # what of it an engine said how much was cached
    cells = [
        row["program"],
        row["tenant"],
        row["agent"] or "-",
        str(row["steps_done"]),
        str(row["active_steps"]),
        f"{row['idle_s']:.0f} s",
        f"{prompt:,}",
        f"{row['cached_tokens'] / told:.0%}" if told else "-",
        f"{row['output_tokens']:,}",
    ]
    return [Text(plain(cell)) for cell in cells]  # ids are not markup


def graph(
    program: Program,
    format: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = (
        Format.MERMAID
    ),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: standard output.")
    ] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Write a program's execution graph: steps, tool calls, sub-agents and what led to what.

    Pictures (png, svg) show conversations as lanes over time; they need the extra `viz`.
    """
    if format.is_picture and out is None and sys.stdout.isatty():
        raise ConfigError(f"a picture is not for a terminal (write --out graph.{format})")
    wanted = "json" if format.is_picture else str(format)
    with ControlClient(url, admin_key=admin_key) as client:
        body = client.get_of(program, "graph", format=wanted)
    if format.is_picture:
        from agentsched.inspection.drawing import draw

        body = draw(from_json(body), format=str(format))
    if out is not None:
        out.write_bytes(body)
    else:
        sys.stdout.buffer.write(body if format.is_picture else body.rstrip(b"\n") + b"\n")
        sys.stdout.flush()


def story(
    program: Program,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    is_json: AsJson = False,
) -> None:
    """Tell what happened to a program lately and what was decided, oldest first."""
    with ControlClient(url, admin_key=admin_key) as client:
        told = json.loads(client.get_of(program, "story"))
    if is_json:
        print(json.dumps(told))
        return
    entries = told["entries"]
    if told.get("closed_s") is not None:
        print(f"closed {told['closed_s']:.0f} s ago")
    if not entries:
        print("nothing is kept of it")
        return
    console = Console(highlight=False)
    begin = entries[0]["now"]
    for line in _story_lines(entries, begin=begin):
        console.print(line, soft_wrap=True)


def _story_lines(entries: list[Any], *, begin: int) -> Iterator[Text]:
    for entry in entries:
        kind, event = entry["event"]
        seconds = (entry["now"] - begin) / 1e9
        line = Text(f"{seconds:10.3f} s  ")
        line.append(kind, style="bold")
        yield line.append(f"  {_details(event)}")
        for kind, command in entry["commands"]:
            line = Text(" " * 14 + "-> ")
            line.append(kind, style="cyan")
            yield line.append(f"  {_details(command)}")


def _details(fields: Mapping[str, Any]) -> str:
    """The fields that say something, as `name=value`; the step's id first."""
    step = fields.get("step")
    said = [str(step)] if step else []
    for name, value in fields.items():
        if name in _REPEATED or value in (None, "", [], 0, False):
            continue
        said.append(f"{name}={_brief(value)}")
    return plain(" ".join(said))


def _brief(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "tool" in value[0]:
        text = ",".join(str(call["tool"]) for call in value)
    elif isinstance(value, dict):
        text = ",".join(f"{k}:{v}" for k, v in value.items() if v is not None)
    elif isinstance(value, list):
        text = ",".join(str(item) for item in value)
    else:
        text = str(value)
    return text if len(text) <= _VALUE_CHARS_MAX else f"{text[: _VALUE_CHARS_MAX - 1]}…"
