"""The FAISS file of a scale: an IVF index with 8-bit codes.

`patchindex.build.merge` writes the file list by list. It begins with FAISS's head; then come the lists, each
with its codes and its 64-bit ids. The head follows from the trained model and from the sizes of the lists.
So it is compared with the head that must be there, and FAISS reads no file with another head: FAISS would
take indices, and the names of other files, from a head as it is.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from patchindex.runtime import require_faiss

__all__ = ["ID_BYTES", "code_ranges", "empty_index", "head_bytes", "problem_of_head"]

ID_BYTES = 8
METRIC_L2, QT_8BIT = 1, 0
UNUSED = 1 << 20  # two fields of each index that FAISS writes and does not read


def empty_index(centroids: np.ndarray, ranges: np.ndarray) -> Any:
    """Return an empty FAISS index of lists with centroids (lists, dims) and codes of `ScaleModel.ranges`."""
    faiss = require_faiss()
    n_lists, dims = centroids.shape
    quantizer = faiss.IndexFlatL2(dims)
    quantizer.add(centroids)
    by_residual = False  # a code means the same in every list
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dims, n_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2, by_residual
    )
    faiss.copy_array_to_vector(np.ascontiguousarray(ranges, np.float32).reshape(-1), index.sq.trained)
    index.is_trained = True
    return index


def _head(centroids: np.ndarray, ranges: np.ndarray, sizes: np.ndarray) -> list[tuple[str, bytes]]:
    """Return the parts of a head, and the names of what they say."""
    lists, dims = centroids.shape

    def index(kind: bytes, entries: int) -> list[tuple[str, bytes]]:
        return [
            ("type", kind),
            ("dimensions", struct.pack("<i", dims)),
            ("number of entries", struct.pack("<q", entries)),
            ("unused fields", struct.pack("<qq", UNUSED, UNUSED)),
            ("state of training", b"\x01"),
            ("metric", struct.pack("<i", METRIC_L2)),
        ]

    return [
        *index(b"IwSq", int(sizes.sum())),
        ("number of lists", struct.pack("<Q", lists)),
        ("number of probes", struct.pack("<Q", 1)),
        *index(b"IxF2", lists),
        ("size of the centroids", struct.pack("<Q", lists * dims)),
        ("centroids", np.ascontiguousarray(centroids, "<f4").tobytes()),
        ("direct map", struct.pack("<bQ", 0, 0)),
        ("quantizer", struct.pack("<iifQQ", QT_8BIT, 0, 0.0, dims, dims)),
        ("size of the ranges", struct.pack("<Q", 2 * dims)),
        ("ranges", np.ascontiguousarray(ranges, "<f4").tobytes()),
        ("code size", struct.pack("<Q", dims)),
        ("residuals", b"\x00"),
        ("type of the lists", b"ilar"),
        ("size of the lists", struct.pack("<QQ", lists, dims)),
        ("form of the list sizes", b"full"),
        ("number of list sizes", struct.pack("<Q", lists)),
        ("list sizes", np.ascontiguousarray(sizes, "<u8").tobytes()),
    ]


def head_bytes(lists: int, dims: int) -> int:
    """Return the number of bytes of the head: the first list begins there."""
    nothing = np.zeros((0, 0)), np.zeros((2, 0)), np.zeros(0)
    fixed = sum(len(content) for _, content in _head(*nothing))
    return fixed + 4 * lists * dims + 4 * 2 * dims + 8 * lists


def problem_of_head(found: bytes, centroids: np.ndarray, ranges: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return the first part of a head that is not as the store says, or None.

    `centroids`, float32 (lists, dims), and `ranges`, float32 (2, dims), are of the trained model; `sizes`,
    int64 (lists,), are the patches of each list.
    """
    at = 0
    for name, wanted in _head(centroids, ranges, sizes):
        if found[at : at + len(wanted)] != wanted:
            return name
        at += len(wanted)
    return None if at == len(found) else "length"


def code_ranges(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest value and step of each dimension, float32 (dims,): q means `low + (q + 1/2) step`."""
    trained = require_faiss().vector_to_array(index.sq.trained)
    low, width = np.split(trained, 2)
    return low, width / 255
