"""The time of a build: the work of each stage, counted, and the seconds that a unit of work takes.

`stage_seconds` is the one model of time. `build --dry-run` gives it the rates that `measure_rates` finds on
this machine; the time left of a running build needs only ratios of stages, and takes `USUAL`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter as clock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from patchindex.build.merge import Bucket, ListStatistics, write_index
from patchindex.build.plan import BuildPlan, ScalePlan
from patchindex.build.settings import FINGERPRINT_IMAGES, some_images
from patchindex.build.shards import Shards
from patchindex.build.train import (
    LOSS_SAMPLE,
    PCA_SAMPLE,
    SPREAD,
    draw_patches,
    draw_vectors,
    sampled_images,
)
from patchindex.geometry import Geometry, gather_patches
from patchindex.images import ImageSource
from patchindex.index.faiss_file import ID_BYTES, empty_index
from patchindex.index.lists import (
    CELLS_PROBED,
    KMEANS_ITERATIONS,
    TRAINING_PATCHES_PER_LIST,
    InvertedLists,
    cells_of,
    clustering_work,
    k_means,
    list_counts,
)
from patchindex.index.model import ScaleModel, fit_ranges, project_all
from patchindex.index.pca import fit_pca
from patchindex.kernels.codes import CODES
from patchindex.runtime import Progress
from patchindex.store.checksums import crc32c
from patchindex.store.raw import ChecksumWriter

__all__ = ["USUAL", "Rates", "announce", "measure_rates", "stage_seconds"]

T = TypeVar("T")

MEASURED_IMAGES, MEASURED_PATCHES, FIT_PATCHES = 64, 1 << 14, 1024
MEASURED_LISTS, MEASURED_CLUSTERS = 128, 128  # that patches are put into; of one k-means
OVERHEAD = 64
LEAST_SECONDS = 0.05  # of each measurement
LARGE = 1.4  # times as long in a build, as measured: the few patches here stay in the cache
# Of the patches that are written. Fewer patches take a third of the time: they stay in the cache, in memory
# that the process has already.
SORTED_BYTES = 40 << 20
WRITTEN = 8  # times a checksum, as a file is written: two checksums, a copy and the disk
COMPARED = 1e-5  # seconds of the fingerprint of an image
OPENING = 0.4  # seconds for the small files of a scale, which are synchronised and read again


@dataclass(frozen=True)
class Rates:
    """Seconds of a unit of work; a product is one multiplication and one addition.

    To compare a patch with a centroid takes as long as `OVERHEAD` products more than its components.

    Parameters
    ----------
    read : float
        Of an image that is read, written and checksummed.
    fit : float
        Of the principal components, per product of the covariance.
    eigen : float
        Of the principal components, in all.
    draw : float
        Of a patch of the images that training patches are drawn from, besides its projection.
    project : float
        Per product of the projection of patches.
    code : float
        Per component of a patch.
    assign : float
        Per product of a patch and a centroid.
    cluster : float
        Per product of k-means.
    call : float
        Of one k-means, besides its products.
    shard, merge : float
        Per byte of the patches that are written to shards, and to the index.
    """

    read: float = 5e-6
    fit: float = 6e-11
    eigen: float = 0.001
    draw: float = 1e-8
    project: float = 3e-11
    code: float = 1e-9
    assign: float = 1.5e-11
    cluster: float = 3e-11
    call: float = 1e-4
    shard: float = 3e-9
    merge: float = 8e-9


USUAL = Rates()  # of one thread with AVX-512


def stage_seconds(plan: BuildPlan, rates: Mapping[int, Rates] | None = None) -> dict[str, float]:
    """Return the expected seconds of each stage of a build, by the names of the stages in its progress.

    `rates` has the rates of each scale, and under 0 the rate of reading images; the default is `USUAL`.
    """
    rates = rates or {}
    n, height, width, channels = plan.images
    new = n if plan.new_images is None else plan.new_images
    found = {}
    if not plan.adds_scales:
        found["images"] = (n + min(n, FINGERPRINT_IMAGES)) * rates.get(0, USUAL).read
    if plan.new_images is not None:
        found["duplicates"] = n * COMPARED
    for scale in plan.scales:
        geometry = Geometry.of(plan.machine, scale.k, (height, width), plan.train_windows)
        rate, values, code = rates.get(scale.k, USUAL), scale.k**2 * channels, scale.dims + ID_BYTES
        work, name = _Work.of(scale, geometry, n, new), f"k = {scale.k}: "
        if plan.new_images is None:
            fitted = min(PCA_SAMPLE, scale.patches) * values**2
            drawn = sampled_images(n, geometry, work.lists) * geometry.patches_per_image
            projected = drawn * (values * scale.dims * rate.project + rate.draw)
            found[f"{name}drawing patches"] = fitted * rate.fit + rate.eigen + projected
            grouped = work.clustered * rate.cluster + work.calls * rate.call + work.sorted * rate.assign
            found[f"{name}training {work.lists.sum()} lists"] = grouped
        encoded = scale.dims * (values * rate.project + rate.code) + code * rate.shard
        found[f"{name}assigning patches"] = work.patches * encoded + work.assigned * rate.assign
        found[f"{name}merging lists"] = OPENING + scale.patches * code * rate.merge
    return found


def announce(plan: BuildPlan, progress: Progress) -> None:
    """Call the method `expect` of a callback, if it has one: the expected seconds of each stage, the plan."""
    expect = getattr(progress, "expect", None)
    if expect is not None:
        expect(stage_seconds(plan), plan)


@dataclass(frozen=True)
class _Work:
    """The work of a scale: counts of patches, calls and products."""

    lists: np.ndarray  # of each position class
    patches: int  # that are encoded
    clustered: float  # products of k-means
    calls: int  # of k-means
    sorted: float  # products that put the training patches into cells
    assigned: float  # products that put patches into lists

    @classmethod
    def of(cls, scale: ScalePlan, geometry: Geometry, images: int, new: int) -> _Work:
        in_class = np.bincount(geometry.train_classes, minlength=geometry.n_classes)
        lists = list_counts(images * in_class, scale.list_goal)
        cells = np.array([cells_of(int(count)) for count in lists])
        sample = np.minimum(lists * TRAINING_PATCHES_PER_LIST, images * in_class)
        first, inside = clustering_work(sample, lists)
        loss = min(LOSS_SAMPLE, sample.sum()) * (sample / sample.sum() * lists).sum()
        compared = _padded(cells) + np.minimum(CELLS_PROBED, cells) * _padded(lists / cells)
        one = scale.dims + OVERHEAD
        return cls(
            lists=lists,
            patches=new * geometry.patches_per_image,
            clustered=float(one * (KMEANS_ITERATIONS * (first + inside).sum() + loss)),
            calls=int((1 + cells).sum()),
            sorted=float(one * (sample * _padded(cells)).sum()),
            assigned=float(one * new * (in_class * compared).sum()),
        )


def _padded(centroids: Any) -> Any:
    """Return the centroids that a patch is compared with: the kernel compares whole tiles."""
    return np.ceil(np.divide(centroids, CODES)) * CODES


def measure_rates(source: ImageSource, plan: BuildPlan, device: torch.device) -> dict[int, Rates]:
    """Measure how long each unit of the work of a build takes here, on a few images: about a second in all.

    The work is done by the functions of the build. Files are written to a temporary folder.

    Parameters
    ----------
    source : ImageSource
        The images of the build.
    plan : BuildPlan
        From `plan_build`.
    device : torch.device
        The device of the build.

    Returns
    -------
    dict of int to Rates
        The rates of each scale of the plan, and under 0 the rate of reading images, for `stage_seconds`.

    Raises
    ------
    InputError
        When an image cannot be read.

    Examples
    --------
    >>> from patchindex.build import BuildSettings, plan_build
    >>> from patchindex.images import open_images
    >>> source = open_images(np.random.default_rng(0).integers(0, 256, (20, 12, 12), np.uint8))
    >>> plan, _ = plan_build(source, BuildSettings([3]))
    >>> rates = measure_rates(source, plan, torch.device("cpu"))  # doctest: +SKIP
    >>> list(stage_seconds(plan, rates))[:2]  # doctest: +SKIP
    ['images', 'k = 3: drawing patches']
    """
    images, seconds = _timed(lambda: some_images(source, MEASURED_IMAGES))
    pixels = torch.from_numpy(images)
    found = {0: Rates(read=seconds / len(images) + _timed(lambda: crc32c(images))[1] * WRITTEN / len(images))}
    for scale in plan.scales:
        geometry = Geometry.of(plan.machine, scale.k, source.shape[1:3], plan.train_windows)
        found[scale.k] = _measure_scale(pixels, geometry, scale, device)
    return found


def _measure_scale(pixels: Tensor, geometry: Geometry, scale: ScalePlan, device: torch.device) -> Rates:
    dims, values = scale.dims, scale.k**2 * pixels.shape[3]
    images = np.arange(max(1, min(len(pixels), MEASURED_PATCHES // geometry.patches_per_image)))
    ids = torch.from_numpy(draw_patches(geometry, len(pixels), FIT_PATCHES, np.random.default_rng(0)))
    patches = gather_patches(pixels, geometry, ids)
    pca, fitting = _timed(lambda: fit_pca(patches, dims))
    flat = patches.flatten(1).double()
    _, products = _timed(lambda: flat.T @ flat)
    parts, projecting = _timed(lambda: list(project_all(pixels, geometry, pca, device, images)))
    chance = np.full(geometry.patches_per_image, 1 / SPREAD)
    _, drawing = _timed(lambda: draw_vectors(parts, geometry, chance, np.random.default_rng(0)))
    vectors = torch.cat([part for _, _, part in parts])
    sample = np.ascontiguousarray(vectors.cpu().numpy())
    n = len(sample)
    work = _Work.of(replace(scale, list_goal=MEASURED_LISTS), geometry, len(images), len(images))
    classes = np.tile(geometry.train_classes, len(images))
    lists = _some_lists(sample, classes, work.lists, device)
    _, assigning = _timed(lambda: lists.assign(vectors, classes))
    model = ScaleModel(pca, lists, fit_ranges(sample))
    _, coding = _timed(lambda: model.codes(sample))
    sharding, merging = _time_files(model, scale)
    clusters = max(1, min(scale.lists, MEASURED_CLUSTERS, n // TRAINING_PATCHES_PER_LIST))
    one, members = (sample[: m * TRAINING_PATCHES_PER_LIST] for m in (1, clusters))
    cluster = partial(k_means, sample=TRAINING_PATCHES_PER_LIST, seed=0, device=device)
    _, call = _timed(lambda: cluster(one, 1))
    _, clustering = _timed(lambda: cluster(members, clusters))
    return Rates(
        fit=products / (len(patches) * values**2),
        eigen=max(0.0, fitting - products),
        draw=drawing / n,
        project=projecting / (n * values * dims),
        code=coding / (n * dims),
        assign=assigning / work.assigned,
        cluster=max(clustering - call, 0.0)
        / (KMEANS_ITERATIONS * len(members) * clusters * (dims + OVERHEAD)),
        call=call,
        shard=sharding,
        merge=merging,
    )


def _some_lists(
    sample: np.ndarray, classes: np.ndarray, counts: np.ndarray, device: torch.device
) -> InvertedLists:
    """Return lists with some patches as centroids; `counts` has the lists of each position class."""
    chosen, cells, ends = [], [], [np.zeros(1, np.int64)]
    for c, count in enumerate(counts):
        mine = np.resize(np.flatnonzero(classes == c), count)
        edges = np.linspace(0, count, cells_of(int(count)) + 1).round().astype(np.int64)
        chosen.append(mine)
        cells.append(mine[edges[:-1]])
        ends.append(ends[-1][-1] + edges[1:])
    bounds = np.concatenate([[0], np.cumsum(counts)])
    centroids, first = (np.ascontiguousarray(sample[np.concatenate(rows)]) for rows in (chosen, cells))
    return InvertedLists(centroids, bounds, first, np.concatenate(ends), device)


def _time_files(model: ScaleModel, scale: ScalePlan) -> tuple[float, float]:
    """Return the seconds per byte of writing patches to a shard, and from there to an index."""
    dims, record = model.pca.dims, model.pca.dims + ID_BYTES
    n = max(1, min(scale.patches, SORTED_BYTES // record))
    n_lists, images = max(1, round(n / scale.patches * scale.lists)), np.arange(n)  # of a patch each
    rng = np.random.default_rng(0)
    lists, codes = rng.integers(0, n_lists, n, np.int32), rng.integers(0, 256, (n, dims), np.uint8)
    centroids = np.resize(model.lists.centroids, (n_lists, dims))
    with tempfile.TemporaryDirectory(prefix="patchindex-") as folder:
        shards = Shards(Path(folder), n_lists, dims, images, 1)
        start = clock()
        shards.write(0, lists, codes, 0.0)
        middle = clock()
        statistics = ListStatistics(n_lists, dims, np.zeros(n, np.int64), 1)

        def counted() -> Iterator[Bucket]:
            for bucket in shards.merged():
                statistics.add(bucket)
                yield bucket

        with (Path(folder) / "index").open("wb") as file:
            index = empty_index(centroids, model.ranges)
            write_index(ChecksumWriter(file), index, shards.sizes(), counted(), Path(folder))
        return (middle - start) / (n * record), (clock() - middle) / (n * record)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of some work, and its seconds in a build; the first call loads kernels."""
    result, start, repetitions = work(), clock(), 0
    while not repetitions or clock() - start < LEAST_SECONDS:
        result, repetitions = work(), repetitions + 1
    return result, LARGE * (clock() - start) / repetitions
