"""Checks of the data of an HDF5 dataset before they are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py

from patchindex.errors import InputError
from patchindex.images.untrusted import (
    check_chunk,
    check_deflated,
    check_stored,
    may_fill_memory,
)

__all__ = ["DeflatedChunks", "check_data"]

DEFLATE = 1  # the number of a filter
# Filters and their names; those from 32000 on are plug-ins. Each may be used once.
FILTERS = {
    **{1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset"},
    **{32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"},
}


def check_data(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse data outside the file, more data than the file can hold, unknown filters and huge chunks."""
    where = f"{path}::{str(dataset.name).strip('/')}"
    if dataset.external or dataset.is_virtual:
        kind = "is a virtual data set" if dataset.is_virtual else "has its data in another file"
        raise InputError(
            f"{kind}, which is not read", where=where, remedy="copy the data into one file, with h5repack"
        )
    if dataset.dtype.kind == "O":
        raise InputError(f"has dtype {dataset.dtype}", where=where, remedy="store numbers")
    itemsize = dataset.dtype.itemsize
    check_stored(math.prod(dataset.shape or ()) * itemsize, dataset.id.get_storage_size(), where)
    if dataset.chunks is not None:
        check_chunk(math.prod(dataset.chunks) * itemsize, where)
    filters = _filters(dataset)
    bad = next((f for f in filters if f not in FILTERS or filters.count(f) > 1), None)
    if bad is not None:
        raise InputError(
            f"is packed by the filter {FILTERS.get(bad, bad)}{' twice' * (filters.count(bad) > 1)}",
            where=where,
            remedy="store it again with gzip, or without compression",
        )


def _filters(dataset: h5py.Dataset) -> list[int]:
    settings = dataset.id.get_create_plist()
    return [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]


class DeflatedChunks:
    """The deflated chunks that might unpack to more than the memory holds; each is measured before use."""

    def __init__(self, dataset: h5py.Dataset, where: str) -> None:
        self._where = where
        self._rows = dataset.chunks[0] if dataset.chunks else 1
        self._unknown: dict[tuple[int, ...], None] = {}
        if dataset.chunks and DEFLATE in _filters(dataset):

            def visit(chunk: Any) -> None:
                if may_fill_memory(chunk.size):
                    self._unknown[chunk.chunk_offset] = None

            dataset.id.chunk_iter(visit)

    def check(self, dataset: h5py.Dataset, index: slice) -> None:
        """Measure the chunks of images [start, stop) that were not measured before."""
        for offset in list(self._unknown):
            if offset[0] < index.stop and offset[0] + self._rows > index.start:
                _, data = dataset.id.read_direct_chunk(offset)
                check_deflated(data, self._where)
                self._unknown.pop(offset, None)
