"""OpenCode's store: where its sessions, messages and parts are, in each of its layouts.

Since version 1.2 a SQLite database (`opencode.db`); before that a JSON file for each of them below
`storage/`; and what `opencode export` prints, one document with a whole session.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentsched_bench.workload.importers.databases import connect, is_database
from agentsched_bench.workload.importers.files import InputFile, OnError, decode, values
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_instant,
    as_name,
    as_object,
    as_objects,
)
from agentsched_bench.workload.trace import TraceError

#: The tables that a database of OpenCode's has.
TABLES: Final = frozenset({"session", "message", "part"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A message with its parts, in the order in which they were made."""

    info: Object
    parts: Sequence[Object] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as it stands in its store. `is_document`: all of it is one JSON document."""

    session_id: str
    parent_id: str | None
    created_s: float | None
    file: InputFile
    is_document: bool = False
    is_cut: bool = False
    #: The folders of its messages and of their parts, those that may be.
    folders: tuple[tuple[Path, Path], ...] = field(default=())


def sessions(files: Sequence[InputFile], *, on_error: OnError) -> list[Session]:
    """All sessions of these files, by the time at which they were begun, without what was said."""
    found: list[Session] = []
    for file in files:
        if is_database(file.path):
            found.extend(_of_database(file, on_error=on_error))
            continue
        for value in values(file, on_error=on_error):
            document = as_object(value.value)
            if "messages" in document:
                info, is_cut = as_object(document.get("info")), value.is_cut
                found.append(_session(file, info, is_document=True, is_cut=is_cut))
            elif is_session(document):
                found.append(_of_folders(file, document))
    return sorted(found, key=lambda one: (one.created_s or 0.0, one.session_id))


def said_in(session: Session, *, on_error: OnError) -> list[Said]:
    """What was said in a session. What cannot be read is reported and left out."""
    if session.is_document:
        return _exported(session)
    if is_database(session.file.path):
        return _said_in_database(session, on_error=on_error)
    return _said_in_folders(session, on_error=on_error)


def is_session(value: Object) -> bool:
    return as_name(value.get("id")).startswith("ses") and "time" in value and "role" not in value


def is_part_of_one(value: Object) -> bool:
    """Whether this is a message's or a part's file."""
    has_id = as_name(value.get("sessionID")).startswith("ses")
    return has_id and ("role" in value or "messageID" in value)


def _session(file: InputFile, info: Object, **more: Json) -> Session:
    return Session(
        session_id=as_name(info.get("id"), default=file.name),
        parent_id=as_name(info.get("parentID")) or None,
        created_s=as_instant(as_object(info.get("time")).get("created")),
        file=file,
        **more,
    )


def _exported(session: Session) -> list[Said]:
    """What a document says; what is wrong with it was told when its session was found."""
    for found in values(session.file, on_error=lambda _: None):
        document = as_object(found.value)
        if as_object(document.get("info")).get("id") == session.session_id:
            return [
                Said(info=as_object(one.get("info")), parts=as_objects(one.get("parts")))
                for one in as_objects(document.get("messages"))
            ]
    return []


# -- a file for each --------------------------------------------------------------------------


def _of_folders(file: InputFile, info: Object) -> Session:
    """`storage/session/PROJECT/ID.json`; in the first versions `storage/session/info/ID.json`."""
    name, above = as_name(info.get("id")), file.path.parent.parent
    roots = (above.parent, above)
    folders = tuple((root / "message" / name, root / "part") for root in roots)
    return _session(file, info, folders=folders)


def _said_in_folders(session: Session, *, on_error: OnError) -> list[Said]:
    said: list[Said] = []
    for folder, parts in session.folders:
        for info in _documents(folder, on_error=on_error):
            name = as_name(info.get("id"))
            below = (parts / name, parts / session.session_id / name)
            found = [part for place in below for part in _documents(place, on_error=on_error)]
            said.append(Said(info=info, parts=tuple(found)))
    return said


def _documents(folder: Path, *, on_error: OnError) -> Iterator[Object]:
    """The JSON files of a folder by their names, which are in the order of time."""
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json")):
        for found in values(InputFile(path=path), on_error=on_error):
            if as_object(found.value):
                yield as_object(found.value)


# -- a database -------------------------------------------------------------------------------


def _of_database(file: InputFile, *, on_error: OnError) -> list[Session]:
    try:
        with contextlib.closing(connect(file.path)) as database:
            rows = database.execute("SELECT id, parent_id, time_created FROM session").fetchall()
    except sqlite3.Error as error:
        on_error(_unread("the sessions", error, file))
        return []
    return [
        Session(
            session_id=as_name(name, default="session"),
            parent_id=as_name(parent) or None,
            created_s=as_instant(created),
            file=file,
        )
        for name, parent, created in rows
    ]


def _said_in_database(session: Session, *, on_error: OnError) -> list[Said]:
    """The messages of a session; those that come before the place where a database broke."""
    path = session.file.path
    said: dict[str, Object] = {}
    parts: dict[str, list[tuple[str, Object]]] = {}

    def rows(database: sqlite3.Connection, query: str, what: str) -> Iterator[tuple[str, ...]]:
        # Unsorted: to sort them SQLite would read all before it gave the first.
        try:
            for row in database.execute(query, (session.session_id,)):
                yield tuple(
                    v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in row
                )
        except sqlite3.Error as error:
            on_error(_unread(f"{what} of {session.session_id}", error, session.file))

    def value(text: str, what: str) -> Object:
        try:
            return as_object(decode(text.encode("utf-8", "replace"), path=path))
        except TraceError as error:
            on_error(TraceError(f"{what}: {error.message}", path=path))
            return {}

    try:
        with contextlib.closing(connect(path)) as database:
            query = "SELECT id, data FROM message WHERE session_id = ?"
            for own, text in rows(database, query, "messages"):
                said[own] = {"id": own} | value(text, f"message {own}")
            query = "SELECT id, message_id, data FROM part WHERE session_id = ?"
            for own, message, text in rows(database, query, "parts"):
                parts.setdefault(message, []).append((own, value(text, f"part {own}")))
    except sqlite3.Error as error:
        on_error(_unread(session.session_id, error, session.file))
    found = [
        Said(info=info, parts=[part for _, part in sorted(parts.get(own, ()), key=_by_id)])
        for own, info in said.items()
        if "role" in info
    ]
    return sorted(found, key=_by_time)


def _by_id(part: tuple[str, Object]) -> str:
    return part[0]


def _by_time(said: Said) -> tuple[float, str]:
    created = as_instant(as_object(said.info.get("time")).get("created"))
    return created or 0.0, as_name(said.info.get("id"))


def _unread(what: str, error: sqlite3.Error, file: InputFile) -> TraceError:
    return TraceError(f"cannot read {what}: {error}", path=file.path)
