"""The arrays and groups of a store, read only as this package writes them.

The metadata of a zarr array choose the codecs that decode it, and some codecs run code. So the metadata are
read here, before any data: zarr format 3, a dtype of `DTYPES`, a regular grid of chunks inside the array, and
one of two codecs. An array is *raw*, the bytes and their crc32c (`patchindex.store.raw`), or compressed by
zstd. A chunk is decompressed only if its frame says that it has the bytes of a chunk.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numcodecs.zstd import Zstd

from patchindex.errors import StoreError
from patchindex.regular_files import IrregularFileError, open_regular, refuse_links

__all__ = [
    "METADATA",
    "REMEDY",
    "ArrayHead",
    "open_file",
    "parse_json",
    "read_array",
    "read_file",
    "read_group",
    "read_head",
]

METADATA = "zarr.json"
JSON_BYTES = 32 << 20  # of the largest JSON file: the metadata list skipped files
REMEDY = "build the store again, or copy it again from an intact one"
DTYPES = ("uint8", "uint32", "int64", "float32")
SEPARATOR = {"name": "default", "configuration": {"separator": "/"}}
FRAME = b"\x28\xb5\x2f\xfd"  # the first bytes of zstd


@dataclass(frozen=True)
class ArrayHead:
    """The metadata of an array."""

    group: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    raw: bool

    @property
    def path(self) -> Path:
        """The folder of the array."""
        return self.group / self.name

    def chunk(self, place: tuple[int, ...]) -> str:
        """Return the name of a chunk's file in the group."""
        return "/".join([self.name, "c", *map(str, place)])

    def require(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Raise StoreError unless the array has this dtype and shape."""
        if self.dtype != np.dtype(dtype) or self.shape != shape:
            what = f"is an array of {self.dtype} {list(self.shape)}, not of {dtype} {list(shape)}"
            raise StoreError(what, where=self.path, remedy=REMEDY)

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of entries of a shape."""
        return math.prod(shape) * self.dtype.itemsize


def open_file(folder: Path, name: str) -> BinaryIO:
    """Open a file of a store; raise StoreError when it is missing, irregular, or in a linked folder."""
    try:
        refuse_links(folder, name)
        return open_regular(folder / name)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no file can have such a name
        raise StoreError("is missing", where=folder / name, remedy=REMEDY) from None
    except OSError as error:
        what = error.what if isinstance(error, IrregularFileError) else f"cannot be opened ({error.strerror})"
        raise StoreError(what, where=folder / name, remedy=REMEDY) from error


def read_file(folder: Path, name: str, most: int = JSON_BYTES) -> bytes:
    """Return the bytes of a file of a store; raise StoreError as `open_file`, also beyond `most` bytes."""
    with open_file(folder, name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise StoreError(f"holds more than {most:,} bytes", where=folder / name, remedy=REMEDY)
    return content


def parse_json(content: bytes) -> Any:
    """Return JSON data; raise ValueError for anything else, also for NaN, infinities and deep nesting."""
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_group(folder: Path) -> dict[str, Any] | None:
    """Return the attributes of a zarr group; None for an array. StoreError when there is neither."""
    metadata = _metadata(folder, "")
    if metadata.get("node_type") == "array":
        return None
    attributes = metadata.get("attributes", {})
    if metadata.get("node_type") != "group" or not isinstance(attributes, dict):
        raise StoreError("is not the metadata of a group", where=folder / METADATA, remedy=REMEDY)
    return attributes


def _metadata(group: Path, name: str) -> dict[str, Any]:
    file = f"{name}/{METADATA}" if name else METADATA
    try:
        found = parse_json(read_file(group, file))
    except ValueError as error:
        what = f"cannot be read ({error})"
        raise StoreError(what, where=group / file, remedy=REMEDY) from None
    if not isinstance(found, dict) or found.get("zarr_format") != 3:
        raise StoreError("is not zarr format 3", where=group / file, remedy=REMEDY)
    return found


def read_head(group: Path, name: str) -> ArrayHead:
    """Return the metadata of an array; raise StoreError for an array that this package does not write."""
    found = _metadata(group, name)
    shape, dtype = _shape(found.get("shape")), found.get("data_type")
    chunks = _chunk_shape(found.get("chunk_grid"), shape)
    codec = _codec(found.get("codecs"), dtype != "uint8")
    wrong = {
        "node_type": found.get("node_type") != "array",
        "data_type": dtype not in DTYPES,
        "shape": not shape,
        "chunk_grid": not chunks,
        "chunk_key_encoding": found.get("chunk_key_encoding") != SEPARATOR,
        "codecs": codec is None,
        "fill_value": found.get("fill_value") != 0,
        "storage_transformers": bool(found.get("storage_transformers")),
    }
    for field, is_wrong in wrong.items():
        if is_wrong:
            what = f"has a {field} that no store has"
            raise StoreError(what, where=group / name / METADATA, remedy=REMEDY)
    return ArrayHead(group, name, np.dtype(dtype), shape, chunks, codec == "crc32c")


def _shape(found: Any) -> tuple[int, ...]:
    """Return a shape without an empty axis; an empty tuple for anything else."""
    is_shape = isinstance(found, list) and len(found) <= 4 and all(type(n) is int and n > 0 for n in found)
    return tuple(found) if is_shape else ()


def _chunk_shape(grid: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the chunks of a regular grid that are no larger than the array, or ()."""
    match grid:
        case {"name": "regular", "configuration": {"chunk_shape": found}}:
            chunks = _shape(found)
            if len(chunks) == len(shape) and all(c <= n for c, n in zip(chunks, shape, strict=True)):
                return chunks
    return ()


def _codec(found: Any, has_order: bool) -> str | None:
    """Return the codec after `bytes`: `"zstd"`, `"crc32c"`, or None for any other chain of codecs."""
    match found:
        case [{"name": "bytes", **first}, {"name": "zstd" | "crc32c" as second}] if first in (
            {"configuration": {"endian": "little"}},
            *([] if has_order else [{}, {"configuration": {}}, {"configuration": None}]),
        ):
            return str(second)
    return None


def read_array(group: Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a compressed array, which must have this dtype and shape; else raise StoreError.

    Nothing is allocated and nothing is decoded before the metadata are compared.
    """
    head = read_head(group, name)
    head.require(dtype, shape)
    if head.raw:
        raise StoreError("is a raw array", where=head.path, remedy=REMEDY)
    out = np.empty(shape, head.dtype)
    for place in np.ndindex(*(-(-n // c) for n, c in zip(shape, head.chunks, strict=True))):
        rows = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, head.chunks, strict=True))
        part = out[rows]
        # The last chunk of an axis is filled up beyond the array.
        part[...] = _chunk(head, place)[tuple(map(slice, part.shape))]
    return out


def _chunk(head: ArrayHead, place: tuple[int, ...]) -> np.ndarray:
    """Return a decompressed chunk; zarr writes no file for a chunk of zeros."""
    size = head.bytes_of(head.chunks)
    if not os.path.lexists(head.group / head.chunk(place)):
        return np.zeros(head.chunks, head.dtype)
    packed = read_file(head.group, head.chunk(place), size + size // 128 + 1024)  # zstd adds less than 1/255
    if _frame_bytes(packed) == size:
        try:
            return np.frombuffer(Zstd().decode(packed), head.dtype).reshape(head.chunks)
        except (RuntimeError, ValueError):
            pass
    raise StoreError("cannot be decompressed", where=head.group / head.chunk(place), remedy=REMEDY)


def _frame_bytes(packed: bytes) -> int | None:
    """Return the size of the content that a zstd frame states (RFC 8878, 3.1.1.1); None for no such frame."""
    if packed[:4] != FRAME or len(packed) < 6:
        return None
    descriptor = packed[4]
    flag, single, dictionary = descriptor >> 6, descriptor >> 5 & 1, descriptor & 3
    if not flag and not single:
        return None
    at = 5 + (not single) + (0, 1, 2, 4)[dictionary]
    length = (1, 2, 4, 8)[flag]
    return int.from_bytes(packed[at : at + length], "little") + (256 if length == 2 else 0)
