"""What a build will do, checked and counted before any work is done."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.build.shards import shard_bytes
from patchindex.errors import InputError
from patchindex.geometry import Geometry, gather_patches
from patchindex.images import ImageSource
from patchindex.index.faiss_file import ID_BYTES
from patchindex.index.lists import TRAINING_PATCHES_A_LIST, list_counts, most_lists
from patchindex.index.model import CHUNK_BYTES
from patchindex.index.pca import fit_pca
from patchindex.schedules import LocalitySchedule, noise_levels

__all__ = ["PCA_SAMPLE", "BuildPlan", "ScalePlan", "parse_memory", "plan_append", "plan_build"]

OVERHEAD_BYTES = 16 << 10  # metadata and file headers of a group of the store
PCA_SAMPLE = 20_000  # patches
SURVEY_IMAGES, SURVEY_PATCHES = 512, 8192  # by which the size of codes is chosen
FEWEST_LISTS = 1024  # that memory alone makes of more: with so few a search looks through much


@dataclass(frozen=True)
class ScalePlan:
    """Forecast of one scale; all bytes are upper bounds.

    `list_goal` is the number of lists that position classes share, which rounding makes `lists`; `dims` is
    how many principal components its codes keep, and `scratch_bytes` what it takes on disk beside the store
    while it is built.
    """

    k: int
    patches: int
    list_goal: int
    lists: int
    dims: int
    disk_bytes: int
    scratch_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class BuildPlan:
    """Forecast of a build: what is stored, and the largest memory that a stage takes."""

    machine: str
    train_windows: str
    images: tuple[int, int, int, int]
    images_bytes: int  # with labels and source ids
    scales: tuple[ScalePlan, ...]

    @property
    def disk_bytes(self) -> int:
        """Upper bound of the store's size."""
        return self.images_bytes + sum(scale.disk_bytes for scale in self.scales)

    @property
    def scratch_bytes(self) -> int:
        """Upper bound of what the build takes on disk beside the store."""
        return max([0, *(scale.scratch_bytes for scale in self.scales)])

    @property
    def memory_bytes(self) -> int:
        """Upper bound of the memory that the build needs at any time."""
        return max([2 * CHUNK_BYTES, *(scale.memory_bytes for scale in self.scales)])

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        totals = {name: getattr(self, name) for name in ("disk_bytes", "scratch_bytes", "memory_bytes")}
        return {**asdict(self), **totals}


