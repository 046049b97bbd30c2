"""Files of NumPy: .npz with the keys `images` and, optionally, `labels`; and .npy, memory-mapped."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.format import Format, Options
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import unreadable

__all__ = ["NPY", "NPZ", "read_array", "read_arrays"]


def open_npz(path: Path, options: Options) -> ImageSource:
    """Load the images of an .npz, and its labels if `options.labels` asks for stored labels."""
    arrays = read_arrays(
        path, required="images", optional=["labels"] if options.labels.kind == "stored" else []
    )
    return ArraySource(arrays["images"], name=str(path), labels=arrays.get("labels"))


def open_npy(path: Path, options: Options) -> ImageSource:
    """Map the images of an .npy into memory."""
    return ArraySource(read_array(path), name=str(path))


NPZ = Format(".npz with the keys images and labels", lambda path: _is_file_called(path, ".npz"), open_npz)
NPY = Format(".npy", lambda path: _is_file_called(path, ".npy"), open_npy)


def _is_file_called(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and path.is_file()


def read_array(path: Path) -> np.ndarray:
    """Return the array of an .npy as a read-only memory map; pickled objects are never loaded."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        kind = "holds Python objects, which are never loaded" if "Python objects" in str(error) else None
        raise unreadable(
            error,
            kind or "not a readable .npy (empty, truncated or another kind of file)",
            where=path,
            remedy="save the array again with np.save, as uint8",
        ) from error


def read_arrays(path: Path, *, required: str, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return arrays of an .npz by key; pickled objects are never loaded."""
    try:
        # numpy leaves its own file handle open if the zip directory is damaged.
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("no zip directory")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                keys = archive.files
                if required in keys:
                    return {key: archive[key] for key in (required, *optional) if key in keys}
    # zipfile raises RuntimeError and NotImplementedError for encryption and unknown compression.
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                "holds Python objects, which are never loaded",
                where=path,
                remedy="save the images as one uint8 array",
            ) from error
        raise unreadable(
            error,
            "not a readable .npz (truncated or another kind of file)",
            where=path,
            remedy="copy it again, or make it with np.savez",
        ) from error
    raise InputError(
        f"has no key {required}, it has {', '.join(keys) or 'none'}",
        where=path,
        remedy=f"save it again with np.savez(file, {required}=...)",
    )
