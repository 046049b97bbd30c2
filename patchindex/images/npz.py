"""NumPy .npz: keys `images` and, optionally, `labels`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchindex.errors import InputError
from patchindex.images.arrays import ArraySource
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import transformed
from patchindex.images.unreadable import unreadable

__all__ = ["DESCRIPTION", "matches", "open", "read_arrays"]

DESCRIPTION = ".npz with the keys images and labels"


def matches(path: Path) -> bool:
    """Whether the path is a file called .npz."""
    return path.suffix.lower() == ".npz" and path.is_file()


def open(path: Path, options: Options) -> ImageSource:
    """Open an .npz; its arrays are compressed as a whole, so they are loaded here.

    Raises
    ------
    InputError
        Not a readable .npz, other keys, or arrays that are not images and their labels.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "set.npz"
    ...     np.savez(path, images=np.zeros((5, 8, 8), np.uint8))
    ...     open(path, Options()).shape
    (5, 8, 8, 1)
    """
    arrays = read_arrays(path, required="images", optional=["labels"] if options.labels == "stored" else [])
    return transformed(
        ArraySource(arrays["images"], name=str(path), labels=arrays.get("labels")), options.transform
    )


def read_arrays(path: Path, *, required: str, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of an .npz by key; objects (pickles) are never loaded.

    Raises
    ------
    InputError
        Not a readable .npz, or no key `required` in it.
    """
    try:
        # Opened here because numpy leaves its own handle open when the zip directory is damaged.
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("no zip directory")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                keys = archive.files
                if required in keys:
                    return {key: archive[key] for key in (required, *optional) if key in keys}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise InputError(
                "holds Python objects, which are never loaded",
                where=path,
                remedy="save the images as one uint8 array",
            ) from error
        raise _unreadable(error, path) from error
    # zipfile answers compression it does not know, and encryption, with the last two.
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise _unreadable(error, path) from error
    raise InputError(
        f"has no key {required}, it has {', '.join(keys) or 'none'}",
        where=path,
        remedy=f"save it again with np.savez(file, {required}=...)",
    )


def _unreadable(error: Exception, path: Path) -> InputError:
    return unreadable(
        error,
        "not a readable .npz (truncated or another kind of file)",
        where=path,
        remedy="copy it again, or make it with np.savez",
    )
