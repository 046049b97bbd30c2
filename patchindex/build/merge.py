"""Merging: write the patches of all shards, list by list, into the FAISS file of a scale.

FAISS writes an index file from an index in memory. Here FAISS makes only the header of the file, and the
lists are streamed behind it in FAISS's own format ("ilar": list sizes, then for each list its codes and its
64-bit ids). So only a few lists are in memory. The bytes are the same as FAISS writes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchindex.index.faiss_file import ID_BYTES
from patchindex.kernels.by_list import add_moments
from patchindex.runtime import require_faiss
from patchindex.store.checksums import crc32c
from patchindex.store.raw import ChecksumWriter

__all__ = ["Bucket", "ListStatistics", "write_index"]

PIECE_BYTES = 1 << 20
NO_LISTS = b"il00"  # the end of FAISS's bytes for an index without lists


class Bucket(NamedTuple):
    """The patches of some neighbouring lists, or some patches of one list."""

    first: int  # the first list
    sizes: np.ndarray  # patches of each list in the bucket, int64 (lists,)
    ids: np.ndarray  # patch ids list by list, ascending in each list, int64 (n,)
    codes: np.ndarray  # uint8 (n, code bytes)

    def lists(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the number, ids and codes of each list that is not empty."""
        stops = np.cumsum(self.sizes)
        for i in np.flatnonzero(self.sizes):
            rows = slice(stops[i] - self.sizes[i], stops[i])
            yield self.first + int(i), self.ids[rows], self.codes[rows]


class ListStatistics:
    """Patches of each label in each list, int64 (labels, lists), and exact sums of the codes of each list.

    `label_of` is the index of each image's label, int64 (N,).
    """

    def __init__(self, lists: int, dims: int, label_of: np.ndarray, patches_per_image: int) -> None:
        self._label_of, self._per_image = label_of, patches_per_image
        self.counts = np.zeros((int(label_of.max()) + 1, lists), np.int64)
        self._sums, self._squares = (np.zeros((lists, dims), np.int64) for _ in range(2))

    def add(self, bucket: Bucket) -> None:
        """Count the patches of a bucket, and add up their codes and squared codes."""
        labels, n = len(self.counts), len(bucket.sizes)
        flat = self._label_of[bucket.ids // self._per_image] * n + np.repeat(np.arange(n), bucket.sizes)
        counts = np.bincount(flat, minlength=labels * n).reshape(labels, n)
        self.counts[:, bucket.first : bucket.first + n] += counts
        lists = np.repeat(np.arange(bucket.first, bucket.first + n), bucket.sizes)
        add_moments(lists, bucket.codes, self._sums, self._squares)

    def moments(self, low: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the means and variances of the decoded vectors of each list, float32, shape (lists, dims).

        A code q stands for `low + (q + 1/2) step`. Both are 0 for an empty list.
        """
        sizes = self.counts.sum(0)[:, None]
        count = np.maximum(sizes, 1)
        mean = self._sums / count
        variance = np.maximum(self._squares / count - mean**2, 0) * np.square(step, dtype=np.float64)
        means = np.where(sizes > 0, low + (mean + 0.5) * step, 0)
        return means.astype(np.float32), variance.astype(np.float32)


def write_index(
    out: ChecksumWriter, index: Any, sizes: np.ndarray, buckets: Iterator[Bucket], scratch: Path
) -> tuple[int, np.ndarray]:
    """Write a FAISS index; return the checksums of its header and of each list, uint32 (lists,).

    `index` has no members yet; `sizes` are the lengths of its lists, int (lists,); `buckets` are the members
    as `Shards.merged` yields them. When a list comes in several buckets, a temporary file in `scratch` holds
    its ids until its codes are written.
    """
    faiss = require_faiss()
    index.replace_invlists(None, False)
    index.ntotal = int(sizes.sum())
    header = faiss.serialize_index(index).tobytes()
    if not header.endswith(NO_LISTS):
        raise AssertionError("this version of FAISS has another file format")
    header = header[: -len(NO_LISTS)] + b"".join(
        part if isinstance(part, bytes) else np.asarray(part, "<u8").tobytes()
        for part in (b"ilar", [len(sizes), index.code_size], b"full", [len(sizes)], sizes)
    )
    out.write(header)
    checksums = np.zeros(len(sizes), np.uint32)

    def write(c: int, data: Any) -> None:
        checksums[c] = crc32c(data, int(checksums[c]))
        out.write(data)

    with tempfile.TemporaryFile(dir=scratch) as waiting:
        for bucket in buckets:
            for c, ids, codes in bucket.lists():
                write(c, codes)
                if len(ids) == sizes[c]:
                    write(c, ids)
                    continue
                waiting.write(ids.data)
                if waiting.tell() == ID_BYTES * sizes[c]:
                    waiting.seek(0)
                    while piece := waiting.read(PIECE_BYTES):
                        write(c, piece)
                    waiting.seek(0)
                    waiting.truncate()
    return crc32c(header), checksums
