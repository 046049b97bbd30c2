"""Arrays that are one raw file: written as a stream, read through a memory map, verified by zarr.

A zarr v3 array of one uncompressed chunk with a crc32c codec is its bytes followed by four of checksum. So
the file can be written by anything that streams, opened by anything that reads such bytes (FAISS,
`numpy.memmap`), and still be read and verified as an ordinary zarr array.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from patchindex.errors import StoreError

__all__ = ["RawWriter", "open_raw", "raw_checksum", "raw_path"]

CHECKSUM_BYTES = 4
PIECE = 1 << 20


def raw_path(group: Path, name: str, ndim: int) -> Path:
    """Return the file that holds the only chunk of an array of `ndim` dimensions."""
    return group.joinpath(name, "c", *["0"] * ndim)


class RawWriter:
    """Write an array of unknown length as a stream of bytes.

    Parameters
    ----------
    group : Path
        Folder of the zarr group that the array belongs to.
    name : str
        Name of the array.
    dtype : str
        Data type of the array, little endian.
    shape : tuple of int
        Shape of an entry: the array gets one dimension more, as long as what was written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> group = pathlib.Path(tempfile.mkdtemp())
    >>> _ = zarr.open_group(group, mode="w")
    >>> with RawWriter(group, "ids", "int64", (2,)) as out:
    ...     _ = out.write(np.arange(6))
    >>> open_raw(group, "ids").tolist() == zarr.open_group(group)["ids"][:].tolist()
    True
    """

    def __init__(self, group: Path, name: str, dtype: str, shape: tuple[int, ...] = ()) -> None:
        self._group, self._name = group, name
        self._dtype, self._shape = np.dtype(dtype).newbyteorder("<"), shape
        self._checksum = google_crc32c.Checksum()
        self._bytes = 0
        self.folder = group
        path = raw_path(group, name, 1 + len(shape))
        path.parent.mkdir(parents=True)
        self._file = path.open("wb")

    def write(self, data: bytes | np.ndarray) -> int:
        """Append bytes, or an array of the right data type; return how many bytes it was."""
        flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
        view = flat.reshape(-1).view(np.uint8).data
        for start in range(0, len(view), PIECE):  # the checksum wants a copy: keep it small
            piece = bytes(view[start : start + PIECE])
            self._file.write(piece)
            self._checksum.update(piece)
        self._bytes += len(view)
        return len(view)

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is not None:
                return
            self._file.write(self._checksum.digest()[::-1])
        length, rest = divmod(self._bytes, self._dtype.itemsize * int(np.prod(self._shape, dtype=int)))
        if rest or not length:
            raise ValueError(
                f"{self._bytes} bytes are no whole number of entries of {self._dtype} {self._shape}"
            )
        shape = (length, *self._shape)
        # The metadata comes last: an array without it does not exist.
        zarr.open_group(self._group, mode="a").create_array(
            self._name,
            shape=shape,
            chunks=shape,
            dtype=self._dtype,
            compressors=[Crc32cCodec()],
            filters=None,
        )

    @property
    def checksum(self) -> str:
        """The crc32c of what was written so far, in hexadecimal."""
        return str(self._checksum.hexdigest().decode())


def raw_checksum(group: Path, name: str) -> str:
    """Return the crc32c at the end of an array's file, in hexadecimal: its contents in four bytes."""
    file = next((group / name / "c").rglob("0"))
    while file.is_dir():
        file /= "0"
    with file.open("rb") as handle:
        handle.seek(-CHECKSUM_BYTES, os.SEEK_END)
        return handle.read()[::-1].hex()


def open_raw(group: Path, name: str) -> np.memmap:
    """Map an array written by `RawWriter`: no memory is taken until it is read.

    The map is copy-on-write, so that it makes a tensor without a copy; nothing ever writes to it.

    Raises
    ------
    StoreError
        When the array is not there or its file has not the length that its metadata say.
    """
    array = zarr.open_group(group, mode="r").get(name)
    if not isinstance(array, zarr.Array):
        raise StoreError(f"the array {name!r} is missing", where=group, remedy="build the store again")
    path = raw_path(group, name, array.ndim)
    expected = int(np.prod(array.shape, dtype=int)) * array.dtype.itemsize + CHECKSUM_BYTES
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise StoreError(f"holds {found} bytes, not {expected}", where=path, remedy="build the store again")
    return np.memmap(path, dtype=array.dtype, mode="c", shape=array.shape)
