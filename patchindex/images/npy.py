"""NumPy .npy: one array, memory-mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchindex.images.arrays import ArraySource
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import transformed
from patchindex.images.unreadable import unreadable

__all__ = ["DESCRIPTION", "matches", "open", "read_array"]

DESCRIPTION = ".npy"


def matches(path: Path) -> bool:
    """Whether the path is a file called .npy."""
    return path.suffix.lower() == ".npy" and path.is_file()


def open(path: Path, options: Options) -> ImageSource:
    """Open an .npy without reading its images.

    Raises
    ------
    InputError
        Not a readable .npy, or an array that is not images.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "set.npy"
    ...     np.save(path, np.zeros((5, 8, 8), np.uint8))
    ...     open(path, Options()).shape
    (5, 8, 8, 1)
    """
    return transformed(ArraySource(read_array(path), name=str(path)), options.transform)


def read_array(path: Path) -> np.ndarray:
    """Map the array of an .npy into memory, read only; objects (pickles) are never loaded.

    Raises
    ------
    InputError
        Not a readable .npy of plain numbers.
    """
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
