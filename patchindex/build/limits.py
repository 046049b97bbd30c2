"""Limits of a build: memory, free disk space, write permission, and disks that fail."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from patchindex.build.plan import BuildPlan
from patchindex.build.workdir import existing_folder, real_path, working_path
from patchindex.errors import InputError, Option, PatchIndexError

__all__ = ["check_limits", "failing_disk", "free_bytes"]


def check_limits(path: Path, plan: BuildPlan, budget: int) -> None:
    """Refuse a build that may need more memory than the budget, in bytes, or more disk space than is free."""
    if plan.memory_bytes > budget:
        need, have = plan.memory_bytes / 2**30, budget / 2**30
        raise InputError(
            f"the build may need {need:.2f} GiB, over the budget of {have:.2f} GiB",
            parameter="memory",
            remedy="raise it, or build with fewer lists or fewer PCA dimensions",
        )
    need, have = (plan.disk_bytes + plan.scratch_bytes) / 2**30, free_bytes(path) / 2**30
    if need > have:
        raise InputError(
            f"the build may need {need:.2f} GiB there, and {have:.2f} are free",
            where=existing_folder(path.parent),
            remedy="free some space, use another disk, or build with fewer scales or fewer PCA dimensions",
        )


def free_bytes(path: Path) -> int:
    """Return the disk space for a build at `path`: free space, and the space of unfinished builds there."""
    path = real_path(path)
    unfinished = [working_path(path), *(path / "scales").glob("*.tmp")]
    return shutil.disk_usage(existing_folder(path.parent)).free + sum(map(_bytes_in, unfinished))


def _bytes_in(folder: Path) -> int:
    """Return the bytes of the files in a folder, from which a running build may remove files meanwhile."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(root, name)).st_size
    return size


@contextmanager
def failing_disk(folder: Path, *then: str | Option) -> Iterator[None]:
    """Turn an OSError in the block into one line; `then` says what to do after the disk is repaired."""
    try:
        yield
    except PatchIndexError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PatchIndexError(
            "the disk is full" if full else f"cannot be written or read ({error.strerror or error})",
            where=folder,
            remedy=[f"{'free some space' if full else 'repair the disk'}, and ", *then],
        ) from error
