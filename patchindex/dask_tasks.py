"""Tasks on a Dask cluster: submit tasks, collect results, and report lost workers in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from patchindex.errors import Option, PatchIndexError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["lost_workers", "on_workers", "submit"]


def submit(client: Client, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Submit a task to the workers.

    When a worker is lost, the scheduler gives its tasks to other workers, up to
    `distributed.scheduler.allowed-failures` times per task. A task that raises is not tried again.
    """
    return client.submit(function, *arguments, pure=False, retries=0)


def on_workers(
    client: Client,
    function: Callable[..., Any],
    shared: Any,
    tasks: Sequence[tuple[Any, ...]],
    progress: Callable[[int, int], object],
    *then: str | Option,
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each task with `function(shared, *task)`, in the order in which the workers finish.

    A worker gets `shared` once for all tasks. Results that are taken leave the memory of workers. Progress
    counts finished tasks; `then` is as for `lost_workers`.
    """
    from distributed import as_completed

    progress(0, len(tasks))
    with lost_workers(*then):
        held = submit(client, _same, shared)  # not scattered: scattered data are lost with their worker
        futures = {submit(client, function, held, *task): task for task in tasks}
        for done, (future, result) in enumerate(as_completed(list(futures), with_results=True), 1):
            progress(done, len(tasks))
            yield futures.pop(future), result


def _same(shared: Any) -> Any:
    return shared


@contextmanager
def lost_workers(*then: str | Option) -> Iterator[None]:
    """Turn the loss of a task in the block into one line; `then` says what to do after looking into it."""
    from distributed import CancelledError
    from distributed.scheduler import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise PatchIndexError(
            f"a task was lost with each of {error.allowed_failures + 1} workers, perhaps for lack of memory",
            where="cluster",
            remedy=["look into the logs of the workers, and ", *then],
        ) from error
    except CancelledError as error:
        raise PatchIndexError(
            "a task was cancelled, or the scheduler is lost",
            where="cluster",
            remedy=["connect again, and ", *then],
        ) from error
