"""Progress bars on stderr, where there is a terminal to look at them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Stages", "stages"]


# The library's stages are called `k=3 training` and `k = 3: operating curve`.
_SCALE = re.compile(r"^k ?= ?(\d+):? ")


class Stages:
    """Bars for stages that come one after the other; call it as `stages(stage, done, total)`.

    A stage that begins with nothing done may never say how far it is: its bar pulses until it does. It ends
    when the next one begins.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        """Show how far a stage is."""
        if stage not in self._tasks:
            self.end()
            name = _SCALE.sub(r"k = \1: ", stage)
            self._tasks[stage] = self._progress.add_task(name, total=total if done else None)
        elif done:
            self._progress.update(self._tasks[stage], total=total)
        self._progress.update(self._tasks[stage], completed=done)

    def end(self) -> None:
        """End what is shown: the clock stops, and a bar that pulsed is full."""
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, total=task.total or 1, completed=task.total or 1)


@contextmanager
def stages() -> Iterator[Stages]:
    """Show bars inside the block; nothing is printed when stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        shown = Stages(progress)
        yield shown
        shown.end()  # not where the work failed: then the bars stay as they are
