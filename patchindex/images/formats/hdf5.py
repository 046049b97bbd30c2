"""HDF5: a dataset of images anywhere in the file, with `labels` beside it.

Data outside the file (external links, external raw data, virtual data sets) are refused: a file from
somebody else could show any file of this machine as pixels. `external_links` follows links.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from patchindex.errors import InputError, Option
from patchindex.images.arrays import ArraySource
from patchindex.images.format import Format, Options
from patchindex.images.hdf5_data import DeflatedChunks, check_data
from patchindex.images.labels import as_labels
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import first_line, unreadable
from patchindex.images.untrusted import check_regular

__all__ = ["FORMAT"]

SUFFIXES = (".h5", ".hdf5", ".hdf")
MOST_LINKS = 32  # on the way to a dataset
COPY_AGAIN = "copy it again, or close the program that writes it"


def matches(path: Path) -> bool:
    """Return whether a file is called .h5, .hdf5 or .hdf, or starts as HDF5 does."""
    return path.is_file() and (path.suffix.lower() in SUFFIXES or h5py.is_hdf5(path))


def open_hdf5(path: Path, options: Options) -> ImageSource:
    """Open `options.dataset`; or else `images`; or else the only dataset of 3 or 4 dimensions.

    Stored labels are a dataset `labels` beside it with one entry per image.
    """
    name = options.name_of(path)
    given = options.dataset or "images"
    place = _follow(path, given, options)
    if place is None:
        given = _only_dataset(path, options.dataset)
        place = path, given
    source = Hdf5Source(*place, name=name, axes=options.axes)
    if options.labels.kind == "stored":
        beside = _follow(path, "/".join([*_parts(given)[:-1], "labels"]), options)
        if beside is not None:
            with _dataset(*beside) as labels:
                check_data(labels, path)
                source.labels = as_labels(labels, len(source), where=name)
    return source


FORMAT = Format("HDF5 (.h5, .hdf5)", matches, open_hdf5, features=("arrays", "dataset", "external_links"))


class Hdf5Source(ArraySource):
    """Images of an HDF5 dataset; each read opens the file (0.3 ms), so a set may have thousands of files."""

    def __init__(self, path: Path, dataset: str, *, name: str, axes: str | None) -> None:
        self._path, self._dataset = path.absolute(), dataset
        self._stored: tuple[Any, Any] | None = None
        with _dataset(self._path, dataset) as opened:
            check_data(opened, self._path)
            self._stored = opened.shape, opened.dtype
            self._deflated = DeflatedChunks(opened, f"{path}::{dataset}")
            super().__init__(opened, name=name, axes=axes, saved=True)
            if self._array is opened:  # not one image, in memory
                self._array = None

    @contextmanager
    def _open(self) -> Iterator[Any]:
        if self._array is not None and not isinstance(self._array, h5py.Dataset):
            yield self._array
            return
        with _dataset(self._path, self._dataset) as dataset:
            if (dataset.shape, dataset.dtype) != self._stored or dataset.external or dataset.is_virtual:
                raise InputError("has changed since it was opened", where=self._path, remedy="open it again")
            yield dataset

    def _copy(self, array: Any, index: slice) -> np.ndarray:
        self._deflated.check(array, index)
        return super()._copy(array, index)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    check_regular(path)
    try:
        file = h5py.File(path, "r")
    except Exception as error:  # h5py raises errors of any type for damaged files
        raise unreadable(
            error,
            "not a readable HDF5 file (truncated, locked or another kind of file)",
            where=path,
            remedy=COPY_AGAIN,
        ) from error
    with file:
        yield file


@contextmanager
def _damage_refused(path: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        what = f"not a readable HDF5 file ({first_line(error)})"
        raise unreadable(error, what, where=path, remedy=COPY_AGAIN) from error


@contextmanager
def _dataset(path: Path, name: str) -> Iterator[h5py.Dataset]:
    with _opened(path) as file, _damage_refused(path):
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise InputError("has changed since it was opened", where=path, remedy="open it again")
        yield dataset


def _follow(path: Path, name: str, options: Options, links: int = 0) -> tuple[Path, str] | None:
    """Return the file and the name of the dataset that a name leads to; None if there is no dataset."""
    todo: list[str] = _parts(name)
    at: list[str] = []
    with _opened(path) as file, _damage_refused(path):
        while todo:
            part = todo.pop(0)
            group = file["/".join(at) or "/"]
            link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
            if link is None:
                return None
            if isinstance(link, h5py.HardLink):
                at.append(part)
                continue
            links += 1
            if links > MOST_LINKS:
                raise InputError("its links lead round in a circle", where=path, remedy="repair the links")
            if isinstance(link, h5py.ExternalLink):
                if not options.external_links:
                    raise InputError(
                        f"{name} is a link to another file, {link.filename}",
                        where=path,
                        remedy=["if you trust the file, give ", Option("external_links", True)],
                    )
                inside = "/".join([*_parts(link.path), *todo])
                return _follow(path.parent / link.filename, inside, options, links)
            todo = _parts(link.path) + todo
            at = [] if link.path.startswith("/") else at
        found = file["/".join(at) or "/"]
        return (path, "/".join(at)) if isinstance(found, h5py.Dataset) else None


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _only_dataset(path: Path, wanted: str | None) -> str:
    """Return the name of the only dataset of images, if no name was given."""
    candidates: list[tuple[str, tuple[int, ...]]] = []

    def visit(name: str | bytes, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) in (3, 4):
            if isinstance(name, bytes):  # h5py's form of a name that is not UTF-8
                raise InputError(
                    f"the name of a dataset is not UTF-8: {name!r}",
                    where=path,
                    remedy="rename it, or copy the file again",
                )
            candidates.append((name, item.shape))

    with _opened(path) as file, _damage_refused(path):
        file.visititems(visit)
    if wanted is None and len(candidates) == 1:
        return candidates[0][0]
    listed = ", ".join(f"{name} {shape}" for name, shape in candidates[:LISTED]) or "none"
    listed += ", ..." * (len(candidates) > LISTED)
    problem = f"has no dataset {wanted}" if wanted else "does not say which dataset holds the images"
    raise InputError(
        f"{problem}; datasets of 3 or 4 dimensions: {listed}",
        where=path,
        remedy=f"name one: {path}::path/in/file" if candidates else "give a file that holds images",
    )


LISTED = 20  # datasets in a message