def plan_build(
    source: ImageSource,
    scales: Sequence[int] | int | None = None,
    *,
    machine: str = "ELS",
    train_windows: str = "valid",
    locality: Any = None,
    pca_dims: int | None = None,
    lists: int | None = None,
    memory: int | None = None,
    beside: Sequence[int] = (),
) -> tuple[BuildPlan, LocalitySchedule | None]:
    """Check a build's settings and forecast it; the arguments are those of `build_index`.

    `beside` are scales that the store has already. With `memory`, in bytes, a scale whose lists would take
    more to train gets half as many, or a quarter, and so on down to 1 024. The plan may need more than that
    all the same: the caller compares.

    Returns
    -------
    BuildPlan
    LocalitySchedule or None
        The schedule that the store will have: `locality`, moved to the nearest of `scales`.

    Raises
    ------
    InputError
        When a setting is not acceptable, or an image cannot be read.
    """
    n, height, width, channels = source.shape
    schedule = None if locality is None else LocalitySchedule.of(locality)
    for name, value in (("pca_dims", pca_dims), ("lists", lists)):
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise InputError(
                f"must be an integer of at least 1, got {value!r}",
                where=name,
                remedy="leave it out for the default",
            )
    if isinstance(scales, int):
        scales = [scales]
    if scales is not None and len(scales) == 0:
        raise InputError("there are none", where="scales", remedy="give at least one, such as 3,5,7")
    wanted = sorted(set(scales if scales is not None else schedule.distinct if schedule else ()))
    geometries = [Geometry.of(machine, k, (height, width), train_windows) for k in wanted]
    if not geometries and Geometry.of(machine, 1, (height, width), train_windows).is_exact is False:
        raise InputError(
            f"{machine} needs them", where="scales", remedy="give scales such as 3,5,7, or a locality"
        )
    if schedule is not None and scales is not None:
        schedule = schedule.nearest(sorted({*wanted, *beside}))
    labels = _label_count(source)
    indexed = [g for g in geometries if not g.is_exact]
    survey = None if pca_dims or not indexed else _survey(source)
    planned = []
    for geometry in indexed:
        pixels = geometry.k**2 * channels
        dims = min(pca_dims or pixels, pixels)
        goal = lists or most_lists(n * geometry.patches_per_image)
        if survey is not None:
            noise = noise_levels(geometry.k, schedule)[0]
            dims = fit_pca(_patches(survey, geometry), noise=noise).dims
        scale = _plan_scale(geometry, source, labels, dims, goal)
        while lists is None and memory is not None and scale.memory_bytes > memory and goal > FEWEST_LISTS:
            goal = max(FEWEST_LISTS, goal // 2)
            scale = _plan_scale(geometry, source, labels, dims, goal)
        planned.append(scale)
    plan = BuildPlan(machine, train_windows, source.shape, _images_bytes(source, labels), tuple(planned))
    return plan, schedule


def plan_append(
    source: ImageSource, machine: str, train_windows: str, scales: Sequence[tuple[Geometry, int, int]]
) -> BuildPlan:
    """Forecast a store of all images of a source that has been trained for some of them.

    Parameters
    ----------
    source : ImageSource
    machine, train_windows : str
    scales : sequence of (Geometry, int, int)
        With code size and number of lists of each.
    """
    labels = _label_count(source)
    planned = [
        _forecast(geometry, source, labels, dims, lists, lists, trained=True)
        for geometry, dims, lists in scales
    ]
    return BuildPlan(machine, train_windows, source.shape, _images_bytes(source, labels), tuple(planned))


def _label_count(source: ImageSource) -> int:
    return 0 if source.labels is None else len(np.unique(source.labels))


def _images_bytes(source: ImageSource, labels: int) -> int:
    n, height, width, channels = source.shape
    # An image has its number in the source and its label beside it; the labels are listed once more.
    return n * (height * width * channels + 16) + 32 * labels + OVERHEAD_BYTES


def _plan_scale(geometry: Geometry, source: ImageSource, labels: int, dims: int, goal: int) -> ScalePlan:
    by_class = len(source) * np.bincount(geometry.train_classes, minlength=geometry.n_classes)
    return _forecast(geometry, source, labels, dims, goal, int(list_counts(by_class, goal).sum()))


def _forecast(
    geometry: Geometry,
    source: ImageSource,
    labels: int,
    dims: int,
    goal: int,
    n_lists: int,
    trained: bool = False,
) -> ScalePlan:
    images, _, _, channels = source.shape
    patches = images * geometry.patches_per_image
    pixels = geometry.k**2 * channels
    # A list has its centroid in the FAISS file and beside it, a mean and variances, its length, and a count a
    # label; there are fewer cells than lists, each with a centroid and a bound.
    a_list = 5 * 4 * dims + 8 * (2 + max(labels, 1))
    small = 4 * pixels * (dims + 1) + 24 * dims + 8 * geometry.n_classes + OVERHEAD_BYTES
    stored = patches * (dims + ID_BYTES) + n_lists * a_list + small
    # On its way into the lists a patch is a record of a shard, which has the length of each list too.
    an_image = geometry.patches_per_image * (dims + ID_BYTES)
    a_shard = min(max(an_image, shard_bytes(images * an_image)), images * an_image)
    shards = -(-images // (a_shard // an_image))
    # Ids of a list that is larger than what is merged at a time wait beside its codes: at worst all of them.
    scratch = patches * (dims + 2 * ID_BYTES) + shards * (4 * n_lists + OVERHEAD_BYTES)
    # Training holds a sample with copies of a class and of a cell, and the covariance of patches; encoding a
    # shard, and that in order; merging as much of all shards, while exact sums of all lists grow.
    sample = 4 * n_lists * TRAINING_PATCHES_A_LIST * dims
    training = 0 if trained else 3 * sample + 8 * (2 * PCA_SAMPLE * pixels + 5 * pixels**2)
    # Centroids are held in tiles once more, and counts by label are copied as they are written; of a store
    # that is appended to, two scales are open.
    held = n_lists * ((3 if trained else 1) * a_list + 8 * dims + 16 * labels)
    held += 48 * images  # labels and numbers of images, several times
    memory = max(training, 3 * a_shard + 16 * n_lists * dims) + held + 2 * CHUNK_BYTES
    return ScalePlan(geometry.k, patches, goal, n_lists, dims, stored, scratch, memory)


def _survey(source: ImageSource) -> Tensor:
    """Return images spread evenly over a source."""
    some = np.linspace(0, len(source) - 1, min(SURVEY_IMAGES, len(source))).astype(int)
    return torch.from_numpy(source.read(some))


def _patches(images: Tensor, geometry: Geometry) -> Tensor:
    """Return patches spread at random over some images, (n, k, k, C)."""
    total = len(images) * geometry.patches_per_image
    ids = np.random.default_rng(geometry.k).choice(total, min(SURVEY_PATCHES, total), replace=False)
    return gather_patches(images, geometry, torch.from_numpy(np.sort(ids)))


def parse_memory(memory: int | str | None) -> int:
    """Return a memory budget in bytes.

    Parameters
    ----------
    memory : int, str or None
        Bytes, or a number with a unit: `"500M"`, `"4G"`, `"4GiB"`. None means half of the machine's memory.

    Raises
    ------
    InputError
        When it is neither.

    Examples
    --------
    >>> parse_memory("1.5G")
    1610612736
    """
    if memory is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(memory).strip(), re.IGNORECASE)
    value = float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ") if found else 0
    if value < 1:
        raise InputError(f"{memory!r} is no amount of memory", where="memory", remedy="use 500M, 4G, ...")
    return int(value)
