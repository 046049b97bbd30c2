"""CIFAR-10 and CIFAR-100 in their binary version: records of one or two labels and an image of 32 x 32 x 3.

A record of CIFAR-10 has a label, 0 to 9, and 3 072 bytes, channel by channel. A record of CIFAR-100 has a
coarse label before its own. (https://www.cs.toronto.edu/~kriz/cifar.html)
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from patchindex.errors import InputError
from patchindex.images.concat import ConcatSource
from patchindex.images.format import Format, Options
from patchindex.images.source import ImageSource
from patchindex.images.untrusted import check_regular, read_text

__all__ = ["FORMAT"]

SHAPE = (3, 32, 32)
BYTES = 3 * 32 * 32  # of an image
NAMES = {1: "batches.meta.txt", 2: "fine_label_names.txt"}  # files of label names, by the labels of a record
MOST_BYTES = 1 << 16  # of such a file
FILE = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin")


def matches(path: Path) -> bool:
    """Return whether a path is a file of CIFAR, or the folder of the training files of CIFAR-10."""
    if path.is_dir():
        return (path / "data_batch_1.bin").is_file()
    return FILE.fullmatch(path.name) is not None and path.is_file()


def open_cifar(path: Path, options: Options) -> ImageSource:
    """Open a file, or all training files of a folder; images are read on demand."""
    stored = options.labels.kind == "stored"
    if not path.is_dir():
        return CifarSource(path, stored)
    files = sorted(path.glob("data_batch_*.bin"), key=lambda file: (len(file.name), file.name))
    return ConcatSource([CifarSource(file, stored) for file in files], str(path))


FORMAT = Format("CIFAR-10 or CIFAR-100, binary version (data_batch_1.bin, train.bin)", matches, open_cifar)


class CifarSource(ImageSource):
    """The images of one file; each read maps the file, so that another process opens it anew."""

    def __init__(self, path: Path, stored: bool) -> None:
        size = check_regular(path).st_size
        found = [labels for labels in (1, 2) if size and size % (labels + BYTES) == 0]
        if not found:
            raise InputError(
                f"{size:,} bytes are no records of {1 + BYTES:,} (CIFAR-10) or {2 + BYTES:,} (CIFAR-100)",
                where=path,
                remedy="copy it again, from the binary version of CIFAR",
            )
        # The sizes that fit both are multiples of 9 446 402, and no file of CIFAR-100 has one.
        self._record, self._path = found[0] + BYTES, path.absolute()
        self._size, self._labels = size, found[0]
        labels = np.array(self._records()[:, self._labels - 1]) if stored else None
        names = path.with_name(NAMES[self._labels])
        known = (
            read_text(names, MOST_BYTES, remedy="copy it again").split()
            if stored and names.is_file()
            else None
        )
        if labels is not None and known is not None and labels.max() >= len(known):
            raise InputError(
                f"has label {labels.max()}, and {names.name} has {len(known)} names",
                where=path,
                remedy="copy both again",
            )
        super().__init__(str(path), (size // self._record, 32, 32, 3), labels=labels, label_names=known)

    def _records(self) -> np.ndarray:
        if check_regular(self._path).st_size != self._size:
            raise InputError(
                "has another size than when it was opened",
                where=self._path,
                remedy="do not write to the file while it is read",
            )
        return np.memmap(self._path, np.uint8, "r", shape=(self._size // self._record, self._record))

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        images = self._records()[index, self._labels :].reshape(-1, *SHAPE)
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
