"""Bootstrap intervals of statistics over images, such as the median."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from patchindex.errors import InputError

__all__ = ["RESAMPLES", "Interval", "bootstrap_interval", "median_interval"]

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK = 1 << 20  # numbers in memory at once


class Interval(NamedTuple):
    """A statistic with the ends of its interval."""

    value: float
    low: float
    high: float


def median_interval(
    values: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Return the median of some values with its interval, as `bootstrap_interval` does.

    Examples
    --------
    >>> median_interval([0.7, 0.8, 0.9])
    Interval(value=0.8, low=0.7, high=0.9)
    """
    return bootstrap_interval(values, np.median, seed=seed, resamples=resamples, level=level)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[..., np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return a statistic of some values with its percentile bootstrap interval.

    A resample draws as many values as there are, with replacement; the ends of the interval are the
    `(1 - level) / 2` and `(1 + level) / 2` quantiles of the statistics of all resamples (Efron & Tibshirani,
    An Introduction to the Bootstrap, chapter 13). For paired values pass their differences.

    Parameters
    ----------
    values : sequence of float
        At least one value, each finite.
    statistic : callable
        Called as `statistic(array, axis=1)`, as `numpy.mean` and `numpy.median` can be.
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
    >>> [round(end, 2) for end in bootstrap_interval([0.7, 0.8, 0.9], np.mean, level=0.5)]
    [0.8, 0.77, 0.83]
    """
    each = np.asarray(values, np.float64)
    if not each.size or not np.isfinite(each).all():
        raise InputError("must be finite numbers, at least one", parameter="values", remedy="leave NaN out")
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(each))
    found = [
        statistic(each[rng.integers(len(each), size=(min(rows, resamples - first), len(each)))], axis=1)
        for first in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(each[None], axis=1)[0]), float(low), float(high))
