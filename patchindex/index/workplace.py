"""Where a build works: a folder beside the store, held by a lock, moved into place when all is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from filelock import FileLock, Timeout

from patchindex.errors import InputError, OutputExistsError, PatchIndexError
from patchindex.index.plan import BuildPlan
from patchindex.index.store import read_attributes, tree_bytes

__all__ = [
    "IMAGES",
    "building",
    "check_memory",
    "check_output",
    "check_space",
    "free_bytes",
    "has_images",
    "is_begun",
    "locked",
    "move_into_place",
]

# Attributes of the folder: the settings of the build, and whether the images are written.
SETTINGS, IMAGES = "building", "images_written"


def check_output(path: Path, settings: dict[str, Any], overwrite: bool, resume: bool) -> bool:
    """Say whether the store is finished already; refuse to touch what is in the way."""
    unfinished = _building_path(path)
    if path.exists():
        found = read_attributes(path) if path.is_dir() else None
        interrupted_overwrite = overwrite and unfinished.exists()
        if resume and found is not None and not interrupted_overwrite:
            _check_settings(found["settings"], settings, path)
            return True
        if not overwrite:
            raise OutputExistsError(
                "exists already", where=path, remedy="use another path, or overwrite=True"
            )
        if found is None:
            raise OutputExistsError(
                "exists and is not a patchindex store", where=path, remedy="use another path"
            )
    parent = _existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("cannot write there", where=parent, remedy="use a folder that you may write to")
    if unfinished.exists():
        if resume:
            _check_settings(_building_settings(unfinished), settings, unfinished)
        elif not overwrite:
            raise OutputExistsError(
                "an unfinished build is there",
                where=unfinished,
                remedy="give resume=True to go on with it, or overwrite=True to start anew",
            )
    return False


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


def free_bytes(path: Path) -> int:
    """Return what a build at this path may take of its disk: what is free, and what an unfinished one has."""
    return shutil.disk_usage(_existing_parent(path)).free + tree_bytes(_building_path(path))


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


def _check_settings(found: dict[str, Any], settings: dict[str, Any], where: Path) -> None:
    different = sorted(key for key in settings if found.get(key) != settings[key])
    if different:
        raise InputError(
            f"was built with other settings ({', '.join(different)})",
            where=where,
            remedy="give the same ones, or overwrite=True",
        )


def is_begun(path: Path) -> bool:
    """Whether an unfinished build of a store is there."""
    return _building_path(path).exists()


def _building_path(path: Path) -> Path:
    return path.with_name(path.name + ".building")


def _building_settings(building: Path) -> dict[str, Any]:
    if not (building / "zarr.json").is_file():
        return {}
    return dict(zarr.open_group(building, mode="r").attrs.get(SETTINGS, {}))  # type: ignore[arg-type]


def has_images(folder: Path) -> bool:
    """Whether the images of a build are written, all of them."""
    return bool(zarr.open_group(folder, mode="r").attrs.get(IMAGES, False))


@contextmanager
def building(path: Path, settings: dict[str, Any], resume: bool) -> Iterator[Path]:
    """Give the folder that a build works in, held by a lock: another builder is refused."""
    folder = _building_path(path)
    with locked(path, folder):
        if folder.exists() and not resume:
            if any(folder.iterdir()) and not _building_settings(folder):
                raise OutputExistsError(
                    "is in the way and no unfinished build", where=folder, remedy="use another path"
                )
            shutil.rmtree(folder)
        if not (folder / "zarr.json").exists():
            zarr.open_group(folder, mode="w", attributes={SETTINGS: settings})
        try:
            yield folder
        except InputError:
            # Bad input that shows only when it is read, a damaged image say, leaves nothing behind either.
            if not has_images(folder):
                shutil.rmtree(folder)
            raise


@contextmanager
def locked(path: Path, folder: Path) -> Iterator[None]:
    """Keep other builders from a store while one works in a folder; a disk that fails is told in one line."""
    lock = FileLock(_building_path(path).with_name(_building_path(path).name + ".lock"), blocking=False)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise InputError("another build of it is running", where=path, remedy="wait for it to end") from None
    try:
        yield
    except PatchIndexError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PatchIndexError(
            "the disk is full" if full else f"cannot be written or read ({error.strerror or error})",
            where=folder,
            remedy=f"{'free some' if full else 'mend that'}, and go on with resume=True",
        ) from error
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def move_into_place(folder: Path, path: Path, overwrite: bool) -> None:
    """Make a whole store visible, in place of one that is there only if that is wanted."""
    if path.exists():
        # It may have come while the build was running: what is not ours to replace stays.
        if not overwrite or read_attributes(path) is None:
            raise OutputExistsError(
                "appeared during the build", where=path, remedy="move it away, and go on with resume=True"
            )
        replaced = path.with_name(f"{path.name}.replaced-{os.getpid()}")
        path.rename(replaced)
        folder.rename(path)
        shutil.rmtree(replaced)
    else:
        folder.rename(path)
