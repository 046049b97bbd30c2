"""The stages of a build on a Dask cluster whose workers all see its folder.

Each stage is recorded there when it is whole, so that what a lost worker was at is done again by another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from patchindex.backends import threads
from patchindex.index.stages import Progress, ScaleBuild

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RETRIES", "stages_on"]

RETRIES = 5  # of a task whose worker was lost

_threads = threads  # a parameter has this name


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

        def submit(stage: str, *arguments: Any) -> Any:
            return client.submit(_do, scale, stage, threads, *arguments, pure=False, retries=RETRIES)

        scale.begin()
        submit("train").result()
        missing = scale.missing()
        futures = [submit("encode", shard) for shard in missing]
        for done, future in enumerate(as_completed(futures)):
            future.result()
            if progress is not None:
                progress(f"k={scale.k} assigning patches", done + 1, len(futures))
        submit("merge").result()

    return run


def _do(scale: ScaleBuild, stage: str, threads: int | None, *arguments: Any) -> None:
    with _threads(threads):
        getattr(scale, stage)(*arguments)
