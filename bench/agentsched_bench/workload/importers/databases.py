"""SQLite databases of other programs, read without a change to them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

_MAGIC: Final = b"SQLite format 3\x00"


def is_database(path: Path) -> bool:
    """Whether a file is a SQLite database, whatever it is called."""
    try:
        with path.open("rb") as raw:
            return raw.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def connect(path: Path) -> sqlite3.Connection:
    """Open a database to read it, with what its write-ahead log holds where there is one.

    Without one SQLite is told that nobody writes: else it would make files beside the database.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    log = path.with_name(path.name + "-wal")
    has_log = log.is_file() and log.stat().st_size > 0
    mode = "mode=ro" if has_log else "mode=ro&immutable=1"
    database = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
    # Else nothing is read of a database that was cut off.
    database.execute("PRAGMA writable_schema = ON")
    return database


def tables_of(path: Path) -> frozenset[str]:
    """The tables of a database; none where it cannot be read."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(path)) as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return frozenset(str(row[0]) for row in rows)
    return frozenset()
