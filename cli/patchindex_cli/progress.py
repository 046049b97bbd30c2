"""Progress on stderr: bars on a terminal; in a file or a pipe, a plain line every half minute."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING

from patchindex.errors import Option, PatchIndexError, printable

from .output import echo, is_plain, is_quiet

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from patchindex.runtime import Progress

SECONDS_PER_LINE = 30.0
LEAST_SECONDS, LEAST_SHARE = 60.0, 0.02  # of a stage, before its lines have the time that is left
SURE_AFTER = 0.02  # of all stages, after which the expected seconds count for half
MOST_GROWN = 0.9  # of the rest of a stage, without a report


class Whole:
    """The share of several stages that is done, and the time left, from the expected seconds of each stage.

    The expected seconds are right up to a factor, which follows from the stages so far. Between two reports
    of a stage its share grows as expected, so that a stage that reports at its end only does not stand still.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._before = self._done = self._here = self._began = self._reported = 0.0
        self._stage, self._share, self._shown = "", 0.0, 0.0

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Begin stages with these expected seconds."""
        self._seconds = dict(seconds)
        self._done = self._here = self._shown = 0.0
        self._began = self._reported = self._clock()
        self._stage, self._share = "", 0.0

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        """Note the progress of a stage; a stage that was not expected ends the last one."""
        names = list(self._seconds)
        if stage not in names:
            if names and self._stage == names[-1]:
                self._seconds = {}
            return
        share = min(1.0, done / (total or 1))
        if stage != self._stage:
            # The work of this run: a resumed build skips stages, and does not begin its first stage at zero.
            resumed = not self._stage and stage != names[0]
            self._here += (1 - self._share) * self._seconds.get(self._stage, 0.0)
            self._stage, self._share = stage, share if resumed else 0.0
            self._before = sum(self._seconds[name] for name in names[: names.index(stage)])
        self._here += max(0.0, share - self._share) * self._seconds[stage]
        self._share, self._reported = share, self._clock()
        self._done = self._before + share * self._seconds[stage]

    def state(self) -> tuple[float, float] | None:
        """Return the share of all stages that is done, and the seconds left; None without expected stages."""
        total = sum(self._seconds.values())
        if not total or not self._stage:
            return None
        sure = SURE_AFTER * total
        factor = (self._reported - self._began + sure) / (self._here + sure)
        grown = min((self._clock() - self._reported) / factor, MOST_GROWN * self._unreported())
        self._shown = max(self._shown, (self._done + grown) / total)  # a bar does not go back
        return self._shown, total * (1 - self._shown) * factor

    def _unreported(self) -> float:
        """Return the expected seconds until the next report at the latest: a stage may report at its end."""
        rest = (1 - self._share) * self._seconds[self._stage]
        names = list(self._seconds)
        after = names[names.index(self._stage) + 1 :]
        return rest if rest or not after else self._seconds[after[0]]


class Bars:
    """One bar per stage; a stage ends when the next stage begins. Call it as `bars(stage, done, total)`.

    A stage that begins at zero may never report again: its bar pulses until it does. After `expect`, the
    first bar is of all stages.
    """

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._whole = Whole()
        self._all: TaskID | None = None

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Show a bar of all stages, of these expected seconds."""
        self._whole.expect(seconds)
        self._all = self._progress.add_task("all stages", total=1.0, left=None)

    def refresh(self) -> None:
        """Move the bar of all stages."""
        if self._all is not None and (state := self._whole.state()) is not None:
            self._progress.update(self._all, completed=state[0], left=state[1])

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        """Show that `done` of `total` units of a stage are completed."""
        self._whole(stage, done, total)
        self.refresh()
        if stage not in self._tasks:
            self._end(self._tasks.values())
            if self._all is not None and self._whole.state() is None:
                self._end([self._all])
            self._tasks[stage] = self._progress.add_task(printable(stage), total=total if done else None)
        elif done:
            self._progress.update(self._tasks[stage], total=total)
        self._progress.update(self._tasks[stage], completed=done)

    def end(self) -> None:
        """Stop the clocks of all bars and fill the bars."""
        self._end([task.id for task in self._progress.tasks])

    def _end(self, tasks: Iterable[TaskID]) -> None:
        ids = set(tasks)
        for task in self._progress.tasks:
            if task.id in ids and not task.finished:
                self._progress.update(task.id, total=task.total or 1, completed=task.total or 1)


class _Lines:
    """The line of a stage, with the share and the time left of all stages where they are known."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._whole = clock, Whole(clock)
        self._stage, self._share = "", 0.0
        self._elapsed = self._began = self._first = 0.0  # time and share of the first report of the stage
        self.expect = self._whole.expect

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        now, share = self._clock(), done / (total or 1)
        self._whole(stage, done, total)
        if stage != self._stage:
            self._stage, self._began, self._first = stage, now, share  # a resumed stage does not begin at 0
        self._share = share
        self._elapsed = now - self._began

    def text(self) -> str:
        """Return the line, empty before the first stage."""
        if not self._stage:
            return ""
        line = f"{self._stage}: {100 * self._share:.0f} %"
        if (state := self._whole.state()) is not None:
            return f"{line}; {100 * state[0]:.0f} % of all stages{_time_left(state[1])}"
        gained = self._share - self._first
        if self._elapsed < LEAST_SECONDS or gained < LEAST_SHARE:
            return line
        return line + _time_left(self._elapsed * (1 - self._share) / gained)


@contextmanager
def lines(
    echo: Callable[[str], object], seconds: float, clock: Callable[[], float] = monotonic
) -> Iterator[Progress]:
    """Echo the progress every `seconds` inside the block, also while a stage does not report.

    Lines of a stage that runs for a minute have the time that is left.
    """
    show, ended = _Lines(clock), Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            if line := show.text():
                echo(line)

    thread = Thread(target=repeat, name="patchindex-progress", daemon=True)
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()


def _time_left(seconds: float) -> str:
    """Return the time left as the end of a line."""
    if seconds < 60:
        return f", {10 * max(1, round(seconds / 10))} s left"
    minutes = math.ceil(seconds / 60)
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
    with _new_bars() as bars:
        yield bars
        bars.end()  # not after an error: the bars then show where it happened


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Turn Ctrl-C in the block into an error that says how to continue the run in `output`."""
    try:
        yield
    except KeyboardInterrupt:
        raise PatchIndexError(
            "interrupted", where=output, remedy=["continue with ", Option("resume", True)]
        ) from None


@contextmanager
def _new_bars() -> Iterator[Bars]:
    """Yield bars on stderr; rich is imported on first use."""
    from rich import progress as rich
    from rich.console import Console, RenderableType
    from rich.text import Text

    class TimeLeft(rich.TimeRemainingColumn):
        def render(self, task: rich.Task) -> Text:
            if task.finished or task.fields.get("left") is None:
                return super().render(task)
            minutes, seconds = divmod(math.ceil(task.fields["left"]), 60)
            return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02}", style="progress.remaining")

    class Progress(rich.Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            if made:
                made[0].refresh()
            yield from super().get_renderables()

    made: list[Bars] = []
    columns = (rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeElapsedColumn(), TimeLeft())
    name = rich.TextColumn("{task.description:<28}", markup=False)
    with Progress(name, *columns, console=Console(stderr=True)) as progress:
        made.append(Bars(progress))
        yield made[0]
