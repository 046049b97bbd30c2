"""Sorting patches by inverted list on disk: memory holds a bucket of neighbouring lists at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

__all__ = ["BUCKET_BYTES", "MOST_BUCKETS", "ListSorter"]

BUCKET_BYTES = 64 << 20
MOST_BUCKETS = 256  # files open at once


class ListSorter:
    """Collect patches in any order, and give them back list by list.

    A bucket is a file of records for a range of lists. Patches of a list come back in the order in which they
    were added.

    Parameters
    ----------
    folder : Path
        A new folder for the buckets; it is theirs alone, and the caller removes it.
    lists : int
        How many lists there are.
    code_bytes : int
        Bytes of a code.
    patches : int
        About how many are to come.

    Examples
    --------
    >>> import tempfile
    >>> codes = np.array([[1], [2], [3]], np.uint8)
    >>> with ListSorter(Path(tempfile.mkdtemp()) / "sort", 4, 1, 3) as sorter:
    ...     sorter.add(np.array([2, 0, 2]), np.array([7, 8, 9]), codes)
    ...     [(records["list"].tolist(), records["id"].tolist()) for records in sorter.buckets()]
    [([0, 2, 2], [8, 7, 9])]
    """

    def __init__(self, folder: Path, lists: int, code_bytes: int, patches: int) -> None:
        self.dtype = np.dtype([("list", "<i4"), ("id", "<i8"), ("code", "u1", (code_bytes,))])
        wanted = -(-patches * self.dtype.itemsize // BUCKET_BYTES)
        buckets = max(1, min(wanted, MOST_BUCKETS, lists))
        # Lists are of about equal length, so buckets are.
        self._first = np.linspace(0, lists, buckets + 1).astype(np.int64)
        folder.mkdir()
        self._paths = [folder / f"{i:03d}" for i in range(buckets)]
        self._files = [path.open("wb") for path in self._paths]

    def __enter__(self) -> ListSorter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def add(self, lists: np.ndarray, ids: np.ndarray, codes: np.ndarray) -> None:
        """Add patches: their lists (n,), ids (n,) and codes (n, code_bytes) uint8."""
        order = np.argsort(lists, kind="stable")
        records = np.empty(len(lists), self.dtype)
        records["list"], records["id"], records["code"] = lists[order], ids[order], codes[order]
        edges = np.searchsorted(records["list"], self._first)
        for file, start, stop in zip(self._files, edges[:-1], edges[1:], strict=True):
            file.write(records[start:stop].data)

    def buckets(self) -> Iterator[np.ndarray]:
        """Yield the records of all lists in ascending order, some neighbouring lists at a time.

        Nothing can be added afterwards. A bucket's file is removed when the next is asked for.
        """
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            records = np.fromfile(path, self.dtype)
            yield records[np.argsort(records["list"], kind="stable")]
            path.unlink()
