"""HDF5: a dataset of images, wherever it is in the file, with `labels` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import transformed

__all__ = ["DESCRIPTION", "matches", "open"]

DESCRIPTION = "HDF5 (.h5, .hdf5)"

SUFFIXES = (".h5", ".hdf5", ".hdf")


def matches(path: Path) -> bool:
    """Whether the path is a file called .h5, .hdf5 or .hdf, or one that starts as HDF5 does."""
    return path.is_file() and (path.suffix.lower() in SUFFIXES or h5py.is_hdf5(path))


def open(path: Path, options: Options) -> ImageSource:
    """Open a dataset of an HDF5 file; images are read when asked for.

    The dataset is `options.dataset`; or `images`; or the only one of 3 or 4 dimensions. A dataset `labels`
    beside it holds its labels if it has one entry an image. The file stays open as long as the source lives.

    Raises
    ------
    InputError
        Not a readable HDF5 file, no such dataset, no clear choice, or a dataset that is not images.

    Examples
    --------
    >>> import numpy as np
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "set.h5"
    ...     with h5py.File(path, "w") as file:
    ...         file["train/x"] = np.zeros((5, 8, 8), np.uint8)
    ...     open(path, Options(dataset="train/x")).shape
    (5, 8, 8, 1)
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            "not a readable HDF5 file (truncated, locked or another kind of file)",
            where=path,
            remedy="copy it again, or close the program that writes it",
        ) from error
    try:
        images = _choose(file, path, options.dataset)
        labels = images.parent.get("labels") if options.labels == "stored" else None
        if not isinstance(labels, h5py.Dataset) or labels.shape != images.shape[:1]:
            labels = None
        name = str(path) if options.dataset is None else f"{path}::{options.dataset}"
        source = ArraySource(images, name=name, labels=labels)
        return transformed(source, options.transform)
    except BaseException:
        file.close()
        raise


def _choose(file: h5py.File, path: Path, wanted: str | None) -> h5py.Dataset:
    name = wanted or "images"
    found = file.get(name)
    if isinstance(found, h5py.Dataset):
        return found
    candidates: list[h5py.Dataset] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) in (3, 4):
            candidates.append(item)

    file.visititems(visit)
    if wanted is None and len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{item.name.lstrip('/')} {item.shape}" for item in candidates) or "none"
    problem = f"has no dataset {wanted}" if wanted else "does not say which dataset holds the images"
    raise InputError(
        f"{problem}; datasets of 3 or 4 dimensions: {listed}",
        where=path,
        remedy=f"name one: {path}::path/in/file" if candidates else "give a file that holds images",
    )
