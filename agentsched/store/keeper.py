"""Folds a stream's new journal into an image, draws rows from it and prunes: beside the proxy.

Run as a process of its own (`python -m agentsched.store.keeper`, settings on standard input), so
that the proxy pays nothing for it: the core is deterministic, and the journal is in the database.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from datetime import timedelta
from typing import Final

import msgspec

from agentsched.kernel import Scheduler, decode_header
from agentsched.model import AgentschedError, ConfigError
from agentsched.store.database import Database, StoreError, read_url
from agentsched.store.fold import Fold, fresh
from agentsched.store.image import take_image
from agentsched.store.projection import project
from agentsched.store.pruning import Pruned, prune
from agentsched.store.reader import Image, read_lines, read_streams, save_image, span
from agentsched.store.restore import fold_lines, latest_image

log = logging.getLogger(__name__)

_NICE: Final = 10


class KeeperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one run does. Spans are nanoseconds; `stream` None means every stream."""

    url: str
    stream: str | None = None
    keep_ns: int
    turns_keep_ns: int


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What one run did."""

    entries: int
    programs: int
    image_bytes: int


async def keep(database: Database, stream: str) -> Kept:
    """Bring a stream's image and rows up to date with its journal.

    Raises:
        StoreError: there is no such stream, or the database cannot be used.
    """
    found = next((s for s in await read_streams(database) if s.stream == stream), None)
    if found is None:
        raise StoreError(f"there is no stream {stream}")
    scheduler = await latest_image(database, stream)
    if scheduler is None:
        scheduler = fresh(decode_header(found.header))
        ends = await span(database, stream)
        scheduler.skip_to(ends[0] if ends is not None else 0)
    fold = Fold(scheduler)
    lines = read_lines(database, stream, first=scheduler.next_seq)
    await fold_lines(fold, lines, until=float("inf"))
    size = 0
    if fold.report.entries:
        size = await _save_image(database, stream, scheduler)
    programs = await project(database, fold, stream=stream, epoch_ns=found.epoch_ns)
    return Kept(entries=fold.report.entries, programs=programs, image_bytes=size)


async def _save_image(database: Database, stream: str, scheduler: Scheduler) -> int:
    """Bytes of the image; 0 where a policy has none, so that starts replay the journal."""
    try:
        data = take_image(scheduler)
    except StoreError as error:
        log.error("no image of stream %s: %s", stream, error)
        return 0
    await save_image(database, stream, Image(seq=scheduler.next_seq, data=data))
    return len(data)


async def run(settings: KeeperSettings) -> tuple[Kept, ...]:
    """Prune; then one run for the settings' stream, or for all.

    In this order, since a journal that is too long to fold must not grow for that.

    Raises:
        StoreError: as `keep`.
    """
    database = Database(read_url(settings.url))
    try:
        await prune_by(database, settings)
        names = [settings.stream] if settings.stream else []
        names = names or [s.stream for s in await read_streams(database)]
        done = [await keep(database, name) for name in names]
    finally:
        await database.aclose()
    return tuple(done)


async def prune_by(database: Database, settings: KeeperSettings) -> Pruned:
    """Forget what the settings do not keep."""
    return await prune(
        database,
        keep=timedelta(microseconds=settings.keep_ns / 1_000),
        turns_keep=timedelta(microseconds=settings.turns_keep_ns / 1_000),
    )


def main() -> int:
    """The process: settings as JSON on standard input, one line about it on standard error."""
    logging.basicConfig(level="WARNING", format="agentsched store: %(message)s")
    os.nice(_NICE)
    try:
        settings = msgspec.json.decode(sys.stdin.buffer.read(), type=KeeperSettings)
        asyncio.run(run(settings))
    except (AgentschedError, ConfigError) as error:
        print(f"agentsched store: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
