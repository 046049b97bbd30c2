"""Tasks on a Dask cluster, and the stages of a build as such, where all workers see its folder.

Each stage is recorded there when it is whole, so that what a lost worker was at is done again by another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from patchindex.errors import PatchIndexError
from patchindex.index.stages import Progress, ScaleBuild
from patchindex.runtime import threads

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["lost_workers", "stages_on", "submit"]

_threads = threads  # a parameter has this name


def submit(client: Client, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Hand a task to the workers.

    Where one is lost with it, the scheduler gives it to another, until that has happened more than
    `distributed.scheduler.allowed-failures` times (see `lost_workers`). A task that raises would raise again:
    it is not tried twice.
    """
    return client.submit(function, *arguments, pure=False, retries=0)


@contextmanager
def lost_workers(remedy: str) -> Iterator[None]:
    """Tell in one line, inside the block, of a task with which too many workers were lost.

    Raises
    ------
    PatchIndexError
    """
    from distributed import CancelledError
    from distributed.scheduler import KilledWorker

    try:
        yield
    except KilledWorker as error:
        lost = error.allowed_failures + 1
        raise PatchIndexError(
            f"all workers that a task was given to were lost ({lost}), perhaps for want of memory",
            where="cluster",
            remedy=f"look into their logs, and {remedy}",
        ) from error
    except CancelledError as error:
        raise PatchIndexError(
            "a task was cancelled, or the scheduler is lost",
            where="cluster",
            remedy=f"connect anew, and {remedy}",
        ) from error


def stages_on(client: Client, threads: int | None) -> Callable[[ScaleBuild, Progress | None], None]:
    """Return what does the stages of a scale's build on a cluster.

    Parameters
    ----------
    client : distributed.Client
    threads : int, optional
        Threads of each task: lists are the same for the same number only.
    """

    def run(scale: ScaleBuild, progress: Progress | None) -> None:
        from distributed import as_completed

        def start(stage: str, *arguments: Any) -> Future[Any]:
            return submit(client, _do, scale, stage, threads, *arguments)

        scale.begin(progress)
        with lost_workers("go on with resume=True"):
            start("train").result()
            futures = [start("encode", shard) for shard in scale.missing()]
            for done, future in enumerate(as_completed(futures)):
                future.result()
                if progress is not None:
                    progress(f"k={scale.k} assigning patches", done + 1, len(futures))
            start("merge").result()

    return run


def _do(scale: ScaleBuild, stage: str, threads: int | None, *arguments: Any) -> None:
    with _threads(threads):
        getattr(scale, stage)(*arguments)
