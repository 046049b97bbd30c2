"""A Dask cluster of processes on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from distributed import Client, LocalCluster, WorkerPlugin

__all__ = ["local_cluster"]

log = logging.getLogger(__name__)

REPLACED = 30  # seconds to wait for the process that replaces a lost worker


@contextmanager
def local_cluster(workers: int | None, threads: int | None) -> Iterator[Client]:
    """Run a cluster inside the block; by default, a worker has two cores and its share of the threads."""
    from distributed import Client, LocalCluster

    cores = os.cpu_count() or 1
    workers = workers or max(1, cores // 2)
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(_same_threads(threads or max(1, cores // workers)))
        try:
            yield client
        except Exception:  # not after Ctrl-C
            _wait_for_replacements(cluster)
            raise
        _wait_for_replacements(cluster)


def _wait_for_replacements(cluster: LocalCluster) -> None:
    """Wait until a local cluster has as many workers as it should have, but for at most `REPLACED` seconds.

    A cluster that closes while it starts a process can raise AssertionError (seen with distributed 2026.8).
    """
    if cluster.status.name != "running":
        return  # closed in the block
    try:
        cluster.wait_for_workers(max(1, len(cluster.worker_spec)), timeout=REPLACED)
    except (OSError, RuntimeError) as error:  # also TimeoutError; the cluster closes all the same
        log.warning("lost workers of the local cluster were not replaced: %r", error)


def _same_threads(n: int) -> WorkerPlugin:
    """Return a plugin that sets the threads of every worker, also of workers that join later."""
    from distributed import WorkerPlugin

    class SameThreads(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            torch.set_num_threads(n)

    return SameThreads()
