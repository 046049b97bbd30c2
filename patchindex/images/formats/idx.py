"""IDX, the format of MNIST and its relatives: unsigned bytes behind a short header, plain or gzipped.

Header, big-endian: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each dimension
as a 4-byte integer.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.format import Format, Options
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import unreadable
from patchindex.images.untrusted import DEFLATE_RATIO, check_announced, open_file

__all__ = ["FORMAT", "matches", "read_array"]

GZIP_MAGIC = b"\x1f\x8b"
BLOCK = 1 << 18  # bytes that are unpacked at once


def matches(path: Path) -> bool:
    """Return whether a file is called `...idx3-ubyte` or `...idx1-ubyte`, with or without `.gz`."""
    return re.search(r"idx\d-ubyte(\.gz)?$", path.name) is not None and path.is_file()


def open_idx(path: Path, options: Options) -> ImageSource:
    """Open an IDX file of images: a plain file is memory-mapped, a gzipped one is loaded.

    Stored labels of `train-images-idx3-ubyte` are in `train-labels-idx1-ubyte`; either file may be `.gz`.
    """
    images = read_array(path, dimensions=3)
    labels_path = _labels_beside(path) if options.labels.kind == "stored" else None
    labels = None if labels_path is None else read_array(labels_path, dimensions=1)
    return ArraySource(images, name=str(path), labels=labels, axes="NHW")


FORMAT = Format("IDX (*-images-idx3-ubyte, also .gz)", matches, open_idx)


def read_array(path: Path, *, dimensions: int) -> np.ndarray:
    """Return the read-only uint8 array of an IDX file; images have 3 dimensions, labels 1."""
    try:
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            if file.read(2) == GZIP_MAGIC:
                file.seek(0)
                with gzip.GzipFile(fileobj=file) as unzipped:
                    return _unpack(unzipped, size, path, dimensions)
            file.seek(0)
            header = file.read(4 + 4 * dimensions)
        shape = _read_shape(header, path, dimensions)
        _check_length(size - len(header), shape, path)
        if math.prod(shape) == 0:  # an empty file cannot be mapped
            return np.empty([min(n, 1) for n in shape], np.uint8)
        return np.memmap(path, np.uint8, mode="r", offset=len(header), shape=shape)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise unreadable(
            error, "cannot be read (truncated or damaged)", where=path, remedy="download or copy it again"
        ) from error


def _unpack(file: gzip.GzipFile, packed: int, path: Path, dimensions: int) -> np.ndarray:
    """Return the array of an unzipped file, whose packed size bounds what is allocated."""
    shape = _read_shape(file.read(4 + 4 * dimensions), path, dimensions)
    nbytes = math.prod(shape)
    check_announced(nbytes, packed, path, ratio=DEFLATE_RATIO)
    if not nbytes:
        shape, nbytes = tuple(min(n, 1) for n in shape), 0
    data, found = np.empty(nbytes, np.uint8), 0
    while block := file.read(min(BLOCK, nbytes - found)):
        data[found : found + len(block)] = np.frombuffer(block, np.uint8)
        found += len(block)
    _check_length(found + len(file.read(1)), shape, path)  # the extra byte shows that there is more
    data.flags.writeable = False
    return data.reshape(shape)


def _read_shape(header: bytes, path: Path, dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, 8, dimensions])
    if header[:4] != magic or len(header) < 4 + 4 * dimensions:
        what = "images" if dimensions == 3 else "labels"
        raise InputError(
            f"not an IDX file of {what} (it starts with {header[:4].hex() or 'nothing'}, not {magic.hex()})",
            where=path,
            remedy=f"give the file called *-{what}-idx{dimensions}-ubyte, plain or .gz",
        )
    return struct.unpack(f">{dimensions}I", header[4:])


def _check_length(found: int, shape: tuple[int, ...], path: Path) -> None:
    expected = math.prod(shape)
    if found != expected:
        problem = "truncated" if found < expected else "longer than its header says"
        raise InputError(
            f"{problem} (the header announces {expected} bytes of shape {shape})",
            where=path,
            remedy="download or copy it again",
        )


def _labels_beside(path: Path) -> Path | None:
    images = path.name.removesuffix(".gz")
    labels = images.replace("images", "labels").replace("idx3", "idx1")
    beside = [path.with_name(name) for name in (labels, f"{labels}.gz")]
    return None if labels == images else next((file for file in beside if file.is_file()), None)
