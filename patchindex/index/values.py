"""The arrays of a store and of its scales: their shapes and values, checked once when they are read.

The attributes were checked before (`patchindex.index.attributes`), so all shapes are known. The kernels and
FAISS take indices from these arrays and compare none with the size of an array.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchindex.errors import StoreError
from patchindex.geometry import Geometry
from patchindex.images.file_names import LONGEST_NAME, FileNames
from patchindex.index.attributes import IndexedImages
from patchindex.index.faiss_file import ID_BYTES
from patchindex.index.layout import IMAGE_NAME_BOUNDS, IMAGE_NAMES
from patchindex.store.arrays import REMEDY, read_array, read_head
from patchindex.store.raw import open_raw

__all__ = ["image_columns", "image_names", "list_arrays", "model_arrays"]

SLACK = 2.0  # k-means moves centroids of empty lists; rounding moves all numbers
UNIT = 1.001  # largest norm of a component
# The counts by label may take COUNTS_BYTES and COUNTS_SHARE times the bytes of the lists.
COUNTS_BYTES, COUNTS_SHARE = 64 << 20, 256
TEXT_BYTES = 1 << 20  # of names that are decoded at once

Arrays = dict[str, np.ndarray]


def _refuse(folder: Path, name: str, what: str) -> StoreError:
    return StoreError(what, where=folder / name, remedy=REMEDY)


def _within(folder: Path, name: str, array: np.ndarray, low: float, high: float) -> None:
    """Refuse an array with a value outside [low, high], or NaN."""
    if not (array.min() >= low and array.max() <= high):
        raise _refuse(folder, name, f"has values outside [{low:.6g}, {high:.6g}]")


def _check_bounds(folder: Path, name: str, bounds: np.ndarray, end: int) -> None:
    """Refuse bounds that do not ascend strictly from 0 to `end`."""
    if bounds[0] != 0 or bounds[-1] != end or (bounds[1:] <= bounds[:-1]).any():
        raise _refuse(folder, name, f"does not ascend from 0 to {end}")


def image_columns(
    folder: Path, images: int, blocks: int, labels: list[int] | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return checksums, uint32 (blocks,), labels, int64 (N,) or None, and source ids, int64 (N,), of images.

    Refuse labels that do not ascend or are not in `labels`, and source ids that do not number the N images.
    """
    checksums = read_array(folder, "image_checksums", "uint32", (blocks,))
    found = None
    if labels is None and (folder / "labels").exists():
        raise _refuse(folder, "labels", "belongs to no store without labels")
    if labels is not None:
        found = read_array(folder, "labels", "int64", (images,))
        if (found[1:] < found[:-1]).any() or np.unique(found).tolist() != labels:
            raise _refuse(folder, "labels", "has other labels than the attributes of the store")
    ids = read_array(folder, "source_ids", "int64", (images,))
    _within(folder, "source_ids", ids, 0, images - 1)
    seen = np.zeros(images, bool)
    seen[ids] = True
    if not seen.all():
        raise _refuse(folder, "source_ids", "has an image twice")
    return checksums, found, ids


def image_names(folder: Path, images: int) -> FileNames | None:
    """Return the file names of a store's images; None for a store without names.

    Refuse bounds that do not ascend from 0 to the bytes of all names, and names that are too long or no
    UTF-8. Nothing is allocated before the bytes on disk are compared with the metadata.
    """
    if not any((folder / name).exists() for name in (IMAGE_NAMES, IMAGE_NAME_BOUNDS)):
        return None
    bounds = np.array(open_raw(folder, IMAGE_NAME_BOUNDS, "int64", (images + 1,)))
    head = read_head(folder, IMAGE_NAMES)
    head.require("uint8", (head.shape[0],))
    size = head.shape[0]
    if size > images * LONGEST_NAME:
        raise _refuse(folder, IMAGE_NAMES, f"has {size:,} bytes for {images:,} names: too many")
    if bounds[0] != 0 or bounds[-1] != size or (bounds[1:] < bounds[:-1]).any():
        raise _refuse(folder, IMAGE_NAME_BOUNDS, f"does not ascend from 0 to {size}")
    if (np.diff(bounds) > LONGEST_NAME).any():
        raise _refuse(folder, IMAGE_NAME_BOUNDS, f"has a name of more than {LONGEST_NAME:,} bytes")
    content = np.array(open_raw(folder, IMAGE_NAMES, "uint8", (size,)))
    within = bounds[bounds < size]
    if not _is_utf8(content) or ((content[within] & 0xC0) == 0x80).any():  # bytes inside a character
        raise _refuse(folder, IMAGE_NAMES, "has a name that is no UTF-8")
    return FileNames(content, bounds)


