"""What the estimators need to know of each inverted list: mean and variance of its codes, by dimension."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from patchindex.index.shards import Bucket
from patchindex.runtime import require_faiss

__all__ = ["CodeMoments", "code_ranges"]

SUMMED_AT_ONCE = 4096  # codes


def code_ranges(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest value and step of each dimension: a code q stands for `low + (q + 1/2) step`.

    Both float32, shape (dims,).
    """
    trained = require_faiss().vector_to_array(index.sq.trained)
    low, width = np.split(trained, 2)
    return low, width / 255


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
