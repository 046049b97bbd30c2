"""The FAISS file of a scale: an IVF index with 8-bit codes.

`patchindex.build.merge` writes the file list by list. It begins with FAISS's header; then come the lists,
each with its codes and its 64-bit ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from patchindex.runtime import require_faiss

__all__ = ["ID_BYTES", "code_ranges", "empty_index", "lists_offset"]

ID_BYTES = 8


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


def lists_offset(file_bytes: int, sizes: np.ndarray, code_bytes: int) -> int:
    """Return the byte where the first list begins: the lists end the file."""
    return file_bytes - int(sizes.sum()) * (code_bytes + ID_BYTES)


def code_ranges(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest value and step of each dimension, float32 (dims,): q means `low + (q + 1/2) step`."""
    trained = require_faiss().vector_to_array(index.sq.trained)
    low, width = np.split(trained, 2)
    return low, width / 255
