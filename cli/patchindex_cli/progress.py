"""Progress bars on stderr, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Stages", "stages"]


class Stages:
    """One bar per stage; a stage ends when the next stage begins. Call it as `stages(stage, done, total)`.

    A stage that begins at zero may never report again: its bar pulses until it does.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        """Show that `done` of `total` units of a stage are completed."""
        if stage not in self._tasks:
            self.end()
            self._tasks[stage] = self._progress.add_task(stage, total=total if done else None)
        elif done:
            self._progress.update(self._tasks[stage], total=total)
        self._progress.update(self._tasks[stage], completed=done)

    def end(self) -> None:
        """Stop the clock of the last stage and fill its bar."""
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, total=task.total or 1, completed=task.total or 1)


@contextmanager
def stages() -> Iterator[Stages]:
    """Show bars inside the block; print nothing when stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        shown = Stages(progress)
        yield shown
        shown.end()  # not after an error: the bars then show where it happened
