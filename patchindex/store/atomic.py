"""Atomic writes: a file or a folder gets its final name only when all of it is on disk."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write", "publish", "sync", "sync_file"]


@contextmanager
def atomic_write(path: Path, *, durable: bool = True, shared: bool = False) -> Iterator[BinaryIO]:
    """Write to a temporary file beside `path`, and rename it to `path` at the end of the block.

    An exception in the block removes the temporary file and leaves `path` as it was. A `durable` file
    survives a loss of power. A `shared` path may be written by several processes at once.
    """
    number = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f"{path.name}{number}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_file(path.parent)


def publish(folder: Path, path: Path) -> None:
    """Rename a complete folder to its final name, after all of its files are on disk."""
    sync(folder)
    folder.rename(path)
    sync_file(path.parent)


def sync(folder: Path) -> None:
    """Flush all files and folders below a folder to disk."""
    for root, _, files in os.walk(folder):
        for path in (*(os.path.join(root, file) for file in files), root):
            sync_file(path)


def sync_file(path: str | Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
