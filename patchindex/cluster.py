"""Builds, exact scores and samples on a Dask cluster (the extra `dask`).

The workers of a build go on in its folder, which all have to see; each stage is recorded there, so that what
a lost worker was at is done again by another. For exact scores the training images are held by the workers, a
shard each, and what they find is merged in a tree: no machine has to hold more than its shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchindex.errors import DeviceError, InputError
from patchindex.exact import scan
from patchindex.images import open_images
from patchindex.index.distributed import RETRIES
from patchindex.index.store import open_index, read_attributes
from patchindex.machine import ScoreMachine
from patchindex.patches import Geometry
from patchindex.sampling import SampleResult, starting_noise
from patchindex.sampling import sample as draw
from patchindex.softmax import SoftmaxState
from patchindex.training import TrainingImages

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ImageShards", "connect", "sample"]

SHARD_BYTES = 256 << 20  # of images that a worker holds as one
MERGED = 4  # states at a node of the tree


@contextmanager
def connect(
    address: str = "local", *, workers: int | None = None, threads: int | None = None
) -> Iterator[Client]:
    """Connect to a cluster, or run one here for the while.

    Parameters
    ----------
    address : str
        Of a scheduler, such as `tcp://host:8786`; or `local`, for processes on this machine.
    workers : int, optional
        Processes of a local cluster, by default one for two cores.
    threads : int, optional
        Threads of each, by default its share of the cores.

    Yields
    ------
    distributed.Client

    Raises
    ------
    DeviceError
        When `distributed` is not installed.
    InputError
        When there is no scheduler at the address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise DeviceError(
            "dask is not installed", where="cluster", remedy="pip install 'patchindex[dask]'"
        ) from None
    if address == "local":
        cores = os.cpu_count() or 1
        workers = workers or max(1, cores // 2)
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            Client(cluster) as client,
        ):
            client.run(_set_threads, threads or max(1, cores // workers))
            yield client
        return
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no scheduler answers ({error})", where=address, remedy="start one, or use 'local'"
        ) from error
    with client:
        yield client


def _set_threads(n: int) -> None:
    torch.set_num_threads(n)


# Exact scores.


class ImageShards:
    """Training images that the workers of a cluster hold, for exact scores.

    Parameters
    ----------
    client : distributed.Client
    source : str or Path
        A store, or images as `open_images` takes them; every worker has to see it. A worker that is lost
        takes its shards with it: others read them again.
    labels : str or Path, optional
        As for `open_images`.
    images : int, optional
        Images of a shard; by default 256 MiB of them, and at least a shard for each worker.
    **options
        Of `open_images`: `limit`, `resize`, ...

    Examples
    --------
    >>> import patchindex as pi
    >>> with pi.cluster.connect(workers=2) as client:  # doctest: +SKIP
    ...     shards = pi.cluster.ImageShards(client, "faces.zarr")
    ...     m = pi.ScoreMachine("faces.zarr", estimator="exact", shards=shards)
    ...     images = pi.sample(m, n=4).images
    """

    def __init__(
        self,
        client: Client,
        source: str | os.PathLike[str],
        labels: Any = None,
        *,
        images: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(source, str | os.PathLike):
            raise InputError(
                "workers need a path", where="source", remedy="save the images, and give the path"
            )
        self._client = client
        where = str(source) if "://" in str(source) else os.path.abspath(source)
        self.training = _training(where, labels, options)
        n = len(self.training)
        an_image = int(np.prod(self.training.source.shape[1:]))
        workers = max(1, len(client.scheduler_info()["workers"]))
        step = images or max(1, min(SHARD_BYTES // an_image, -(-n // workers)))
        self._bounds = [(lo, min(lo + step, n)) for lo in range(0, n, step)]
        self._held = [
            client.submit(_read, where, labels, options, lo, hi, pure=False, retries=RETRIES)
            for lo, hi in self._bounds
        ]

    def scan(
        self,
        training: TrainingImages,
        geometry: Geometry,
        x: Tensor,
        a: float,
        beta: float,
        *,
        label: int | None = None,
        progress: Callable[[float], None] | None = None,
        **options: Any,
    ) -> SoftmaxState:
        """Return what `exact.scan` returns, found by the workers."""
        from distributed import as_completed

        lo, hi = training.range_of(label)
        states = [
            self._client.submit(
                _scan, held, max(lo, first) - first, min(hi, stop) - first, geometry, x, a, beta, options,
                pure=False, retries=RETRIES,
            )
            for held, (first, stop) in zip(self._held, self._bounds, strict=True)
            if max(lo, first) < min(hi, stop)
        ]  # fmt: skip
        for done, _ in enumerate(as_completed(states)):
            if progress is not None:
                progress((done + 1) / len(states))
        while len(states) > 1:
            states = [
                self._client.submit(_merged, states[i : i + MERGED], pure=False, retries=RETRIES)
                for i in range(0, len(states), MERGED)
            ]
        return states[0].result()


def _training(where: str, labels: Any, options: dict[str, Any]) -> TrainingImages:
    if "://" not in where and read_attributes(Path(where)) is not None:
        return open_index(where).training
    return TrainingImages(open_images(where, labels=labels, **options))


def _read(where: str, labels: Any, options: dict[str, Any], lo: int, hi: int) -> np.ndarray:
    return _training(where, labels, options).read(lo, hi)


def _scan(
    images: np.ndarray, lo: int, hi: int, geometry: Geometry, x: Tensor, a: float, beta: float, options: Any
) -> SoftmaxState:
    return scan(TrainingImages(images[lo:hi]), geometry, x, a, beta, **options)


def _merged(states: Sequence[SoftmaxState]) -> SoftmaxState:
    first, *others = states
    state = SoftmaxState(*(field.clone() for field in vars(first).values()))
    for other in others:
        state.merge(other)
    return state


# Samples.


def sample(
    client: Client,
    store: str | os.PathLike[str],
    n: int,
    *,
    steps: int = 20,
    sampler: str = "ddim",
    seed: int = 0,
    batch_size: int = 4,
    **machine: Any,
) -> SampleResult:
    """Draw images from a store on a cluster, batch by batch; every worker has to see the store.

    Parameters
    ----------
    client : distributed.Client
    store : str or Path
    n, steps, sampler, seed, batch_size
        As for `patchindex.sample`: the images are the same.
    **machine
        Of `ScoreMachine`: `estimator`, `label`, `tolerance`, ...
    """
    where = os.path.abspath(store)
    here = ScoreMachine(where, **machine)
    noise = starting_noise(here, n, seed, None)
    futures = [
        client.submit(
            _draw, where, machine, noise[first : first + batch_size], first, steps, sampler, seed,
            pure=False, retries=RETRIES,
        )
        for first in range(0, n, batch_size)
    ]  # fmt: skip
    parts: list[SampleResult] = client.gather(futures)
    return SampleResult(
        torch.cat([part.images for part in parts]),
        noise,
        [step for part in parts for step in part.steps],
        parts[0].settings | {"n": n, "x_T": "drawn", "batch_size": batch_size},
    )


def _draw(
    store: str, machine: dict[str, Any], noise: Tensor, first: int, steps: int, sampler: str, seed: int
) -> SampleResult:
    return draw(
        ScoreMachine(store, **machine), None, steps, sampler, seed, noise, batch_size=len(noise), first=first
    )
