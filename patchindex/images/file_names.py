"""The names of image files, in one array: a Python string for each of a million images takes 100 MB."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from patchindex.errors import printable

__all__ = ["LONGEST_NAME", "FileNames", "numbered"]

LONGEST_NAME = 4096  # bytes; the longest path of Linux. A longer name loses its beginning.
GATHERED = 1 << 16  # names that are copied at once
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character


class FileNames:
    """The file names of N images; an image that is no file of its own has an empty name.

    Parameters
    ----------
    content : numpy.ndarray, shape (bytes,), uint8
        All names in UTF-8, one after the other.
    bounds : numpy.ndarray, shape (N + 1,), int64
        Name i is `content[bounds[i]:bounds[i + 1]]`.

    Examples
    --------
    >>> names = FileNames.of(["cat/1.png", "", "dog/2.png"])
    >>> len(names), names[[2, 0, 1]]
    (3, ['dog/2.png', 'cat/1.png', ''])
    """

    def __init__(self, content: np.ndarray, bounds: np.ndarray) -> None:
        self.content, self.bounds = content, bounds

    @classmethod
    def of(cls, names: Iterable[str]) -> FileNames:
        r"""Return names as one array; bytes in the name of a file that are no text become `\udc..`."""
        content, bounds = bytearray(), array("q", [0])
        for name in names:
            content += name.encode("utf-8", "backslashreplace")[-LONGEST_NAME:].lstrip(CONTINUATION)
            bounds.append(len(content))
        return cls(np.frombuffer(content, np.uint8), np.array(bounds, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[tuple[FileNames | None, int]]) -> FileNames | None:
        """Return the names of several sources, one after the other; None if no source has names.

        `parts` are the names of each source, or None, and the number of its images.
        """
        if all(names is None for names, _ in parts):
            return None
        each = [cls(np.empty(0, np.uint8), np.zeros(n + 1, np.int64)) if s is None else s for s, n in parts]
        lengths = np.concatenate([[0], *(np.diff(names.bounds) for names in each)])
        return cls(np.concatenate([names.content for names in each]), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.content.nbytes + self.bounds.nbytes

    def __getitem__(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return some names."""
        starts, stops = (self.bounds[np.asarray(ids, np.int64) + i].tolist() for i in (0, 1))
        return [self.content[a:b].tobytes().decode() for a, b in zip(starts, stops, strict=True)]

    def subset(self, index: slice | np.ndarray) -> FileNames:
        """Return the names of some images: a slice(start, stop) inside [0, N), or ids."""
        if isinstance(index, slice):
            bounds = self.bounds[index.start : index.stop + 1]
            return FileNames(self.content[bounds[0] : bounds[-1]], bounds - bounds[0])
        starts, lengths = self.bounds[index], self.bounds[index + 1] - self.bounds[index]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        content = np.empty(bounds[-1], np.uint8)
        for first in range(0, len(index), GATHERED):
            some = slice(first, first + GATHERED)
            lo, hi = bounds[first], bounds[min(first + GATHERED, len(index))]
            moved = np.repeat(starts[some] - bounds[:-1][some], lengths[some])
            content[lo:hi] = self.content[moved + np.arange(lo, hi)]
        return FileNames(content, bounds)

    def below(self, folder: str) -> FileNames:
        """Return the names with the path of a folder in front of each name."""
        names = (self[[i]][0] for i in range(len(self)))
        return FileNames.of(name and f"{folder}/{name}" for name in names)


def numbered(number: int, name: str) -> str:
    r"""Return the number of an image with the name of its file, where there is one, as it is printed.

    Examples
    --------
    >>> print(numbered(12, "cat/1.png"), numbered(13, ""), numbered(14, "\x1b[2J.png"))
    12 (cat/1.png) 13 14 (\x1b[2J.png)
    """
    return f"{number} ({printable(name)})" if name else str(number)
