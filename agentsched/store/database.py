"""One door to the database: URLs, connections, and errors as one clear line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from agentsched.model import AgentschedError, ConfigError

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}
#: What may follow the `?` of a PostgreSQL URL: what the driver can read out of a text.
_OPTIONS: Final = frozenset(
    {
        *("host", "port", "user", "password", "database", "passfile", "service", "servicefile"),
        *("ssl", "direct_tls", "target_session_attrs", "krbsrvname", "gsslib"),
        *("timeout", "command_timeout", "prepared_statement_cache_size"),
    }
)
_CONNECT_S: Final = 5.0
_BUSY_MS: Final = 5_000
#: Between two attempts at what SQLite does not wait for itself.
_LOCKED_S: Final = 0.01
#: For one transaction; the server's own limits for one statement lie below.
TRANSACTION_S: Final = 15.0


_PRAGMAS: Final = ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON")


class StoreError(AgentschedError):
    """The database cannot be used now. `is_data`: it refuses what was written, not us."""

    def __init__(self, message: str, *, is_data: bool = False) -> None:
        super().__init__(message)
        self.is_data = is_data


def read_url(text: str) -> URL:
    """The URL of a database, with the driver that we use.

    Raises:
        ConfigError: not a URL of SQLite or PostgreSQL, or an option that the driver has not. A
            password is never repeated.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigError(
            "store.url is no database URL (write sqlite:///agentsched.db or "
            "postgresql://user:password@host/database)"
        ) from None
    backend = url.drivername.partition("+")[0]
    if backend not in _DRIVERS:
        raise ConfigError(f"store.url: {backend!r} is not supported (sqlite and postgresql are)")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError("store.url: a database in memory keeps nothing (write sqlite:///FILE)")
    url = url.set(drivername=_DRIVERS[backend])
    return url if backend == "sqlite" else _as_the_driver_says(url)


def _as_the_driver_says(url: URL) -> URL:
    """The URL with TLS asked for as our driver has it: everybody else says `sslmode`.

    Raises:
        ConfigError: an option that would be a defect in the middle of a connection.
    """
    options = {"ssl" if name == "sslmode" else name: given for name, given in url.query.items()}
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise ConfigError(
            f"store.url: {unknown[0]} is no option there (TLS is ?sslmode=require, or verify-full "
            "with the authorities' file in the environment variable PGSSLROOTCERT)"
        )
    return url.set(query=options)


