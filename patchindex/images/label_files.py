"""Labels from a file: .npy, .npz, IDX, or text with one integer per line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchindex.errors import InputError, Option, PatchIndexWarning, SourceNotFoundError, warn
from patchindex.images.formats import idx, npz
from patchindex.images.labels import as_labels
from patchindex.images.source import ImageSource
from patchindex.images.untrusted import check_regular, read_text

__all__ = ["check_order", "read_label_file"]

INTEGER = re.compile("[+-]?[0-9]{1,18}")  # int64 holds any number of 18 digits
LINE, LEAST_TEXT = 64, 1 << 20  # bytes of a text file: per label, and for files of few labels


def read_label_file(path: Path, count: int) -> np.ndarray:
    """Return the labels of `count` images from a file: int64, shape (count,)."""
    if not os.path.lexists(path):
        raise SourceNotFoundError(
            "no such file of labels",
            where=path,
            remedy=["check the path, or use ", Option("labels", "folders")],
        )
    check_regular(path)
    suffix = path.suffix.lower()
    labels: np.ndarray
    if idx.matches(path):
        labels = idx.read_array(path, dimensions=1)
    elif suffix == ".npy":
        labels = npz.read_array(path)
    elif suffix == ".npz":
        labels = npz.read_arrays(path, required="labels")["labels"]
    elif suffix in (".txt", ".csv"):
        labels = _read_text(path, count)
    else:
        raise InputError(
            "not a known format of labels",
            where=path,
            remedy="give .npy, .npz (key labels), .txt or .csv (one integer per line) or *-labels-idx1-ubyte",
        )
    return as_labels(labels, count, where=path)


def check_order(parts: Sequence[ImageSource], paths: Sequence[object]) -> None:
    """Warn if labels are given apart from images whose names sort as text: 10.png comes before 2.png."""
    for names in ([str(path) for path in paths], *(getattr(part, "names", ()) for part in parts)):
        by_number = sorted(names, key=_number_parts)
        if list(names) == sorted(names) != by_number:
            i = next(i for i, name in enumerate(names) if name != by_number[i])
            warn(
                PatchIndexWarning(
                    f"file names sort as text: {names[i]} comes before {by_number[i]}",
                    parameter="labels",
                    remedy="check that the labels are in this order, or write numbers as 001, 002, ...",
                )
            )
            return


def _number_parts(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts the numbers in a name by value."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(True, int(part), "") if part[0].isdigit() else (False, 0, part) for part in parts]


def _read_text(path: Path, count: int) -> np.ndarray:
    lines = (
        read_text(path, LEAST_TEXT + count * LINE, remedy="give one integer per line").rstrip().splitlines()
    )
    labels = []
    for number, line in enumerate(lines, start=1):
        # `int` also takes 1_0 for 10, and the digits of other scripts.
        if not INTEGER.fullmatch(line.strip()):
            raise InputError(
                f"line {number} is {line[:40]!r}, not an integer of at most 18 digits",
                where=path,
                remedy="give one integer per line and nothing else",
            )
        labels.append(int(line))
    return np.array(labels, np.int64)
