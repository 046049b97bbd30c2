"""Bootstrap intervals of medians over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from patchindex.errors import InputError

__all__ = ["RESAMPLES", "Interval", "median_interval"]

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK = 1 << 20  # numbers in memory at once


class Interval(NamedTuple):
    """A median with the ends of its interval."""

    value: float
    low: float
    high: float


def median_interval(
    values: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Return the median of some values with its percentile bootstrap interval.

    A resample draws as many values as there are, with replacement; the ends of the interval are the
    `(1 - level) / 2` and `(1 + level) / 2` quantiles of the medians of all resamples (Efron & Tibshirani,
    An Introduction to the Bootstrap, chapter 13). For paired values pass their differences.

    Parameters
    ----------
    values : sequence of float
        At least one value, each finite.
    seed : int
        Seed of the resamples.
    resamples : int
        Number of resamples.
    level : float
        Coverage of the interval, in (0, 1).

    Raises
    ------
    InputError
        When there is no value, or a value is not finite.

    Examples
    --------
    >>> median_interval([0.7, 0.8, 0.9])
    Interval(value=0.8, low=0.7, high=0.9)
    """
    each = np.asarray(values, np.float64)
    if not each.size or not np.isfinite(each).all():
        raise InputError("must be finite numbers, at least one", parameter="values", remedy="leave NaN out")
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(each))
    medians = [
        np.median(each[rng.integers(len(each), size=(min(rows, resamples - first), len(each)))], axis=1)
        for first in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(medians), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.median(each)), float(low), float(high))
