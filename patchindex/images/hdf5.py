"""HDF5: a dataset of images, wherever it is in the file, with `labels` beside it."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import transformed
from patchindex.images.unreadable import unreadable

__all__ = ["DESCRIPTION", "matches", "open"]

DESCRIPTION = "HDF5 (.h5, .hdf5)"

SUFFIXES = (".h5", ".hdf5", ".hdf")

# Files: a process may have some hundred descriptors for all that it does.
OPEN_AT_ONCE = 32
# Datasets that are open, the one used last at the end. A source that is gone has closed its file.
_OPEN: OrderedDict[weakref.ref[_Dataset], None] = OrderedDict()
_LOCK = threading.RLock()  # h5py reads one at a time anyway


def matches(path: Path) -> bool:
    """Whether the path is a file called .h5, .hdf5 or .hdf, or one that starts as HDF5 does."""
    return path.is_file() and (path.suffix.lower() in SUFFIXES or h5py.is_hdf5(path))


def open(path: Path, options: Options) -> ImageSource:
    """Open a dataset of an HDF5 file; images are read when asked for.

    The dataset is `options.dataset`; or `images`; or the only one of 3 or 4 dimensions. A dataset `labels`
    beside it holds its labels if it has one entry an image. Of any number of sources the files last read stay
    open, and no more than 32, so that a set may be of many files.

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
    name = str(path) if options.dataset is None else f"{path}::{options.dataset}"
    images, labels = _Dataset(path, options.dataset), None
    try:
        if options.labels == "stored" and images.labels is not None:
            labels = _Dataset(path, images.labels)
        return transformed(ArraySource(images, name=name, labels=labels), options.transform)
    except BaseException:
        images.close()
        raise
    finally:
        if labels is not None:
            labels.close()


class _Dataset:
    """A dataset of an HDF5 file that is open while it is read, and afterwards until many others are.

    Parameters
    ----------
    path : Path
    name : str or None
        In the file; None for the one that holds images.

    Attributes
    ----------
    shape, dtype, chunks
        As of `h5py.Dataset`.
    labels : str or None
        Name of the dataset `labels` beside it, if there is one with one entry an image.

    Raises
    ------
    InputError
        Not a readable HDF5 file, no such dataset in it, or one that has changed; also when it is sliced.
    """

    def __init__(self, path: Path, name: str | None) -> None:
        # Opened again later, from whatever folder is the current one then.
        self._path, self._where = path.absolute(), path
        self._name = name
        self._file: h5py.File | None = None
        with _LOCK:
            file = self._opened()
            dataset = file[self._name]
            self.shape: tuple[int, ...] = dataset.shape or ()  # None for an empty one
            self.dtype, self.chunks = dataset.dtype, dataset.chunks
            beside = "/".join([*str(self._name).split("/")[:-1], "labels"])
            labels = file.get(beside)
            fits = isinstance(labels, h5py.Dataset) and labels.shape == self.shape[:1]
            self.labels = beside if fits else None

    def __getitem__(self, index: Any) -> Any:
        with _LOCK:
            dataset = self._opened()[self._name]
            if (dataset.shape or (), dataset.dtype) != (self.shape, self.dtype):
                raise InputError("has changed since it was opened", where=self._where, remedy="open it again")
            return dataset[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def close(self) -> None:
        """Close the file, which is opened again when it is read again."""
        with _LOCK:
            if self._file is not None:
                self._file.close()
            self._file = None

    def _opened(self) -> h5py.File:
        """Return the file, open, as the one used last; the one used longest ago is closed for it."""
        if self._file is None:
            try:
                self._file = h5py.File(self._path, "r")
            except OSError as error:
                raise unreadable(
                    error,
                    "not a readable HDF5 file (truncated, locked or another kind of file)",
                    where=self._where,
                    remedy="copy it again, or close the program that writes it",
                ) from error
            try:
                self._name = _choose(self._file, self._where, self._name)
            except BaseException:
                self.close()
                raise
        own = weakref.ref(self)
        _OPEN[own] = None
        _OPEN.move_to_end(own)
        while len(_OPEN) > OPEN_AT_ONCE:
            oldest = _OPEN.popitem(last=False)[0]()
            if oldest is not None:
                oldest.close()
        return self._file


def _choose(file: h5py.File, path: Path, wanted: str | None) -> str:
    name = wanted or "images"
    if isinstance(file.get(name), h5py.Dataset):
        return name
    candidates: list[h5py.Dataset] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) in (3, 4):
            candidates.append(item)

    file.visititems(visit)
    if wanted is None and len(candidates) == 1:
        return str(candidates[0].name)
    listed = ", ".join(f"{item.name.lstrip('/')} {item.shape}" for item in candidates) or "none"
    problem = f"has no dataset {wanted}" if wanted else "does not say which dataset holds the images"
    raise InputError(
        f"{problem}; datasets of 3 or 4 dimensions: {listed}",
        where=path,
        remedy=f"name one: {path}::path/in/file" if candidates else "give a file that holds images",
    )
