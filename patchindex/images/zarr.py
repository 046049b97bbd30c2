"""Zarr: an array of images, or a group with `images` and, optionally, `labels`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import transformed
from patchindex.images.unreadable import first_line, unreadable

__all__ = ["DESCRIPTION", "matches", "open"]

DESCRIPTION = ".zarr folder, or its URL"

METADATA = ("zarr.json", ".zarray", ".zgroup")


def matches(path: Path) -> bool:
    """Whether the path is a folder called .zarr, or one with zarr's metadata in it."""
    return path.is_dir() and (path.suffix.lower() == ".zarr" or any((path / m).is_file() for m in METADATA))


def open(path: Path, options: Options) -> ImageSource:
    """Open a zarr array, or `options.dataset` (by default `images`) of a zarr group.

    Images are read when asked for. An array `labels` beside `images` holds their labels.

    Raises
    ------
    InputError
        Not a readable zarr array or group, no such array in it, or an array that is not images.

    Examples
    --------
    >>> import numpy as np
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = zarr.save_array(f"{folder}/set.zarr", np.zeros((5, 8, 8), np.uint8))
    ...     open(Path(folder) / "set.zarr", Options()).shape
    (5, 8, 8, 1)
    """
    return _opened(str(path), options)


def open_url(url: str, options: Options) -> ImageSource:
    """Open the zarr array or group at a URL, with what `fsspec` has for it; as `open` does otherwise.

    Raises
    ------
    InputError
        As `open` does; and when the URL's protocol is unknown, or its package is not installed.
    """
    try:
        return _opened(url, options)
    except ImportError as error:
        raise InputError(
            f"cannot be opened ({error})", where=url, remedy="install the package, such as s3fs for s3://"
        ) from error


def _opened(path: str, options: Options) -> ImageSource:
    with _damage_refused(path):
        node: Any = zarr.open(path, mode="r")
    labels = None
    if isinstance(node, zarr.Group):
        node, labels = _choose(node, options.dataset or "images", path)
    elif options.dataset is not None:
        raise InputError(
            f"is one array, with no {options.dataset} in it", where=path, remedy=f"give {path} alone"
        )
    source = ArraySource(
        node,
        name=path if options.dataset is None else f"{path}::{options.dataset}",
        labels=labels if isinstance(labels, zarr.Array) and options.labels == "stored" else None,
    )
    return transformed(source, options.transform)


def _choose(group: zarr.Group, name: str, path: str) -> tuple[zarr.Array, Any]:
    """Find the array of that name in a group, and what is called `labels` beside it."""
    with _damage_refused(path):
        array = group.get(name)
        if isinstance(array, zarr.Array):
            return array, group.get("/".join([*name.split("/")[:-1], "labels"]))
        listed = ", ".join(sorted(group.array_keys())) or "none"
    raise InputError(
        f"has no array {name}; arrays: {listed}",
        where=path,
        remedy=f"name one: {path}::path/in/group",
    )


@contextmanager
def _damage_refused(path: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, MemoryError):
        raise
    # Metadata that is JSON but not zarr's ends in whatever zarr first trips over; and each protocol has its
    # own errors, for no permission or no network.
    except Exception as error:
        at_url = ", and check the network and the credentials" if "://" in path else ""
        raise unreadable(
            error,
            f"not a readable zarr array or group ({first_line(error)})",
            where=path,
            remedy=f"give the folder that holds zarr.json, .zarray or .zgroup{at_url}",
        ) from error
