"""What the estimators need to know of each inverted list: mean and variance of its codes, by dimension."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from patchindex.backends import require_faiss

__all__ = ["CodeMoments", "code_ranges"]


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

    def watch(self, buckets: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass on records in order of their lists, counting them in."""
        for records in buckets:
            if len(records):
                starts = np.flatnonzero(np.diff(records["list"], prepend=-1))
                for start, stop in zip(starts, [*starts[1:], len(records)], strict=True):
                    c = records["list"][start]
                    codes = records["code"][start:stop].astype(np.float64)  # exact: integers below 2^53
                    self.count[c] += stop - start
                    self.sums[c] += codes.sum(0)
                    self.squares[c] += np.einsum("nd,nd->d", codes, codes)
            yield records

    def decoded(self, low: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return means and variances of the vectors that the codes stand for, float32, shape (lists, dims).

        Both are 0 for a list without members.
        """
        count = np.maximum(self.count, 1)[:, None]
        mean = self.sums / count
        variance = np.maximum(self.squares / count - mean**2, 0) * np.square(step, dtype=np.float64)
        means = np.where(self.count[:, None] > 0, low + (mean + 0.5) * step, 0)
        return means.astype(np.float32), variance.astype(np.float32)
