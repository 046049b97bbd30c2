"""The FAISS file of a scale: an IVF index with 8-bit codes, written list by list.

FAISS builds such an index in memory and writes it then. Here its head comes from FAISS and the lists are
streamed behind it in FAISS's own format ("ilar": list sizes, and for each list its codes and its 64-bit ids),
so that no more than some lists are in memory. The bytes are those that FAISS would have written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from patchindex.runtime import require_faiss
from patchindex.store.checksums import crc32c
from patchindex.store.raw import RawWriter

if TYPE_CHECKING:
    from patchindex.index.shards import Bucket

__all__ = ["ID_BYTES", "empty_index", "lists_offset", "write_index"]

ID_BYTES = 8
PIECE_BYTES = 1 << 20
NO_LISTS = b"il00"  # how FAISS ends an index without lists


def empty_index(centroids: np.ndarray, ranges: np.ndarray) -> Any:
    """Return a FAISS index with these lists and 8-bit codes, without members.

    Parameters
    ----------
    centroids : array, shape (lists, dims), float32
    ranges : array, shape (2, dims), float32
        Lowest value and width of what codes can express in each dimension.
    """
    faiss = require_faiss()
    n_lists, dims = centroids.shape
    quantizer = faiss.IndexFlatL2(dims)
    quantizer.add(centroids)
    by_residual = False  # one code table for all lists: a code means the same wherever it is
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dims, n_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2, by_residual
    )
    faiss.copy_array_to_vector(np.ascontiguousarray(ranges, np.float32).reshape(-1), index.sq.trained)
    index.is_trained = True
    return index


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


def lists_offset(file_bytes: int, sizes: np.ndarray, code_bytes: int) -> int:
    """Return where the first list begins in a file of so many bytes: lists are the last thing in it."""
    return file_bytes - int(sizes.sum()) * (code_bytes + ID_BYTES)