class Database:
    """A database and its connections. Made without touching it."""

    def __init__(self, url: URL, *, statement_s: float = TRANSACTION_S) -> None:
        self.url = url
        self.is_postgres = url.get_backend_name() == "postgresql"
        self._statement_s = statement_s
        #: Of the file that connections are open to, where that is known.
        self._file_number: int | None = None
        #: Of connections to SQLite, each on a thread of its own.
        self._threads: list[threading.Thread] = []
        self._engine = self._connect_engine()

    @property
    def shown(self) -> str:
        """The URL for people, without its password."""
        return self.url.set(drivername=self.url.get_backend_name()).render_as_string()

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return None if self.is_postgres else Path(str(self.url.database))

    def _connect_engine(self) -> AsyncEngine:
        if self.is_postgres:
            settings: dict[str, Any] = {
                "timeout": _CONNECT_S,
                "command_timeout": self._statement_s,
                "server_settings": {"application_name": "agentsched"},
            }
            return create_async_engine(
                self.url,
                pool_size=1,
                max_overflow=2,
                pool_timeout=_CONNECT_S,
                connect_args=settings,
            )
        engine = create_async_engine(
            self.url,
            pool_size=1,
            max_overflow=4,
            pool_timeout=_CONNECT_S,
            connect_args={"timeout": _BUSY_MS / 1_000, "async_creator_fn": self._open_sqlite},
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    def _open_sqlite(self, *arguments: Any, **settings: Any) -> Any:
        """A connection whose thread we know, so that `aclose` can wait for its end."""
        import aiosqlite

        connection = aiosqlite.connect(*arguments, **settings)
        thread: threading.Thread = connection._thread  # no public name; SQLAlchemy reads it, too
        thread.daemon = True
        # A thread that has not begun is not alive, but will be at once.
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        return connection

    @contextlib.asynccontextmanager
    async def writing(self, *, timeout_s: float = TRANSACTION_S) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; committed at the end of the block.

        Raises:
            StoreError: the database does not answer in time, refuses, or is broken.
        """
        await self._follow_file()
        with _clear_errors(self):
            async with asyncio.timeout(timeout_s), self._engine.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def reading(self, *, timeout_s: float = TRANSACTION_S) -> AsyncIterator[AsyncConnection]:
        """A consistent view that keeps no writer waiting.

        Raises:
            StoreError: as for `writing`.
        """
        await self._follow_file()
        with _clear_errors(self):
            async with asyncio.timeout(timeout_s), self._engine.connect() as connection:
                level = "REPEATABLE READ" if self.is_postgres else None
                options: dict[str, Any] = {"agentsched_reads": True}
                if level is not None:
                    options["isolation_level"] = level
                connection = await connection.execution_options(**options)
                async with connection.begin():
                    yield connection

    async def _follow_file(self) -> None:
        """Let go of a file that was moved away: what is written into it would be lost."""
        if self.file is None:
            return
        try:
            number = os.stat(self.file).st_ino
        except OSError:
            number = 0  # made with the first connection
        if number != self._file_number:
            if self._file_number is not None:
                await self.aclose()
            self._file_number = number or None

    async def aclose(self) -> None:
        """Close all connections; the next use opens new ones."""
        with contextlib.suppress(Exception):  # they may be broken: closing is all that is left
            await asyncio.wait_for(self._engine.dispose(), _CONNECT_S)
        # A connection that failed or was given up ends on its own thread, which tells the loop so:
        # that loop must still be there.
        threads, self._threads = self._threads, []
        for thread in threads:
            if thread.is_alive():
                await asyncio.to_thread(thread.join, _CONNECT_S)


def _prepare_sqlite(connection: Any, record: object) -> None:
    # SQLAlchemy begins transactions itself (below), so that tables change in them, too.
    connection.isolation_level = None
    try:
        cursor = connection.cursor()
        for pragma in (f"busy_timeout = {_BUSY_MS}", *_PRAGMAS):
            _set_pragma(cursor, pragma)
        cursor.close()
    except BaseException:
        connection.close()  # nobody else has it yet
        raise


def _set_pragma(cursor: Any, pragma: str) -> None:
    """Set it, as soon as nobody else changes the same.

    Of two that begin a new file at once, SQLite refuses the second journal mode without waiting
    `busy_timeout`, for fear of a deadlock (its manual, `sqlite3_busy_handler`): we wait.
    """
    end = time.monotonic() + _BUSY_MS / 1_000
    while True:
        try:
            cursor.execute(f"PRAGMA {pragma}")
            return
        except sqlite3.OperationalError as error:
            if "lock" not in str(error) or time.monotonic() >= end:
                raise
        await_only(asyncio.sleep(_LOCKED_S))


def _begin_sqlite(connection: Connection) -> None:
    # Who will write says so at once: two that read first and write later wait for each other.
    reads = connection.get_execution_options().get("agentsched_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def _clear_errors(database: Database) -> Any:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(_told(database, error), is_data=_is_data(error)) from error
    except (OverflowError, UnicodeError) as error:
        # Of the driver, before anything was sent: what was given fits into no column.
        raise StoreError(f"{database.shown}: {error}", is_data=True) from error
    except TimeoutError as error:
        raise StoreError(f"{database.shown}: no answer in time") from error
    except (OSError, EOFError, sqlite3.Error) as error:
        raise StoreError(f"{database.shown}: {error}") from error
    except Exception as error:
        if not _is_servers(error):
            raise
        raise StoreError(f"{database.shown}: {_first_line(error)}") from error


def _is_servers(error: Exception) -> bool:
    """Whether it comes from the driver as it is: while it connects, nobody wraps its errors."""
    return type(error).__module__.startswith("asyncpg")


def _told(database: Database, error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = _first_line(cause)
    hint = next((hint for sign, hint in _HINTS.items() if sign in text), "")
    return f"{database.shown}: {text}{hint}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    # The adapter repeats the name of the driver's class in front.
    return text.rpartition("'>: ")[2] or type(error).__name__


_HINTS: Final = {
    "database is locked": " (another process writes for too long)",
    "readonly database": " (the file and its folder must be writable)",
    "disk is full": " (make room; what waits is in the spool)",
    "malformed": " (the file is damaged: restore a backup, or move it away to begin anew)",
    "not a database": " (the file is damaged, or something else)",
    "unable to open": " (does the folder exist, and may we write there?)",
    "no such table": " (run `agentsched db upgrade`)",
}


def _is_data(error: SQLAlchemyError) -> bool:
    """Whether a row is at fault, so that the same would be refused for ever."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    # The adapter of asyncpg names its own errors anew; the driver's are their cause.
    kinds = {*type(error).__mro__, *type(getattr(error.orig, "__cause__", None)).__mro__}
    return bool({kind.__name__ for kind in kinds} & {"DataError", "IntegrityError"})
