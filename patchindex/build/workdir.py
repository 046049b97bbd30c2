"""Where a build works: a folder beside the store, held by a lock, moved into place when all is whole.

`<store>.building` is the folder and `<store>.building.lock` the lock. While a store takes the place of
another, that one is called `<store>.replaced` for a moment, and `<store>.building.removed` what goes.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from filelock import FileLock, Timeout

from patchindex.build.plan import BuildPlan
from patchindex.build.scale import sync, sync_file
from patchindex.errors import InputError, OutputExistsError, PatchIndexError, StoreError
from patchindex.index.patch_index import attributes_of, read_attributes, replaced_path, scales_of, tree_bytes
from patchindex.store.checksums import MANIFEST, read_checksummed, write_checksummed
from patchindex.store.remote import is_url

__all__ = [
    "IMAGES",
    "SETTINGS",
    "build_of",
    "building",
    "check_memory",
    "check_no_other",
    "check_output",
    "check_space",
    "check_writable",
    "failing_disk",
    "free_bytes",
    "has_images",
    "locked",
    "move_into_place",
    "real_path",
    "same_settings",
]

BUILD = "build"  # in the settings: a name of its own for each build
SETTINGS = "settings.json"  # of the build, sealed: with it a folder is an unfinished build or a store
IMAGES = "images_written"  # attribute: all of them are
# What is the same whatever it is called, and tells more: the images themselves are compared.
NOT_COMPARED = ("source",)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return where a store is or will be, whatever way leads there: it has one lock.

    Raises
    ------
    InputError
        When that is not on a disk of this machine.
    """
    if is_url(path):
        raise InputError("is a URL", where=path, remedy="build on a local disk, and copy it there")
    return Path(os.path.realpath(path))


def check_output(path: Path, settings: dict[str, Any], overwrite: bool, resume: bool) -> bool:
    """Say whether the store is finished already; refuse to touch what is in the way."""
    unfinished = _building_path(path)
    begun = _begun(unfinished)
    if path.exists():
        found = _store_at(path, overwrite)
        interrupted_overwrite = overwrite and begun is not None
        if resume and found is not None and not interrupted_overwrite:
            # Scales may have been added to it.
            held = {"scales": [k for k in settings["scales"] if k in scales_of(path)]}
            different = _different(found.get("settings", {}) | held, settings)
            if not different:
                return True
            if not overwrite:
                raise _of_other_settings(path, different)
        if not overwrite:
            raise OutputExistsError(
                "exists already", where=path, remedy="use another path, or overwrite=True"
            )
        if found is None:
            raise OutputExistsError(
                "exists and is not a patchindex store", where=path, remedy="use another path"
            )
    check_writable(path)
    if begun is not None:
        different = _different(begun, settings)
        if resume and different and not overwrite:
            raise _of_other_settings(unfinished, different)
        if not resume and not overwrite:
            raise OutputExistsError(
                "an unfinished build is there",
                where=unfinished,
                remedy="give resume=True to go on with it, or overwrite=True to start anew",
            )
    return False


def _store_at(path: Path, damaged: bool) -> dict[str, Any] | None:
    """Return what a store says of itself, nothing for a damaged one if it may be, None if there is none."""
    try:
        return read_attributes(path) if path.is_dir() else None
    except StoreError:
        if not damaged or not (path / MANIFEST).is_file():
            raise
        return {}


def check_writable(path: Path) -> None:
    """Refuse a store in a folder that cannot be written to."""
    parent = _existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("cannot write there", where=parent, remedy="use a folder that you may write to")


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


def free_bytes(path: Path) -> int:
    """Return what a build at this path may take of its disk: what is free, and what an unfinished one has."""
    path = real_path(path)
    unfinished = [_building_path(path), *(path / "scales").glob("*.tmp")]
    return shutil.disk_usage(_existing_parent(path)).free + sum(map(tree_bytes, unfinished))


def check_memory(plan: BuildPlan, budget: int) -> None:
    """Refuse a build that may take more memory than there is to be had."""
    if plan.memory_bytes > budget:
        need, have = (f"{b / 2**30:.2f} GiB" for b in (plan.memory_bytes, budget))
        raise InputError(
            f"the build may need {need}, over the budget of {have}",
            where="memory",
            remedy="raise it, or give a smaller pca_dims or fewer lists",
        )


def check_space(path: Path, plan: BuildPlan) -> None:
    """Refuse a build that may take more of its disk than is free."""
    need, have = plan.disk_bytes + plan.scratch_bytes, free_bytes(path)
    if need > have:
        raise InputError(
            f"the build may need {need / 2**30:.2f} GiB there, and {have / 2**30:.2f} are free",
            where=_existing_parent(path),
            remedy="free some, use another disk, fewer scales or a smaller pca_dims",
        )


def same_settings(found: Any, settings: Any) -> bool:
    """Whether settings are the same but for what is called another way."""
    return bool(_compared(found) == _compared(settings))


