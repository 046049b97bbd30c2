"""The working directory of a build: a folder beside the store that becomes the store when it is complete.

The working directory of `s.zarr` is `s.zarr.building`, and `s.zarr.building.lock` keeps other builds away.
While a new store replaces an old one, the old one is `s.zarr.replaced` for a moment. A folder is renamed to
`s.zarr.building.removed` before it is removed, so that a half-removed folder is never taken for a whole one.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import zarr
from filelock import FileLock, Timeout

from patchindex.build.settings import changed_settings
from patchindex.checks import check_path, path_exists
from patchindex.errors import InputError, Option, OutputExistsError, PatchIndexError, StoreError
from patchindex.index.layout import attributes_of, read_attributes, replaced_path, scales_of
from patchindex.store.atomic import sync, sync_file
from patchindex.store.checksums import MANIFEST, read_checksummed, write_checksummed
from patchindex.store.remote import is_url

__all__ = [
    "GO_ON",
    "IMAGES",
    "ExistingOutput",
    "build_id_of",
    "check_no_unfinished",
    "check_writable",
    "existing_append",
    "existing_folder",
    "existing_output",
    "has_images",
    "hold_lock",
    "is_building",
    "locked",
    "move_into_place",
    "real_path",
    "unfinished_settings",
    "working_directory",
    "working_path",
]

SETTINGS = "settings.json"  # checksummed; with it a folder is an unfinished build or a store
BUILD_ID = "build"  # key in the settings
GO_ON = ("go on with ", Option("resume", True))  # in a remedy: how a build continues that was interrupted
IMAGES = "images_written"  # attribute of the working directory: all images are written


class ExistingOutput(Enum):
    """The state of a build's output, which decides how the build starts."""

    NEW = "start a new build"
    RESUME = "continue the unfinished build of the same settings"
    FINISHED = "a store of the same settings is there: do nothing"


def existing_output(
    path: Path, settings: dict[str, Any], *, overwrite: bool = False, resume: bool = False
) -> ExistingOutput:
    """Decide how `build_index` starts, or refuse the build."""
    unfinished = unfinished_settings(working_path(path))
    changed = [] if unfinished is None else changed_settings(unfinished, settings)
    if path.exists():
        store = _read_store(path, allow_damaged=overwrite)
        overwriting = overwrite and unfinished is not None
        if resume and store is not None and not overwriting:
            # The store may have got more scales since it was built.
            held = {"scales": [k for k in settings["scales"] if k in scales_of(path)]}
            differences = changed_settings(store.get("settings", {}) | held, settings)
            if not differences:
                return ExistingOutput.FINISHED
            if not overwrite:
                raise _other_settings_error(path, differences)
        if not overwrite:
            raise OutputExistsError(
                "exists already", where=path, remedy=["use another path, or ", Option("overwrite", True)]
            )
        if store is None:
            raise OutputExistsError(
                "exists and is not a patchindex store", where=path, remedy="use another path"
            )
    check_writable(path.parent)
    if unfinished is None or (overwrite and (changed or not resume)):
        return ExistingOutput.NEW
    if not resume:
        raise OutputExistsError(
            "an unfinished build is there",
            where=working_path(path),
            remedy=[
                "give ", Option("resume", True), " to continue it, or ", Option("overwrite", True),
                " to start a new build",
            ],
        )  # fmt: skip
    if changed:
        raise _other_settings_error(working_path(path), changed)
    return ExistingOutput.RESUME


def existing_append(path: Path, settings: dict[str, Any], *, resume: bool) -> ExistingOutput:
    """Decide how `append` starts, or refuse the call; the last entry of `appended` is of the new images."""
    unfinished = unfinished_settings(working_path(path))
    if unfinished is None:
        last, new = [{}, *settings["appended"]][-2:]
        done = resume and not changed_settings(last, new)
        return ExistingOutput.FINISHED if done else ExistingOutput.NEW
    changed = changed_settings(unfinished, settings)
    if changed or not resume:
        raise _unfinished_error(path, changed if resume else [])
    return ExistingOutput.RESUME


def check_no_unfinished(path: Path) -> None:
    """Refuse to change a store while there is an unfinished build of it."""
    if unfinished_settings(working_path(path)) is not None:
        raise _unfinished_error(path, [])


def _unfinished_error(path: Path, changed: list[str]) -> OutputExistsError:
    other = f" of other settings ({', '.join(changed)})" if changed else ""
    return OutputExistsError(
        f"an unfinished build{other} is there",
        where=working_path(path),
        remedy=["continue it with ", Option("resume", True), " and the same images, or delete the folder"],
    )


def _other_settings_error(where: Path, changed: list[str]) -> InputError:
    return InputError(
        f"was built with other settings ({', '.join(changed)})",
        where=where,
        remedy=["give the same settings, or ", Option("overwrite", True)],
    )


def _read_store(path: Path, *, allow_damaged: bool) -> dict[str, Any] | None:
    """Return the attributes of a store; {} if they are damaged, None if the path is not a store."""
    try:
        return read_attributes(path) if path.is_dir() else None
    except StoreError:
        if not allow_damaged or not (path / MANIFEST).is_file():
            raise
        return {}


