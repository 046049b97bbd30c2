"""Zarr: an array of images, or a group with `images` and, optionally, `labels`.

Formats 2 and 3. Only numbers, packed by codecs of an allow-list: a codec for objects could run code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.format import Format, Options
from patchindex.images.labels import as_labels
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import first_line, unreadable
from patchindex.images.zarr_data import check_array, checked_store

__all__ = ["FORMAT", "open_zarr"]

METADATA = ("zarr.json", ".zarray", ".zgroup")


def matches(path: Path) -> bool:
    """Return whether a folder is called .zarr or holds zarr metadata."""
    return path.is_dir() and (path.suffix.lower() == ".zarr" or any((path / m).is_file() for m in METADATA))


def open_zarr(path: Path | str, options: Options) -> ImageSource:
    """Open a zarr array, or `options.dataset` (by default `images`) of a zarr group.

    Stored labels are an array `labels` beside the images. A URL is opened with `fsspec`.
    """
    path, labels, name = str(path), None, options.name_of(path)
    with _damage_refused(path):
        store = checked_store(path)
        node: Any = zarr.open(store=store, mode="r")
    if isinstance(node, zarr.Group):
        node, labels = _choose(node, options.dataset or "images", path)
    elif options.dataset is not None:
        raise InputError(
            f"is one array, without a dataset {options.dataset}", where=path, remedy=f"give {path} alone"
        )
    with _damage_refused(path):
        check_array(node, store, name)
    source = ArraySource(node, name=name, axes=options.axes, saved=True)
    if isinstance(labels, zarr.Array) and options.labels.kind == "stored":
        with _damage_refused(path):
            check_array(labels, store, f"{name}: labels")
        source.labels = as_labels(labels, len(source), where=name)
    return source


FORMAT = Format(".zarr folder, or its URL", matches, open_zarr, features=("arrays", "dataset"))


def _choose(group: zarr.Group, name: str, path: str) -> tuple[zarr.Array, Any]:
    """Return the array of that name, and the array `labels` beside it or None."""
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
    except (InputError, MemoryError):
        raise
    except ImportError as error:
        raise InputError(
            f"cannot be opened ({error})", where=path, remedy="install the package, such as s3fs for s3://"
        ) from error
    # zarr raises errors of any type for metadata that is not its own, and each protocol has its own errors.
    except Exception as error:
        at_url = ", and check the network and the credentials" if "://" in path else ""
        raise unreadable(
            error,
            f"not a readable zarr array or group ({first_line(error)})",
            where=path,
            remedy=f"give the folder that holds zarr.json, .zarray or .zgroup{at_url}",
        ) from error
