"""Arrays that are one raw file: written as a stream, memory-mapped, and readable by zarr.

A zarr v3 array of one uncompressed chunk with a crc32c codec is the array's bytes and four bytes of checksum.
So a stream can write the file, FAISS and `numpy.memmap` can map it, and zarr reads and verifies it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from patchindex.errors import StoreError
from patchindex.store.arrays import METADATA, REMEDY, ArrayHead, open_file, read_head
from patchindex.store.atomic import atomic_write

__all__ = [
    "CHECKSUM_BYTES",
    "ChecksumWriter",
    "is_shorter",
    "open_raw",
    "raw_checksum",
    "raw_path",
    "write_raw",
]

CHECKSUM_BYTES = 4
PIECE = 1 << 20


def raw_path(group: Path, name: str, ndim: int) -> Path:
    """Return the file that holds the only chunk of an array of `ndim` dimensions."""
    return group.joinpath(name, "c", *["0"] * ndim)


class ChecksumWriter:
    """A file that is written in pieces, with the number and the crc32c of all bytes so far."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.bytes = file, 0
        self._checksum = google_crc32c.Checksum()

    def write(self, data: Any) -> None:
        """Append bytes, or the bytes of an array."""
        flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
        view = flat.reshape(-1).view(np.uint8).data
        for start in range(0, len(view), PIECE):  # the checksum needs a copy: keep it small
            piece = bytes(view[start : start + PIECE])
            self.file.write(piece)
            self._checksum.update(piece)
        self.bytes += len(view)

    def write_checksum(self) -> None:
        """Append the crc32c of all that was written, little endian."""
        self.file.write(self._checksum.digest()[::-1])


@contextmanager
def write_raw(group: Path, name: str, dtype: str, shape: tuple[int, ...] = ()) -> Iterator[ChecksumWriter]:
    """Write an array of unknown length into the folder of a zarr group, as a stream of bytes.

    `shape` is the shape of one entry, and the length of the array is the number of entries that were written.
    The array exists when the block ends without an exception. Raises ValueError when the bytes are not a
    whole number of entries, or there are none.
    """
    entry = np.dtype(dtype).newbyteorder("<")
    path = raw_path(group, name, 1 + len(shape))
    path.parent.mkdir(parents=True)
    with atomic_write(path) as file:
        out = ChecksumWriter(file)
        yield out
        out.write_checksum()
        length, rest = divmod(out.bytes, entry.itemsize * int(np.prod(shape, dtype=int)))
        if rest or not length:
            raise ValueError(f"{out.bytes} bytes are not a whole number of entries of {entry} {shape}")
    # The metadata comes last: zarr knows no array without metadata.
    zarr.open_group(group, mode="a").create_array(
        name,
        shape=(length, *shape),
        chunks=(length, *shape),
        dtype=entry,
        compressors=[Crc32cCodec()],
        filters=None,
    )


def raw_checksum(group: Path, name: str) -> str:
    """Return the crc32c of an array, in hexadecimal, from the last four bytes of its file."""
    with open_file(group, _raw_head(group, name)[1]) as file:
        file.seek(-CHECKSUM_BYTES, os.SEEK_END)
        return file.read()[::-1].hex()


def _raw_head(group: Path, name: str) -> tuple[ArrayHead, str]:
    """Return the metadata of a raw array, and the name of its file in the group."""
    if not (group / name / METADATA).exists():
        raise StoreError(f"the array {name!r} is missing", where=group, remedy="build the store again")
    head = read_head(group, name)
    if not head.raw or head.chunks != head.shape:
        raise StoreError("is not one raw file", where=head.path, remedy=REMEDY)
    return head, head.chunk((0,) * len(head.shape))


def is_shorter(array: np.memmap) -> bool:
    """Return whether the file of a memory map became shorter: to read on would end the process (SIGBUS)."""
    # The size of the mapped file, also when another file has its name.
    return bool(array._mmap.size() < array.nbytes)  # type: ignore[attr-defined]


def open_raw(
    group: Path, name: str, dtype: str | None = None, shape: tuple[int, ...] | None = None
) -> np.memmap:
    """Map a raw array into memory, without reading it; refuse another dtype or shape than those given.

    The map is copy-on-write, so that torch takes it without a copy. Nothing writes to it.
    """
    head, file_name = _raw_head(group, name)
    head.require(dtype or head.dtype.name, shape or head.shape)
    expected = head.bytes_of(head.shape) + CHECKSUM_BYTES
    where = group / file_name
    if not where.exists():
        raise StoreError(f"holds 0 bytes, not {expected}", where=where, remedy="build the store again")
    with open_file(group, file_name) as file:
        found = os.fstat(file.fileno()).st_size
        if found != expected:
            what = f"holds {found} bytes, not {expected}"
            raise StoreError(what, where=where, remedy="build the store again")
        return np.memmap(file, dtype=head.dtype, mode="c", shape=head.shape)
