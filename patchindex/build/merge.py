"""Merging: the patches of all shards, list by list, into the FAISS file of a scale.

FAISS builds such an index in memory and writes it then. Here its head comes from FAISS and the lists are
streamed behind it in FAISS's own format ("ilar": list sizes, and for each list its codes and its 64-bit ids),
so that no more than some lists are in memory. The bytes are those that FAISS would have written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from patchindex.index.faiss_file import ID_BYTES
from patchindex.runtime import require_faiss
from patchindex.store.checksums import crc32c
from patchindex.store.raw import RawWriter

__all__ = ["Bucket", "CodeMoments", "write_index"]

PIECE_BYTES = 1 << 20
NO_LISTS = b"il00"  # how FAISS ends an index without lists
SUMMED_AT_ONCE = 4096  # codes


class Bucket(NamedTuple):
    """The patches of some neighbouring lists, or some of one list.

    Attributes
    ----------
    first : int
        The first of these lists.
    sizes : array of int64, shape (lists,)
        How many patches of each are here.
    ids : array of int64, shape (n,)
        List by list, ascending in each.
    codes : array of uint8, shape (n, code bytes)
    """

    first: int
    sizes: np.ndarray
    ids: np.ndarray
    codes: np.ndarray

    def lists(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the number, ids and codes of each list that has some."""
        stops = np.cumsum(self.sizes)
        for i in np.flatnonzero(self.sizes):
            rows = slice(stops[i] - self.sizes[i], stops[i])
            yield self.first + int(i), self.ids[rows], self.codes[rows]


class CodeMoments:
    """Sums of the codes of each list and of their squares: integers, so exact.

    Parameters
    ----------
    lists, dims : int
    """

    def __init__(self, lists: int, dims: int) -> None:
        self.count = np.zeros(lists, np.int64)
        self.sums = np.zeros((lists, dims))
        self.squares = np.zeros((lists, dims))

    def watch(self, buckets: Iterator[Bucket]) -> Iterator[Bucket]:
        """Pass on patches in order of their lists, counting them in."""
        for bucket in buckets:
            for c, _, codes in bucket.lists():
                self.count[c] += len(codes)
                for start in range(0, len(codes), SUMMED_AT_ONCE):
                    exact = codes[start : start + SUMMED_AT_ONCE].astype(np.float64)  # integers below 2^53
                    self.sums[c] += exact.sum(0)
                    self.squares[c] += np.einsum("nd,nd->d", exact, exact)
            yield bucket

    def decoded(self, low: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return means and variances of the vectors that the codes stand for, float32, shape (lists, dims).

        Both are 0 for a list without members.
        """
        count = np.maximum(self.count, 1)[:, None]
        mean = self.sums / count
        variance = np.maximum(self.squares / count - mean**2, 0) * np.square(step, dtype=np.float64)
        means = np.where(self.count[:, None] > 0, low + (mean + 0.5) * step, 0)
        return means.astype(np.float32), variance.astype(np.float32)


def write_index(
    out: RawWriter, index: Any, sizes: np.ndarray, buckets: Iterator[Bucket]
) -> tuple[int, np.ndarray]:
    """Write an empty index with members; return the checksums of its head and of each list.

    Parameters
    ----------
    out : RawWriter
    index : faiss.IndexIVFScalarQuantizer
        Without members; it has no lists afterwards.
    sizes : array of int, shape (lists,)
        Length of each list.
    buckets : iterator of Bucket
        The members, list by list, as `Shards.merged` gives them. Of a list that comes in parts, ids wait in
        a temporary file until its codes are written.
    """
    faiss = require_faiss()
    index.replace_invlists(None, False)
    index.ntotal = int(sizes.sum())
    head = faiss.serialize_index(index).tobytes()
    if not head.endswith(NO_LISTS):
        raise AssertionError("this version of FAISS writes indexes in another way")
    head = head[: -len(NO_LISTS)] + b"".join(
        part if isinstance(part, bytes) else np.asarray(part, "<u8").tobytes()
        for part in (b"ilar", [len(sizes), index.code_size], b"full", [len(sizes)], sizes)
    )
    out.write(head)
    checksums = np.zeros(len(sizes), np.uint32)
    with tempfile.TemporaryFile(dir=out.folder) as waiting:
        for bucket in buckets:
            for c, ids, codes in bucket.lists():
                checksums[c] = crc32c(codes, int(checksums[c]))
                out.write(codes)
                if len(ids) < sizes[c]:
                    waiting.write(ids.data)
                    if waiting.tell() < ID_BYTES * sizes[c]:
                        continue
                    waiting.seek(0)
                    while piece := waiting.read(PIECE_BYTES):
                        checksums[c] = crc32c(piece, int(checksums[c]))
                        out.write(piece)
                    waiting.seek(0)
                    waiting.truncate()
                else:
                    checksums[c] = crc32c(ids, int(checksums[c]))
                    out.write(ids)
    return crc32c(head), checksums
