"""Labels from a file: .npy, .npz, IDX, or text with one integer per line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchindex.errors import InputError, SourceNotFoundError
from patchindex.images import idx, npz
from patchindex.images.labels import as_labels
from patchindex.images.unreadable import unreadable

__all__ = ["read_label_file"]


def read_label_file(path: Path, count: int) -> np.ndarray:
    """Return the labels of `count` images from a file: int64, shape (count,)."""
    if not path.is_file():
        raise SourceNotFoundError(
            "no such file of labels",
            where=path,
            remedy='check the path, or give labels as an array or "folders"',
        )
    suffix = path.suffix.lower()
    labels: np.ndarray | list[int]
    if idx.matches(path):
        labels = idx.read_array(path, dimensions=1)
    elif suffix == ".npy":
        labels = npz.read_array(path)
    elif suffix == ".npz":
        labels = npz.read_arrays(path, required="labels")["labels"]
    elif suffix in (".txt", ".csv"):
        labels = _read_text(path)
    else:
        raise InputError(
            "not a known format of labels",
            where=path,
            remedy="give .npy, .npz (key labels), .txt or .csv (one integer per line) or *-labels-idx1-ubyte",
        )
    return as_labels(labels, count, where=path)


def _read_text(path: Path) -> list[int]:
    try:
        # Spreadsheets start UTF-8 files with a byte-order mark.
        lines = path.read_text("utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(
            error, "not a readable text file", where=path, remedy="give one integer per line, in UTF-8"
        ) from error
    labels = []
    for number, line in enumerate(lines, start=1):
        try:
            labels.append(int(line))
        except ValueError as error:
            raise InputError(
                f"line {number} is {line[:40]!r}, not an integer",
                where=path,
                remedy="give one integer per line and nothing else",
            ) from error
    return labels
