"""The verbs `agentsched db ...`: the schema, what is stored, what is forgotten, and the way out."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import typer

from agentsched.config import Config, load_config
from agentsched.model import ConfigError
from agentsched.store.database import Database, StoreError, read_url
from agentsched.store.keeper import KeeperSettings, keep, prune_by
from agentsched.store.migrate import schema_status, upgrade
from agentsched.store.pruning import partitions
from agentsched.store.reader import Stream, read_lines, read_streams, span
from agentsched.store.records import NANOS_PER_SECOND

app = typer.Typer(help="Look after the database: schema, export, retention.", no_args_is_help=True)

_T = TypeVar("_T")

Url = Annotated[
    str | None, typer.Option("--url", help="Database; else store.url of the configuration.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file (docs/configuration.md).")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
StreamName = Annotated[
    str | None,
    typer.Option("--stream", help="A stream, or a replica's name [the one opened last]."),
]


@app.command("upgrade")
def upgrade_schema(url: Url = None, config: ConfigFile = None) -> None:
    """Bring the database to this version's tables; two replicas may do so at once."""

    async def work(database: Database) -> None:
        taken = await upgrade(database)
        said = f"took {len(taken)} steps ({', '.join(taken)})" if taken else "is up to date"
        print(f"{database.shown} {said}")

    _run(_open(config, url), work)


@app.command()
def status(url: Url = None, config: ConfigFile = None, as_json: AsJson = False) -> int:
    """Tell the schema's revision, and each replica's journal. Exit code 1: upgrade it."""
    loaded = _open(config, url)

    async def work(database: Database) -> dict[str, Any]:
        schema = await schema_status(database)
        told: dict[str, Any] = {
            "database": database.shown,
            "revision": schema.current,
            "head": schema.head,
            "pending": list(schema.pending),
            "streams": [],
        }
        if schema.is_current:
            told["days"] = [day.isoformat() for day in await partitions(database)]
            told["streams"] = [await _stream(database, s) for s in await read_streams(database)]
        return told

    told = _run(loaded, work)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        _print_status(told)
    return 1 if told["pending"] else 0


@app.command()
def export(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File; `.gz` is compressed [standard output]."),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Time of day, as 2026-11-21T14:00 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Likewise; left out.")] = None,
    stream: StreamName = None,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Write a stream's journal as a journal file: what `report`, `trace` and `whatif` read.

    Without `--from` it begins with what is kept of the stream. `whatif` replays it, for which it
    needs the first entry: that goes after store.journal_retention, and a stream that began with an
    image never had it.
    """
    bounds = (_read_time(since), _read_time(until))

    async def work(database: Database) -> int:
        found = await _choose(database, stream)
        lines = _lines(database, found, bounds)
        if output is None:
            return await _write(sys.stdout.buffer, found, lines)
        try:
            opener: Callable[..., Any] = gzip.open if output.suffix == ".gz" else open
            with opener(output, "xb") as file:
                return await _write(file, found, lines)
        except FileExistsError:
            raise ConfigError(f"{output} exists; a journal is never written over") from None

    count = _run(_open(config, url), work)
    print(f"{count} entries", file=sys.stderr)


@app.command()
def prune(url: Url = None, config: ConfigFile = None) -> None:
    """Forget what is older than store.journal_retention; a running proxy does so by itself.

    It goes by the configuration that it is given: with --url alone by the defaults, whatever the
    proxy's own file says (168h of journal, turns of identity.idle_max, 1h).
    """
    loaded = _open(config, url)

    async def work(database: Database) -> None:
        done = await prune_by(database, _settings(loaded))
        print(
            f"forgot {done.days} days ({done.entries} journal entries), {done.programs} programs, "
            f"{done.turns} turns, {done.streams} streams"
        )

    _run(loaded, work)


@app.command()
def image(stream: StreamName = None, url: Url = None, config: ConfigFile = None) -> None:
    """Fold the journal into an image, so that the next start has less to replay."""

    async def work(database: Database) -> None:
        found = await _choose(database, stream)
        done = await keep(database, found.stream)
        print(
            f"replayed {done.entries} entries, drew {done.programs} programs, "
            f"image of {done.image_bytes} bytes"
        )

    _run(_open(config, url), work)


def _open(config: Path | None, url: str | None) -> Config:
    loaded = load_config(config, {"store": {"url": url}} if url is not None else None)
    if loaded.store.url is None:
        raise ConfigError("no database is given (write --url sqlite:///FILE, or set store.url)")
    return loaded


def _run(config: Config, work: Callable[[Database], Coroutine[Any, Any, _T]]) -> _T:
    async def inside() -> _T:
        async with _database(config) as database:
            return await work(database)

    return asyncio.run(inside())


@asynccontextmanager
async def _database(config: Config) -> AsyncIterator[Database]:
    assert config.store.url is not None
    database = Database(read_url(config.store.url.get_secret_value()))
    try:
        yield database
    finally:
        await database.aclose()


def _settings(config: Config) -> KeeperSettings:
    assert config.store.url is not None
    return KeeperSettings(
        url=config.store.url.get_secret_value(),
        keep_ns=config.store.journal_retention,
        turns_keep_ns=config.identity.idle_max,
    )


async def _choose(database: Database, wanted: str | None) -> Stream:
    streams = await read_streams(database)
    matching = [
        s for s in streams if wanted is None or s.replica == wanted or s.stream.startswith(wanted)
    ]
    if not matching:
        known = ", ".join(dict.fromkeys(s.replica for s in streams)) or "none"
        raise StoreError(f"no journal of {wanted or 'any replica'} (replicas: {known})")
    return matching[0]


async def _lines(
    database: Database, found: Stream, bounds: tuple[int | None, int | None]
) -> AsyncIterator[list[str]]:
    since, until = (None if at is None else at - found.epoch_ns for at in bounds)
    async for lines in read_lines(database, found.stream, since=since, until=until):
        yield lines


async def _write(file: IO[bytes], found: Stream, lines: AsyncIterator[list[str]]) -> int:
    count = 0
    file.write(found.header + b"\n")
    async for some in lines:
        file.write("".join(line + "\n" for line in some).encode())
        count += len(some)
    return count


def _read_time(text: str | None) -> int | None:
    """Nanoseconds since 1970; times without a zone are UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"not a time: {text!r} (write 2026-11-21T14:00)") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    micros = round(moment.timestamp() * 1_000_000)
    return micros * (NANOS_PER_SECOND // 1_000_000)


async def _stream(database: Database, stream: Stream) -> dict[str, Any]:
    ends = await span(database, stream.stream)
    return {
        "stream": stream.stream,
        "replica": stream.replica,
        "opened_at": stream.opened_at.isoformat(),
        "is_live": stream.lease_until > datetime.now(UTC),
        "first": ends[0] if ends else None,
        "last": ends[1] if ends else None,
    }


def _print_status(told: dict[str, Any]) -> None:
    print(f"{told['database']}: revision {told['revision']}, this version's is {told['head']}")
    if told["pending"]:
        print(f"pending: {', '.join(told['pending'])} (run `agentsched db upgrade`)")
    if told.get("days"):
        print(f"journal: {told['days'][0]} to {told['days'][-1]}")
    for stream in told["streams"]:
        is_live = "live" if stream["is_live"] else "not live"
        print(
            f"  {stream['replica']} ({stream['stream'][:8]}, {is_live}): since "
            f"{stream['opened_at'][:19]}, entries {stream['first']} to {stream['last']}"
        )
