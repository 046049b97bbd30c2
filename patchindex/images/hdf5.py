"""HDF5: a dataset of images anywhere in the file, with `labels` beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.format import Format, Options
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import unreadable

__all__ = ["FORMAT"]

SUFFIXES = (".h5", ".hdf5", ".hdf")


def matches(path: Path) -> bool:
    """Return whether a file is called .h5, .hdf5 or .hdf, or starts as HDF5 does."""
    return path.is_file() and (path.suffix.lower() in SUFFIXES or h5py.is_hdf5(path))


def open_hdf5(path: Path, options: Options) -> ImageSource:
    """Open `options.dataset`; or else `images`; or else the only dataset of 3 or 4 dimensions.

    Stored labels are a dataset `labels` beside it with one entry per image.
    """
    with _opened(path) as file:
        dataset = _choose(file, path, options.dataset)
        labels = file.get("/".join([*str(dataset.name).split("/")[:-1], "labels"]))
        fits = isinstance(labels, h5py.Dataset) and labels.shape == (dataset.shape or ())[:1]
        return Hdf5Source(
            path,
            dataset,
            name=options.name_of(path),
            labels=labels if fits and options.labels.kind == "stored" else None,
        )


FORMAT = Format("HDF5 (.h5, .hdf5)", matches, open_hdf5, features=("dataset",))


class Hdf5Source(ArraySource):
    """Images of an HDF5 dataset; each read opens the file (0.3 ms), so a set may have thousands of files."""

    def __init__(self, path: Path, dataset: h5py.Dataset, *, name: str, labels: Any) -> None:
        self._path, self._dataset = path.absolute(), str(dataset.name)
        self._stored = dataset.shape, dataset.dtype
        super().__init__(dataset, name=name, labels=labels)
        self._array = None  # of a file that the caller closes

    @contextmanager
    def _open(self) -> Iterator[h5py.Dataset]:
        with _opened(self._path) as file:
            dataset = file.get(self._dataset)
            if not isinstance(dataset, h5py.Dataset) or (dataset.shape, dataset.dtype) != self._stored:
                raise InputError("has changed since it was opened", where=self._path, remedy="open it again")
            yield dataset


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise unreadable(
            error,
            "not a readable HDF5 file (truncated, locked or another kind of file)",
            where=path,
            remedy="copy it again, or close the program that writes it",
        ) from error
    with file:
        yield file


def _choose(file: h5py.File, path: Path, wanted: str | None) -> h5py.Dataset:
    name = wanted or "images"
    if isinstance(file.get(name), h5py.Dataset):
        return file[name]
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
