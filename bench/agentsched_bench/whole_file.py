"""Files that are whole or as they were: what took long to find out is not lost half written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentsched.model import ConfigError


def refuse_unwritable(path: Path | None) -> None:
    """Ask before the work: a file that cannot be written must not cost it. Raises OSError."""
    if path is None or _is_stream(path):
        return
    draft = _draft(path)
    try:
        draft.touch()
    except OSError as error:
        error.filename = str(path)  # nobody asked for the draft
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` as a whole, or leave it as it was; a pipe or a terminal is written to.

    Raises:
        OSError: it cannot be written. Nothing is left beside it.
    """
    try:
        if _is_stream(path):
            path.write_bytes(data)
        else:
            _replace(path, data)
    except OSError as error:
        # A disk that is full says what it lacks, and not for which file; others name the draft, for
        # which nobody asked.
        if error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def only_writer(path: Path | None) -> Iterator[None]:
    """Keep other processes from this file while the block runs: of what two replace by turns, each
    loses the half.

    Raises:
        ConfigError: another one is at it.
        OSError: nothing can be written there.
    """
    if path is None or _is_stream(path):
        yield
        return
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.lock")
    try:
        opened = lock.open("wb")
    except OSError as error:
        error.filename = str(path)
        raise
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is being written by another process: wait for it, or name another file "
                "(--out)"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    draft = _draft(path)
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(os.path.realpath(path))
    finally:
        draft.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """Whether it is there and no file: whoever replaced `/dev/stdout` would break it for all."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _draft(path: Path) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.{os.getpid()}")
