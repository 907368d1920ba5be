"""Files that are whole or as they were: what took long to find out is not lost half written."""

from __future__ import annotations

import os
from pathlib import Path


def refuse_unwritable(path: Path | None) -> None:
    """Ask before the work: a file that cannot be written must not cost it. Raises OSError."""
    if path is None or _is_stream(path):
        return
    draft = _draft(path)
    try:
        draft.touch()
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` as a whole, or leave it as it was; a pipe or a terminal is written to.

    Raises:
        OSError: it cannot be written. Nothing is left beside it.
    """
    if _is_stream(path):
        path.write_bytes(data)
        return
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
