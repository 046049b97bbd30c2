"""Builds, exact scores and samples on a Dask cluster (the extra `dask`).

The workers of a build write to its folder, which all of them must see. The folder records each finished
stage, so another worker repeats the stage of a lost worker. For exact scores each worker holds a shard of the
training images, and the softmax states are merged in a tree: no machine holds more than its shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack
from uuid import uuid4

import numpy as np

from patchindex.checks import check_optional
from patchindex.dask_local import local_cluster
from patchindex.dask_tasks import lost_workers, on_workers, submit
from patchindex.denoisers.from_images import is_store
from patchindex.denoisers.machine import MachineOptions, ScoreMachine
from patchindex.errors import DeviceError, InputError, PatchIndexError
from patchindex.exact import ScoreRequest, Shards
from patchindex.exact.shards import in_tree, merged, scan_shard, settings_of
from patchindex.images import KNOWN_SETS, ImageOptions, LabelsLike, LabelSpec, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.index.patch_index import open_index
from patchindex.runtime import Progress, as_progress, check_threads
from patchindex.sampling import SampleResult, Sampling
from patchindex.softmax import SoftmaxState
from patchindex.store.checksums import fingerprint
from patchindex.store.remote import is_url

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ImageShards", "connect", "draw_batches", "sample"]

SHARD_BYTES = 256 << 20  # images of a shard
COMPARED = 64  # images whose contents tell two data sets apart


@contextmanager
def connect(
    address: str = "local", *, workers: int | None = None, threads: int | None = None
) -> Iterator[Client]:
    """Connect to a cluster, or run one on this machine inside the block.

    Parameters
    ----------
    address : str
        Address of a scheduler, such as `tcp://host:8786`, or `local` for processes on this machine.
    workers : int, optional
        Processes of a local cluster; by default one for two cores.
    threads : int, optional
        Threads of each worker of a local cluster; by default its share of the cores.

    Yields
    ------
    distributed.Client

    Raises
    ------
    DeviceError
        When `distributed` is not installed.
    InputError
        When no scheduler answers at the address, or `workers` or `threads` are given for a cluster that
        is not local.

    Examples
    --------
    >>> import patchindex as pi
    >>> with pi.cluster.connect(workers=2) as client:  # doctest: +SKIP
    ...     index = pi.build_index("faces", "faces.zarr", scales=[3, 5], client=client)
    """
    check_threads(threads)
    check_optional(workers=(workers, 1))
    try:
        from distributed import Client
    except ImportError:
        raise DeviceError(
            "dask is not installed", where="cluster", remedy="pip install 'patchindex[dask]'"
        ) from None
    if address == "local":
        with local_cluster(workers, threads) as client:
            yield client
        return
    for name, value in {"workers": workers, "threads": threads}.items():
        if value is not None:
            raise InputError(
                "applies to local clusters only",
                parameter=name,
                remedy=f"set it when you start the workers of {address}, and leave it out here",
            )
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no scheduler answers ({error})", where=address, remedy="start one, or use 'local'"
        ) from error
    with client:
        yield client


def _place(source: Any) -> Any:
    """Return a source with absolute paths, as every process finds it."""
    if isinstance(source, list | tuple) and source:
        return [_place(each) for each in source]
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "workers need a path", parameter="source", remedy="save the images, and give the path"
        )
    path = os.fspath(source)
    return path if is_url(path) or path in KNOWN_SETS else os.path.abspath(path)


# Exact scores.


class ImageShards(Shards):
    """Training images that the workers of a cluster hold, for exact scores.

    Parameters
    ----------
    client : distributed.Client
    source : str, Path, or sequence of such
        A store, or images as `open_images` takes them; every worker must see it. When a worker is lost, other
        workers read its shards again. Each process opens the source once, and holds a .npz or .gz file whole.
    labels : array of int, str or Path, optional
        As for `open_images`. A store has its own.
    images : int, optional
        Images of a shard; by default 256 MiB, or fewer so that each worker has a shard.
    **options
        Of `open_images`: `limit`, `resize`, ...; not for a store.

    Raises
    ------
    InputError
        When the source is not a path, or cannot be opened, or is a store and there are labels or options.

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
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        labels: LabelsLike | None = None,
        *,
        images: int | None = None,
        **options: Unpack[ImageOptions],
    ) -> None:
        check_optional(images=(images, 1))
        self._client = client
        where = _place(source)
        labels = None if labels is None else LabelSpec.parse(labels).absolute()
        here = _Images(where, labels, options)
        self.training, self._fingerprint = here.training, here.fingerprint
        there = _Source(uuid4().hex, where, labels, options, self._fingerprint)
        n = len(self.training)
        an_image = int(np.prod(self.training.source.shape[1:]))
        workers = max(1, len(client.nthreads()))
        step = images or max(1, min(SHARD_BYTES // an_image, -(-n // workers)))
        self._bounds = [(lo, min(lo + step, n)) for lo in range(0, n, step)]
        self._held = [submit(client, _read, there, lo, hi) for lo, hi in self._bounds]

    def check(self, training: TrainingImages) -> None:
        """Refuse training images that differ in shape, labels, numbers or a few evenly spaced images."""
        ours, theirs = self._fingerprint, _fingerprint(training, training.read)
        if ours["shape"] != theirs["shape"]:
            raise InputError(
                f"have shape {ours['shape']}, the machine's images {theirs['shape']}",
                parameter="shards",
                remedy="make them of the same images",
            )
        for name in ("labels", "source_ids", "images"):
            if ours[name] != theirs[name]:
                raise InputError(
                    f"have other {name} than the machine's images",
                    parameter="shards",
                    remedy="make them of the same images and labels",
                )

    def scan(self, request: ScoreRequest) -> SoftmaxState:
        """Return the state of `exact.scan`, computed by the workers."""
        from distributed import as_completed

        (lo, hi), client = request.image_range, self._client
        # Workers hold the images already, and cannot report progress.
        settings = settings_of(request)
        states = [
            submit(client, scan_shard, held, settings)
            for held, (first, stop) in zip(self._held, self._bounds, strict=True)
            if max(lo, first) < min(hi, stop)
        ]
        for done, _ in enumerate(as_completed(states), 1):
            request.progress("exact scan", done, len(states))
        with lost_workers("make smaller shards"):
            state: SoftmaxState = in_tree(states, lambda some: submit(client, merged, some)).result()
        return state


class _Images:
    """Training images that this process has opened."""

    def __init__(self, where: Any, labels: LabelSpec | None, options: ImageOptions) -> None:
        self._index = open_index(where) if is_store(where) else None
        if self._index is None:
            self.training = TrainingImages(open_images(where, labels=labels, **options))
        else:
            for name, value in {"labels": labels, **options}.items():
                if value is not None:
                    raise InputError(
                        "is fixed in the store",
                        parameter=name,
                        remedy="leave it out, or give the images themselves",
                    )
            self.training = self._index.training
        self.fingerprint = _fingerprint(self.training, self.read) | {"skipped": self.training.source.skipped}

    def read(self, lo: int, hi: int) -> np.ndarray:
        """Return images [lo, hi); a store's images are checked against their checksums."""
        if self._index is not None:
            self._index.check_images(lo, hi)
        return self.training.read(lo, hi)


def _fingerprint(training: TrainingImages, read: Callable[[int, int], np.ndarray]) -> dict[str, Any]:
    """Return shape and hashes that tell data sets apart."""
    some = np.unique(np.linspace(0, len(training) - 1, COMPARED).astype(int))
    return {
        "shape": training.source.shape,
        "images": fingerprint(np.concatenate([read(i, i + 1) for i in some])),
        "labels": None if training.labels is None else fingerprint(training.labels),
        "source_ids": fingerprint(training.source_ids),
    }


@dataclass(frozen=True)
class _Source:
    """A source that each worker opens once; the number tells it from a later source at the same path."""

    number: str
    where: Any = field(compare=False)
    labels: LabelSpec | None = field(compare=False)
    options: ImageOptions = field(compare=False)
    fingerprint: dict[str, Any] = field(compare=False)


@lru_cache(maxsize=1)
def _opened(source: _Source) -> _Images:
    images = _Images(source.where, source.labels, source.options)
    # A file that only this worker cannot read would shift the numbers of all images behind it.
    for name, value in images.fingerprint.items():
        if value != source.fingerprint[name]:
            raise PatchIndexError(
                f"a worker finds other images ({name})",
                where=images.training.source.name,
                remedy="let all workers see the same files, with the same permissions",
            )
    return images


def _read(source: _Source, lo: int, hi: int) -> TrainingImages:
    """Return images [lo, hi) in label order, in memory."""
    images = _opened(source)
    labels = None if images.training.labels is None else images.training.labels[lo:hi]
    some = open_images(images.read(lo, hi), labels=labels, axes="NHWC")
    return TrainingImages(some, source_ids=images.training.source_ids[lo:hi])


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
    **machine: Unpack[MachineOptions],
) -> SampleResult:
    """Draw images from a store on a cluster, batch by batch; every worker must see the store.

    Parameters
    ----------
    client : distributed.Client
    store : str or Path
        A path, or a URL that each machine copies.
    n, steps, sampler, seed, batch_size
        As for `patchindex.sample`, which draws the same images.
    **machine
        Options of `ScoreMachine`: `estimator`, `label`, `tolerance`, ...

    Returns
    -------
    SampleResult
        `images` is a Tensor of shape (n, C, H, W), in [-1, 1].

    Raises
    ------
    InputError
        As from `patchindex.sample` and `ScoreMachine`.
    PatchIndexError
        When too many workers are lost.

    Examples
    --------
    >>> import patchindex as pi
    >>> with pi.cluster.connect(workers=2) as client:  # doctest: +SKIP
    ...     images = pi.cluster.sample(client, "faces.zarr", n=16, label=3).images
    """
    sampling = Sampling(
        ScoreMachine(_place(store), **machine), n, steps, sampler, seed, batch_size=batch_size
    )
    drawn = dict(draw_batches(client, sampling, sampling.batches))
    return SampleResult.cat([drawn[batch] for batch in sampling.batches])


def draw_batches(
    client: Client, sampling: Sampling, batches: Sequence[tuple[int, int]], progress: Progress | None = None
) -> Iterator[tuple[tuple[int, int], SampleResult]]:
    """Draw batches of images on a cluster; yield each batch with its images when it is drawn.

    Parameters
    ----------
    client : distributed.Client
    sampling : Sampling
        Its denoiser is sent to the workers. A store is sent as its path, which every worker must see; images
        of a .npz or .gz file, and a network, are sent whole.
    batches : sequence of (int, int)
        Of `sampling.batches`, or of `sampling.batches_of`.
    progress : Progress, optional
        Called as `progress("sampling", done, total)`, in batches.

    Yields
    ------
    (int, int), SampleResult
        A batch [lo, hi), and its images lo to hi - 1, in the order in which batches end.

    Raises
    ------
    InputError
        As from `Sampling.draw`.
    PatchIndexError
        When too many workers are lost, or as from `Sampling.draw`.

    Examples
    --------
    >>> import patchindex as pi
    >>> from patchindex.sampling import Sampling
    >>> sampling = Sampling(pi.ScoreMachine("faces.zarr"), n=16)  # doctest: +SKIP
    >>> with pi.cluster.connect(workers=2) as client:  # doctest: +SKIP
    ...     for (lo, hi), result in pi.cluster.draw_batches(client, sampling, sampling.batches):
    ...         print(lo, hi, result.images.shape)
    """
    count = partial(as_progress(progress), "sampling")
    yield from on_workers(client, _draw, sampling, batches, count, "draw again in smaller batches")


def _draw(sampling: Sampling, lo: int, hi: int) -> SampleResult:
    return sampling.draw(lo, hi)
