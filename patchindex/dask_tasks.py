"""Tasks on a Dask cluster: hand them out, and tell of lost workers in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from patchindex.errors import PatchIndexError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["lost_workers", "submit"]


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
