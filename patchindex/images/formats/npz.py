"""Files of NumPy: .npz with the keys `images` and, optionally, `labels`; and .npy, memory-mapped."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.format import Format, Options
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import unreadable
from patchindex.images.untrusted import check_announced, open_file
from patchindex.images.zipped import ZIP_DAMAGE, check_member

__all__ = ["NPY", "NPZ", "read_array", "read_arrays"]

READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
BLOCK = 1 << 18  # bytes of a member that are unpacked at once


def open_npz(path: Path, options: Options) -> ImageSource:
    """Load the images of an .npz, and its labels if `options.labels` asks for stored labels."""
    arrays = read_arrays(
        path, required="images", optional=["labels"] if options.labels.kind == "stored" else []
    )
    images, labels = arrays["images"], arrays.get("labels")
    # As many labels as entries of the first axis show that it is the axis of images.
    is_one_image = labels is None or labels.shape[:1] != images.shape[:1]
    return ArraySource(images, name=str(path), labels=labels, axes=options.axes, saved=is_one_image)


def open_npy(path: Path, options: Options) -> ImageSource:
    """Map the images of an .npy into memory."""
    return ArraySource(read_array(path), name=str(path), axes=options.axes, saved=True)


NPZ = Format(
    ".npz with the keys images and labels",
    lambda path: _is_file_called(path, ".npz"),
    open_npz,
    features=("arrays",),
)
NPY = Format(".npy", lambda path: _is_file_called(path, ".npy"), open_npy, features=("arrays",))


def _is_file_called(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and path.is_file()


class _Header(NamedTuple):
    """The header of an .npy, compared with the bytes behind it."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(file: IO[bytes], size: int, where: object) -> _Header:
    """Return the header of an array of `size` bytes, header included; nothing is allocated for the data."""
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = READERS[version](file)
        header = _Header(shape, "F" if fortran else "C", dtype, file.tell())
    except OSError as error:
        raise unreadable(error, *_DAMAGED, where=where, remedy=_SAVE_AGAIN) from error
    except Exception as error:  # NumPy raises errors of any type for a header that is not its own
        raise InputError(*_DAMAGED, where=where, remedy=_SAVE_AGAIN) from error
    if dtype.hasobject:
        raise InputError(
            "holds Python objects, which are never loaded",
            where=where,
            remedy="save the images as one uint8 array",
        )
    if min(shape, default=1) < 0 or max(shape, default=1) > MOST_ITEMS or not dtype.itemsize:
        raise InputError(
            f"announces an array of shape {shape} and dtype {dtype}", where=where, remedy=_SAVE_AGAIN
        )
    check_announced(header.offset + header.nbytes, size, where)
    if header.offset + header.nbytes < size:
        raise InputError(
            f"holds {size - header.offset - header.nbytes} bytes behind its array",
            where=where,
            remedy="save each array in a file of its own",
        )
    return header


_DAMAGED = ("not a readable .npy (empty, truncated or another kind of file)",)
_SAVE_AGAIN = "save the array again with np.save"
MOST_ITEMS = 2**48  # along an axis; NumPy itself counts to 2**63


def read_array(path: Path) -> np.ndarray:
    """Return the array of an .npy as a read-only memory map; pickled objects are never loaded."""
    try:
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            header = _read_header(file, size, path)
            if not header.nbytes:  # an empty file cannot be mapped
                return np.empty([min(n, 1) for n in header.shape], header.dtype)
            # The map names the file for messages and for other processes.
            return np.memmap(path, header.dtype, "r", header.offset, header.shape, header.order)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise unreadable(error, *_DAMAGED, where=path, remedy=_SAVE_AGAIN) from error


def read_arrays(
    path: Path, *, required: str, optional: Sequence[str] = (), packed: bool = True
) -> dict[str, np.ndarray]:
    """Return arrays of an .npz by key; pickled objects are never loaded.

    Without `packed`, deflated members are refused, so that the arrays are no larger than the file.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if required in members:
                wanted = [key for key in (required, *optional) if key in members]
                for key in wanted:
                    if not packed and members[key].compress_type != zipfile.ZIP_STORED:
                        raise InputError("is packed", where=f"{path}::{key}", remedy="save it with np.savez")
                return {key: _read_member(archive, members[key], f"{path}::{key}") for key in wanted}
    except InputError:
        raise
    except ZIP_DAMAGE as error:
        raise unreadable(
            error,
            "not a readable .npz (truncated or another kind of file)",
            where=path,
            remedy="copy it again, or make it with np.savez",
        ) from error
    raise InputError(
        f"has no key {required}, it has {', '.join(members) or 'none'}",
        where=path,
        remedy=f"save it again with np.savez(file, {required}=...)",
    )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    check_member(info, where)
    with archive.open(info) as file:
        header = _read_header(file, info.file_size, where)
        data = np.empty(header.nbytes, np.uint8)
        for start in range(0, header.nbytes, BLOCK):
            block = file.read(min(BLOCK, header.nbytes - start))
            data[start : start + len(block)] = np.frombuffer(block, np.uint8)
        # zipfile compares the checksum when it is at the end.
        if file.read(1) or file.tell() != header.offset + header.nbytes:
            raise zipfile.BadZipFile("a member of another size than announced")
    return data.view(header.dtype).reshape(header.shape, order=header.order)