def _different(found: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    compared, wanted = _compared(found), _compared(settings)
    return sorted(key for key in wanted if compared.get(key) != wanted[key])


def _compared(settings: Any) -> Any:
    """Return settings without what need not be the same."""
    if isinstance(settings, list):
        return [_compared(entry) for entry in settings]
    if isinstance(settings, dict):
        return {key: _compared(value) for key, value in settings.items() if key not in NOT_COMPARED}
    return settings


def _of_other_settings(where: Path, different: list[str]) -> InputError:
    return InputError(
        f"was built with other settings ({', '.join(different)})",
        where=where,
        remedy="give the same ones, or overwrite=True",
    )


def check_no_other(path: Path, settings: dict[str, Any] | None = None) -> bool:
    """Say whether an unfinished build with these settings is there; refuse to go on beside another one."""
    folder = _building_path(path)
    begun = _begun(folder)
    if begun is None:
        return False
    different = [] if settings is None else _different(begun, settings)
    if settings is None or different:
        other = f" of other settings ({', '.join(different)})" if different else ""
        raise OutputExistsError(
            f"an unfinished build{other} is there",
            where=folder,
            remedy="go on with that (resume=True, and what it was given), or delete it",
        )
    return True


def _building_path(path: Path) -> Path:
    return path.with_name(path.name + ".building")


def _begun(folder: Path) -> dict[str, Any] | None:
    """Return the settings of an unfinished build; None where there is none that could be gone on with."""
    try:
        settings = read_checksummed(folder / SETTINGS)
    except (StoreError, NotADirectoryError):
        return None
    return settings if isinstance(settings, dict) and (folder / "zarr.json").exists() else None


def has_images(folder: Path) -> bool:
    """Whether the images of a build are written, all of them."""
    return bool(attributes_of(folder).get(IMAGES, False))


@contextmanager
def building(path: Path, settings: dict[str, Any], resume: bool) -> Iterator[Path]:
    """Give the folder that a build works in; only who holds the lock takes it."""
    folder = _building_path(path)
    begun = _begun(folder)
    if folder.exists() and not (resume and begun is not None and not _different(begun, settings)):
        # What the first moments of a build leave, or all of one that is not wanted.
        ours = (folder / SETTINGS).exists() or all(
            entry.name.startswith(("zarr.", SETTINGS)) for entry in folder.iterdir()
        )
        if not ours:
            raise OutputExistsError(
                "is in the way and no unfinished build", where=folder, remedy="use another path"
            )
        _remove(path, folder)
    if not folder.exists():
        zarr.open_group(folder, mode="w")
        write_checksummed(folder / SETTINGS, settings | {BUILD: uuid.uuid4().hex})
        sync(folder)
        sync_file(folder.parent)
    try:
        yield folder
    except InputError:
        # Bad input that shows only when it is read, a damaged image say, leaves nothing behind either.
        if not has_images(folder):
            _remove(path, folder)
        raise


def build_of(folder: Path) -> str:
    """Return the name of the build in a folder: another one has another, whatever its settings."""
    return str(read_checksummed(folder / SETTINGS)[BUILD])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other builders from a store, and put right what one that was killed has left while replacing it.

    Raises
    ------
    InputError
        When another holds it, or there can be no lock.
    """
    lock = Path(f"{_building_path(path)}.lock")
    holder = FileLock(lock, blocking=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder.acquire()
    except Timeout:
        raise InputError("another build of it is running", where=path, remedy="wait for it to end") from None
    except OSError as error:
        raise InputError(
            f"cannot write there ({error.strerror})",
            where=lock.parent,
            remedy="use a folder that you may write to",
        ) from error
    try:
        _settle(path)
        yield
    finally:
        lock.unlink(missing_ok=True)
        holder.release()


@contextmanager
def failing_disk(folder: Path, then: str) -> Iterator[None]:
    """Tell in one line of a disk that fails while there is work in a folder, and what to do `then`."""
    try:
        yield
    except PatchIndexError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PatchIndexError(
            "the disk is full" if full else f"cannot be written or read ({error.strerror or error})",
            where=folder,
            remedy=f"{'free some' if full else 'mend that'}, and {then}",
        ) from error


def move_into_place(folder: Path, path: Path, overwrite: bool) -> None:
    """Make a whole store visible, in place of one that is there only if that is wanted."""
    if path.exists():
        # It may have come while the build was running: what is not ours to replace stays.
        if not overwrite or _store_at(path, damaged=True) is None:
            raise OutputExistsError(
                "appeared during the build", where=path, remedy="move it away, and go on with resume=True"
            )
        path.rename(replaced_path(path))
    folder.rename(path)
    sync_file(path.parent)
    _settle(path)


def _settle(path: Path) -> None:
    """End what `move_into_place` began: the old store goes when the new one is there, else it comes back."""
    replaced = replaced_path(path)
    if replaced.exists() and not path.exists():
        replaced.rename(path)
    elif replaced.exists() and not _building_path(path).exists():
        _remove(path, replaced)
    if _removed_path(path).exists():
        shutil.rmtree(_removed_path(path))


def _removed_path(path: Path) -> Path:
    return path.with_name(path.name + ".building.removed")


def _remove(path: Path, folder: Path) -> None:
    """Remove a folder, under another name, so that half of it is not taken for a whole one."""
    removed = _removed_path(path)
    if removed.exists():
        shutil.rmtree(removed)
    folder.rename(removed)
    sync_file(removed.parent)
    shutil.rmtree(removed)
