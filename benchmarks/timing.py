"""Times of several ways to do one thing, taken in turn so that a noisy machine is unfair to none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST = 0.3  # seconds


@dataclass(frozen=True)
class Times:
    """Seconds of a call of each way, by round.

    Attributes
    ----------
    seconds : dict of array, shape (repeats,)
    results : dict
        What each way returned the last time.
    """

    seconds: dict[str, np.ndarray]
    results: dict[str, Any]

    def median(self, name: str) -> float:
        """Return the median time of a way."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, to: str) -> float:
        """Return the median over rounds of one way's time over another's."""
        return float(np.median(self.seconds[name] / self.seconds[to]))


def alternate(ways: dict[str, Callable[[], Any]], repeats: int) -> Times:
    """Time all ways in turn, `repeats` times, after a call of each that does not count.

    Fast ways are called again and again for `LEAST` seconds, so that what the one before leaves behind (cold
    caches, threads that spin for a while) does not weigh more on them than on slow ones.
    """
    results, calls, seconds = {}, {}, {name: [] for name in ways}
    for name, way in ways.items():
        start = time.perf_counter()
        results[name] = way()
        calls[name] = max(1, math.ceil(LEAST / (time.perf_counter() - start)))
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                results[name] = way()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return Times({name: np.array(taken) for name, taken in seconds.items()}, results)


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Lay rows out under headings; `columns` gives each key's format."""
    cells = [[key for key in columns]]
    for row in rows:
        cells.append(
            ["" if row.get(key) is None else format(row[key], form) for key, form in columns.items()]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)