def unfinished_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of an unfinished build; None when there is none that can be resumed."""
    try:
        settings = read_checksummed(folder / SETTINGS)
    except (StoreError, NotADirectoryError):
        return None
    return settings if isinstance(settings, dict) and (folder / "zarr.json").exists() else None


def build_id_of(folder: Path) -> str:
    """Return the id of the build in a working directory: each build has its own, whatever its settings."""
    return str(read_checksummed(folder / SETTINGS)[BUILD_ID])


def has_images(folder: Path) -> bool:
    """Return whether a working directory has all images."""
    return bool(attributes_of(folder).get(IMAGES, False))


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a store without symbolic links, so that each store has one lock; refuse a URL."""
    check_path(path)
    if is_url(path):
        raise InputError("is a URL", where=path, remedy="build on a local disk, and copy the store there")
    real = Path(os.path.realpath(path))
    path_exists(real)  # so that a name that is too long is refused before any work
    return real


def working_path(path: Path) -> Path:
    """Return the working directory of a store."""
    return path.with_name(path.name + ".building")


def existing_folder(folder: Path) -> Path:
    """Return a folder if it exists, else the nearest folder above it that exists; without symbolic links."""
    folder = Path(os.path.realpath(folder))
    return next(each for each in (folder, *folder.parents) if each.exists())


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, or that cannot be made."""
    existing = existing_folder(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError("cannot write there", where=existing, remedy="use a folder that you may write to")


@contextmanager
def working_directory(path: Path, settings: dict[str, Any], existing: ExistingOutput) -> Iterator[Path]:
    """Yield the working directory of a build, a new one unless the build resumes.

    Hold the lock of the store. When the block raises InputError before all images are written, because an
    image is damaged for example, the working directory is removed.
    """
    folder = working_path(path)
    if existing is not ExistingOutput.RESUME:
        _clear(path, folder)
        zarr.open_group(folder, mode="w")
        write_checksummed(folder / SETTINGS, settings | {BUILD_ID: uuid.uuid4().hex})
        sync(folder)
        sync_file(folder.parent)
    try:
        yield folder
    except InputError:
        if not has_images(folder):
            _remove(path, folder)
        raise


def _clear(path: Path, folder: Path) -> None:
    """Remove an unfinished build, or the few files of a build that was killed at its start."""
    if not folder.exists():
        return
    ours = (folder / SETTINGS).exists() or all(
        entry.name.startswith(("zarr.", SETTINGS)) for entry in folder.iterdir()
    )
    if not ours:
        raise OutputExistsError(
            "exists and is not an unfinished build", where=folder, remedy="use another path"
        )
    _remove(path, folder)


@contextmanager
def hold_lock(
    lock: Path, refused: PatchIndexError, *, timeout: float = 0, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold a lock file in the block; call `waiting` once when another process holds the lock.

    Raise `refused` when the other process holds the lock for longer than `timeout` seconds.
    """
    holder = FileLock(lock)
    try:
        holder.acquire(blocking=False)
    except Timeout:
        waiting()
        try:
            holder.acquire(timeout=timeout)
        except Timeout:
            raise refused from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        holder.release()


def is_building(path: Path) -> bool:
    """Return whether a process holds the lock of a store; False where the lock cannot be tried."""
    lock = Path(f"{working_path(path)}.lock")
    if not lock.exists():
        return False
    holder = FileLock(lock)
    try:
        holder.acquire(blocking=False)
    except Timeout:
        return True
    except PermissionError:
        return False
    holder.release()
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other builds from a store, and complete a replacement that was interrupted."""
    refused = InputError("another build of the store is running", where=path, remedy="wait until it ends")
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(Path(f"{working_path(path)}.lock"), refused):
        _settle(path)
        yield


def move_into_place(folder: Path, path: Path, *, replace: bool) -> None:
    """Make a complete store visible at its path; an old store there goes, if `replace` allows that."""
    sync(folder)
    if path.exists():
        # Something may have appeared at the path during the build. Only a store may be replaced.
        if not replace or _read_store(path, allow_damaged=True) is None:
            raise OutputExistsError(
                "appeared during the build",
                where=path,
                remedy=["move it away, and continue with ", Option("resume", True)],
            )
        path.rename(replaced_path(path))
    folder.rename(path)
    sync_file(path.parent)
    _settle(path)


def _settle(path: Path) -> None:
    """Complete `move_into_place`: remove the old store if the new one is there, else bring it back."""
    replaced, removed = replaced_path(path), _removed_path(path)
    if removed.exists():
        shutil.rmtree(removed)
    if replaced.exists() and not path.exists():
        replaced.rename(path)
    elif replaced.exists() and not working_path(path).exists():
        _remove(path, replaced)


def _removed_path(path: Path) -> Path:
    return path.with_name(path.name + ".building.removed")


def _remove(path: Path, folder: Path) -> None:
    removed = _removed_path(path)
    folder.rename(removed)
    sync_file(removed.parent)
    shutil.rmtree(removed)
