"""Labels from a file: .npy, .npz, IDX, or text with one integer a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchindex.errors import InputError, SourceNotFoundError
from patchindex.images import idx, npy, npz
from patchindex.images.labels import as_labels
from patchindex.images.unreadable import unreadable

__all__ = ["read_label_file"]


def read_label_file(path: Path, count: int) -> np.ndarray:
    """Read the labels of `count` images.

    Parameters
    ----------
    path : Path
        .npy; .npz with the key `labels`; .txt or .csv with one integer a line; or IDX, plain or .gz.
    count : int
        The number of images.

    Returns
    -------
    numpy.ndarray
        int64, shape (count,).

    Raises
    ------
    SourceNotFoundError
        No such file.
    InputError
        Another kind of file, or labels that do not fit.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels.txt"
    ...     _ = path.write_text("3 1".replace(" ", chr(10)))
    ...     read_label_file(path, 2)
    array([3, 1])
    """
    if not path.is_file():
        raise SourceNotFoundError(
            "no such file of labels",
            where=path,
            remedy='check the path, or give labels as an array or "folders"',
        )
    if idx.matches(path):
        return as_labels(idx.read_array(path, dimensions=1), count, where=path)
    match path.suffix.lower():
        case ".npy":
            return as_labels(npy.read_array(path), count, where=path)
        case ".npz":
            return as_labels(npz.read_arrays(path, required="labels")["labels"], count, where=path)
        case ".txt" | ".csv":
            return as_labels(_read_text(path), count, where=path)
    raise InputError(
        "not a kind of file that labels are read from",
        where=path,
        remedy="give .npy, .npz (key labels), .txt or .csv (one integer a line) or *-labels-idx1-ubyte",
    )


def _read_text(path: Path) -> list[int]:
    try:
        # Spreadsheets start UTF-8 files with a byte-order mark.
        lines = path.read_text("utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(
            error, "not a readable text file", where=path, remedy="give one integer a line, in UTF-8"
        ) from error
    labels = []
    for number, line in enumerate(lines, start=1):
        try:
            labels.append(int(line))
        except ValueError as error:
            raise InputError(
                f"line {number} is {line[:40]!r}, not an integer",
                where=path,
                remedy="give one integer a line and nothing else",
            ) from error
    return labels
