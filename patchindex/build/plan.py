"""The plan of a build: its settings are checked, and its memory and disk are counted, before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from patchindex.build.settings import BuildSettings, some_images
from patchindex.build.shards import shard_bytes
from patchindex.build.train import PCA_SAMPLE, draw_patches
from patchindex.checks import check_optional
from patchindex.errors import InputError, Option
from patchindex.geometry import Geometry, gather_patches
from patchindex.images import ImageSource
from patchindex.index.faiss_file import ID_BYTES
from patchindex.index.lists import TRAINING_PATCHES_PER_LIST, list_counts, most_lists
from patchindex.index.model import CHUNK_BYTES
from patchindex.index.patch_index import PatchIndex
from patchindex.index.pca import fit_pca
from patchindex.runtime import memory_limit
from patchindex.schedules import LocalitySchedule, noise_levels

__all__ = ["BuildPlan", "ScalePlan", "parse_memory", "plan_append", "plan_build"]

OVERHEAD_BYTES = 16 << 10  # metadata and file headers of a zarr group
SURVEY_IMAGES, SURVEY_PATCHES = 512, 8192  # sample that the code size is chosen by
FEWEST_LISTS = 1024  # a small memory budget reduces the lists to no fewer: searches become slow


@dataclass(frozen=True)
class ScalePlan:
    """Forecast of one scale. All bytes are upper bounds."""

    k: int
    patches: int
    list_goal: int  # lists that the position classes share
    lists: int  # after rounding in each class
    dims: int  # principal components in a code
    disk_bytes: int  # in the store
    scratch_bytes: int  # beside the store, during the build
    memory_bytes: int


@dataclass(frozen=True)
class BuildPlan:
    """Forecast of a build: the size of the store, and the peak memory of the build."""

    machine: str
    train_windows: str
    images: tuple[int, int, int, int]
    images_bytes: int  # with labels, source ids and file names
    scales: tuple[ScalePlan, ...]
    adds_scales: bool = False  # to a store that is there
    new_images: int | None = None  # that are appended to a store; None for other builds

    @property
    def disk_bytes(self) -> int:
        """Upper bound of the store's size."""
        return self.images_bytes + sum(scale.disk_bytes for scale in self.scales)

    @property
    def scratch_bytes(self) -> int:
        """Upper bound of the temporary disk space of the build."""
        return max([0, *(scale.scratch_bytes for scale in self.scales)])

    @property
    def memory_bytes(self) -> int:
        """Upper bound of the peak memory of the build."""
        return max([2 * CHUNK_BYTES, *(scale.memory_bytes for scale in self.scales)])

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        totals = {name: getattr(self, name) for name in ("disk_bytes", "scratch_bytes", "memory_bytes")}
        return {**asdict(self), **totals}


