"""Progress on stderr: bars on a terminal; in a file or a pipe, a plain line every half minute."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING

from patchindex.errors import printable

from .output import echo, is_plain, is_quiet

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from patchindex.runtime import Progress

SECONDS_PER_LINE = 30.0
LEAST_SECONDS, LEAST_SHARE = 60.0, 0.02  # of a stage, before its lines have the time that is left


class Bars:
    """One bar per stage; a stage ends when the next stage begins. Call it as `bars(stage, done, total)`.

    A stage that begins at zero may never report again: its bar pulses until it does.
    """

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        """Show that `done` of `total` units of a stage are completed."""
        if stage not in self._tasks:
            self.end()
            self._tasks[stage] = self._progress.add_task(printable(stage), total=total if done else None)
        elif done:
            self._progress.update(self._tasks[stage], total=total)
        self._progress.update(self._tasks[stage], completed=done)

    def end(self) -> None:
        """Stop the clock of the last stage and fill its bar."""
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, total=task.total or 1, completed=task.total or 1)


@contextmanager
def lines(
    echo: Callable[[str], object], seconds: float, clock: Callable[[], float] = monotonic
) -> Iterator[Progress]:
    """Echo the progress every `seconds` inside the block, also while a stage does not report.

    Lines of a stage that runs for a minute have the time that is left.
    """
    line, running, ended = "", "", Event()
    began = first = 0.0  # time and share of the first report of the stage

    def show(stage: str, done: float, total: float, /) -> None:
        nonlocal line, running, began, first
        now, share = clock(), done / (total or 1)
        if stage != running:
            running, began, first = stage, now, share  # a resumed stage does not begin at 0
        line = f"{stage}: {100 * share:.0f} %{_time_left(now - began, share, share - first)}"

    def repeat() -> None:
        while not ended.wait(seconds):
            if line:
                echo(line)

    thread = Thread(target=repeat, name="patchindex-progress", daemon=True)
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()


def _time_left(elapsed: float, share: float, gained: float) -> str:
    """Return the time that is left, if `elapsed` seconds, which gained a share of the stage, tell it."""
    if elapsed < LEAST_SECONDS or gained < LEAST_SHARE:
        return ""
    minutes = math.ceil(elapsed * (1 - share) / gained / 60)
    return f", {minutes} min left" if minutes < 120 else f", {minutes / 60:.0f} h left"


@contextmanager
def stages() -> Iterator[Progress]:
    """Show the progress of the block on stderr; show none with --quiet."""
    if is_quiet():
        yield lambda *_: None
        return
    if is_plain(sys.stderr):
        with lines(lambda line: echo(line, err=True), SECONDS_PER_LINE) as show:
            yield show
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(
        rich.TextColumn("{task.description:<28}", markup=False), *columns, console=Console(stderr=True)
    ) as progress:
        bars = Bars(progress)
        yield bars
        bars.end()  # not after an error: the bars then show where it happened
