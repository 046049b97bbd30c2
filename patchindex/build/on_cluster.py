"""The stages of a scale's build, here or on the workers of a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchindex.build.scale import ScaleBuild
from patchindex.dask_tasks import lost_workers, submit
from patchindex.runtime import Progress
from patchindex.runtime import threads as use_threads

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["build_scale"]


def build_scale(scale: ScaleBuild, progress: Progress, client: Client | None, threads: int | None) -> None:
    """Build a scale, on a cluster if there is a client.

    `threads` is the number of threads of each task: equal numbers give equal lists.
    """
    if client is None:
        scale.run(progress)
        return
    from distributed import as_completed

    def start(stage: str, *arguments: Any) -> Future[Any]:
        return submit(client, _run_stage, scale, stage, threads, *arguments)

    scale.begin(progress)
    with lost_workers(*scale.go_on):
        start("train").result()
        futures = [start("encode", shard) for shard in scale.missing()]
        for done, future in enumerate(as_completed(futures)):
            future.result()
            progress(f"k = {scale.k}: assigning patches", done + 1, len(futures))
        start("merge").result()


def _run_stage(scale: ScaleBuild, stage: str, threads: int | None, *arguments: Any) -> None:
    with use_threads(threads):
        getattr(scale, stage)(*arguments)