def _is_utf8(content: np.ndarray) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), TEXT_BYTES):
            decoder.decode(content[start : start + TEXT_BYTES].tobytes())
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def model_arrays(folder: Path, geometry: Geometry, channels: int, attributes: Mapping[str, Any]) -> Arrays:
    """Return the arrays of a scale's trained model, by name."""
    lists, dims, k = attributes["lists"], attributes["pca_dims"], geometry.k
    cells = read_head(folder, "cell_bounds").shape[0] - 1
    if not geometry.n_classes <= cells <= lists:
        raise _refuse(folder, "cell_bounds", f"has {cells} cells for {lists} lists")
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "pca_components": ("float32", (dims, k, k, channels)),
        "pca_mean": ("float32", (k, k, channels)),
        "centroids": ("float32", (lists, dims)),
        "list_bounds": ("int64", (geometry.n_classes + 1,)),
        "cells": ("float32", (cells, dims)),
        "cell_bounds": ("int64", (cells + 1,)),
        "code_ranges": ("float32", (2, dims)),
    }
    found = {name: read_array(folder, name, *kind) for name, kind in shapes.items()}
    _check_bounds(folder, "list_bounds", found["list_bounds"], lists)
    _check_bounds(folder, "cell_bounds", found["cell_bounds"], lists)
    if not np.isin(found["list_bounds"], found["cell_bounds"]).all():
        raise _refuse(folder, "cell_bounds", "has a cell of two position classes")
    _within(folder, "pca_components", found["pca_components"], -UNIT, UNIT)
    norms = np.square(found["pca_components"], dtype=np.float64).reshape(dims, -1).sum(1)
    _within(folder, "pca_components", norms, 0, UNIT**2)
    _within(folder, "pca_mean", found["pca_mean"], -UNIT, UNIT)
    radius = _radius(geometry, channels)
    for name in ("centroids", "cells"):
        _within(folder, name, found[name], -radius, radius)
    low, width = found["code_ranges"]
    _within(folder, "code_ranges", low, -radius, radius)
    _within(folder, "code_ranges", width, 0, 2 * radius)
    return found


def _radius(geometry: Geometry, channels: int) -> float:
    """Return a bound of projected patches: patches and their mean are in [-1, 1], components have norm 1."""
    return SLACK * 2 * math.sqrt(geometry.k**2 * channels)


def list_arrays(
    folder: Path, geometry: Geometry, images: IndexedImages, bounds: np.ndarray, dims: int
) -> Arrays:
    """Return sizes, moments and checksums of the lists of a scale, by name; `bounds` are the list bounds.

    The lists of a position class hold each patch of the class once, so their sizes have a known sum.
    """
    lists, labels = int(bounds[-1]), len(images.by_label)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "list_counts": ("int64", (labels, lists)),
        "list_means": ("float32", (lists, dims)),
        "list_variances": ("float32", (lists, dims)),
        "list_checksums": ("uint32", (lists,)),
    }
    patches = len(images) * geometry.patches_per_image
    if 8 * labels * lists > COUNTS_BYTES + COUNTS_SHARE * patches * (dims + ID_BYTES):
        # An array of zeros takes no bytes on disk: the FAISS file does.
        raise _refuse(folder, "list_counts", f"counts {labels} labels in {lists} lists: too many")
    found = {name: read_array(folder, name, *kind) for name, kind in shapes.items()}
    counts = found["list_counts"]
    _within(folder, "list_counts", counts, 0, patches)
    by_class = np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    wanted = images.by_label[:, None] * by_class
    if (np.add.reduceat(counts, bounds[:-1], axis=1) != wanted).any():
        raise _refuse(folder, "list_counts", f"does not count each of {patches} patches once")
    radius = _radius(geometry, images.channels)
    _within(folder, "list_means", found["list_means"], -2 * radius, 2 * radius)
    _within(folder, "list_variances", found["list_variances"], 0, (2 * radius) ** 2)
    return found
