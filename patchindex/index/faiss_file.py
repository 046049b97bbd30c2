"""The FAISS file of a scale: an IVF index with 8-bit codes, written list by list.

FAISS builds such an index in memory and writes it then. Here its head comes from FAISS and the lists are
streamed behind it in FAISS's own format ("ilar": list sizes, and for each list its codes and its 64-bit ids),
so that no more than some lists are in memory. The bytes are those that FAISS would have written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from patchindex.runtime import require_faiss

__all__ = ["ID_BYTES", "code_ranges", "empty_index", "lists_offset"]

ID_BYTES = 8


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


def lists_offset(file_bytes: int, sizes: np.ndarray, code_bytes: int) -> int:
    """Return where the first list begins in a file of so many bytes: lists are the last thing in it."""
    return file_bytes - int(sizes.sum()) * (code_bytes + ID_BYTES)


def code_ranges(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest value and step of each dimension: a code q stands for `low + (q + 1/2) step`.

    Both float32, shape (dims,).
    """
    trained = require_faiss().vector_to_array(index.sq.trained)
    low, width = np.split(trained, 2)
    return low, width / 255