def plan_build(
    source: ImageSource,
    settings: BuildSettings,
    *,
    memory: int | None = None,
    beside: Sequence[int] = (),
    assume_images: int | None = None,
) -> tuple[BuildPlan, LocalitySchedule | None]:
    """Check the settings of a build against its images; return the forecast and the store's schedule.

    Parameters
    ----------
    source : ImageSource
        The images; up to 512 of them are read.
    settings : BuildSettings
    memory : int, optional
        Budget in bytes. While training the default number of lists needs more, the number is halved, down to
        1 024; the caller compares the plan with the budget.
    beside : sequence of int
        Scales that the store has already.
    assume_images : int, optional
        Number of images of the whole set, if the source is a sample of it.

    Returns
    -------
    BuildPlan
        The scales with their patches and lists, and upper bounds of memory and disk in bytes.
    LocalitySchedule or None
        The schedule of the settings, moved to the nearest scales of the store.

    Raises
    ------
    InputError
        When the settings do not fit each other or the images.

    Examples
    --------
    >>> from patchindex.images import open_images
    >>> source = open_images(np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8))
    >>> plan, schedule = plan_build(source, BuildSettings([3, 5]))
    >>> [(scale.k, scale.patches) for scale in plan.scales], schedule
    ([(3, 800), (5, 512)], None)
    """
    height, width, channels = source.shape[1:]
    check_optional(assume_images=(assume_images, 1))
    if assume_images is not None and assume_images < len(source):
        raise InputError(
            f"{assume_images:,} images are fewer than the {len(source):,} of the source",
            parameter="assume_images",
            remedy="give the number of images of the whole set",
        )
    images = _Images.of(source, assume_images)
    machine, schedule, scales = settings.machine, settings.locality, settings.scales
    if scales is not None and len(scales) == 0:
        raise InputError("the sequence is empty", parameter="scales", remedy="give scales such as 3,5,7")
    wanted = sorted(set(scales if scales is not None else schedule.distinct if schedule else ()))
    geometries = [Geometry.of(machine, k, (height, width), settings.train_windows) for k in wanted]
    if not geometries and Geometry.of(machine, 1, (height, width), settings.train_windows).is_exact is False:
        raise InputError(
            f"{machine} needs scales",
            parameter="scales",
            remedy=["give scales such as 3,5,7, or a ", Option("locality")],
        )
    if schedule is not None and scales is not None:
        schedule = schedule.nearest(sorted({*wanted, *beside}))
    if schedule is not None and machine != "IS":
        schedule.check_image_size((height, width))
    indexed = [geometry for geometry in geometries if not geometry.is_exact]
    survey = (
        None if settings.pca_dims or not indexed else torch.from_numpy(some_images(source, SURVEY_IMAGES))
    )
    planned = []
    for geometry in indexed:
        pixels = geometry.k**2 * channels
        dims = min(settings.pca_dims or pixels, pixels)
        goal = settings.lists or most_lists(images.number * geometry.patches_per_image)
        if survey is not None:
            noise = noise_levels(geometry.k, schedule)[0]
            rng = np.random.default_rng(geometry.k)
            ids = torch.from_numpy(draw_patches(geometry, len(survey), SURVEY_PATCHES, rng))
            dims = fit_pca(gather_patches(survey, geometry, ids), noise=noise).dims
        scale = _forecast(geometry, images, dims, goal)
        adjustable = settings.lists is None and memory is not None
        while adjustable and scale.memory_bytes > memory and goal > FEWEST_LISTS:  # type: ignore[operator]
            goal = max(FEWEST_LISTS, goal // 2)
            scale = _forecast(geometry, images, dims, goal)
        planned.append(scale)
    return _plan(images, machine, settings.train_windows, planned), schedule


def plan_append(source: ImageSource, old: PatchIndex) -> BuildPlan:
    """Forecast a store of all images of a source, with the trained scales of an old store."""
    planned, images = [], _Images.of(source)
    for k in old.scales:
        trained = old.scale(k).attributes
        dims, lists = trained["pca_dims"], trained["lists"]
        planned.append(_forecast(old.geometry(k), images, dims, lists, trained=True))
    plan = _plan(images, old.machine, old.train_windows, planned)
    return replace(plan, new_images=len(source) - len(old.training))


class _Images(NamedTuple):
    """The images of a plan."""

    number: int
    size: tuple[int, int, int]  # height, width, channels
    labels: int  # different labels
    names_bytes: int

    @classmethod
    def of(cls, source: ImageSource, count: int | None = None) -> _Images:
        """Return the images of a source, or of `count` images like them."""
        n, height, width, channels = source.shape
        count = count or n
        labels = 0 if source.labels is None else len(np.unique(source.labels))
        names = source.file_names
        names_bytes = 0 if names is None else names.nbytes * count // n + OVERHEAD_BYTES
        return cls(count, (height, width, channels), labels, names_bytes)


def _plan(images: _Images, machine: str, train_windows: str, scales: Sequence[ScalePlan]) -> BuildPlan:
    # Each image has a source id and a label; each label is listed once more.
    stored = images.number * (math.prod(images.size) + 16) + 32 * images.labels + OVERHEAD_BYTES
    shape = (images.number, *images.size)
    return BuildPlan(machine, train_windows, shape, stored + images.names_bytes, tuple(scales))


def _forecast(geometry: Geometry, of: _Images, dims: int, goal: int, *, trained: bool = False) -> ScalePlan:
    """Forecast a scale; `goal` is the wanted number of lists, or their number in a `trained` scale."""
    images, channels, labels = of.number, of.size[2], of.labels
    by_class = images * np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    n_lists = goal if trained else int(list_counts(by_class, goal).sum())
    patches = images * geometry.patches_per_image
    pixels = geometry.k**2 * channels
    # A list has a centroid in the FAISS file and another in the store, a mean, variances, a length, and a
    # count per label. There are fewer cells than lists; a cell has a centroid and a bound.
    a_list = 5 * 4 * dims + 8 * (2 + max(labels, 1))
    small = 4 * pixels * (dims + 1) + 24 * dims + 8 * geometry.n_classes + OVERHEAD_BYTES
    stored = patches * (dims + ID_BYTES) + n_lists * a_list + small
    # Each patch is first a record of a shard. A shard also holds the size of each list.
    an_image = geometry.patches_per_image * (dims + ID_BYTES)
    a_shard = min(max(an_image, shard_bytes(images * an_image)), images * an_image)
    shards = -(-images // (a_shard // an_image))
    # Merging keeps the ids of a list that is larger than a bucket in a temporary file: at worst all ids.
    scratch = patches * (dims + 2 * ID_BYTES) + shards * (4 * n_lists + OVERHEAD_BYTES)
    # Training holds a sample, copies of one class and of some cells, and a covariance. Encoding holds a shard
    # and its sorted copy. Merging holds a bucket, its sorted copy, and exact sums of all lists.
    sample = 4 * n_lists * TRAINING_PATCHES_PER_LIST * dims
    training = 0 if trained else 3 * sample + 8 * (2 * PCA_SAMPLE * pixels + 5 * pixels**2)
    # Centroids are also held in tiles, and counts by label are copied when they are written. Appending opens
    # the scale of the old store as well.
    held = n_lists * ((3 if trained else 1) * a_list + 8 * dims + 16 * labels)
    held += 48 * images  # several copies of labels and image ids
    memory = max(training, 3 * a_shard + 16 * n_lists * dims) + held + 2 * CHUNK_BYTES
    return ScalePlan(geometry.k, patches, goal, n_lists, dims, stored, scratch, memory)


def parse_memory(memory: int | str | None) -> int:
    """Return a memory budget in bytes; `memory` is a number, `"500M"`, `"4G"`, or `"4GiB"`.

    The default is half of the memory that the process may use.
    """
    if memory is None:
        return memory_limit() // 2
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(memory).strip(), re.IGNORECASE)
    value = float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ") if found else 0
    if not 1 <= value < math.inf:
        raise InputError(
            f"{memory!r} is not an amount of memory", parameter="memory", remedy="use 500M, 4G, ..."
        )
    return int(value)
