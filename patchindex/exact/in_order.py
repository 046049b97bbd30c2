"""Results of threads, merged in a fixed order: sums that round depend on their order."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

__all__ = ["InOrder"]


class InOrder:
    """A function that is called with the results of tasks 0, 1, ... in this order.

    A result that comes early waits until the results before it are there. `done` is the number of results
    that were merged.
    """

    def __init__(self, merge: Callable[[Any], object]) -> None:
        self._merge, self._early, self._lock = merge, dict[int, Any](), Lock()
        self.done = 0

    def add(self, number: int, result: object) -> None:
        """Take the result of a task; threads may call this at once."""
        with self._lock:
            self._early[number] = result
            while self.done in self._early:
                self._merge(self._early.pop(self.done))
                self.done += 1
