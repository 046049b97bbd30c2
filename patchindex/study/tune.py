"""`tune`: measure the operating curve of each scale of a store, and write it into the store.

The noisy images are a few images that the machine itself draws, with fresh noise: estimators see such images
in sampling. For noisy training images, even if each is left out of its own answer, `auto` needs a smaller
sample (docs/decisions/0006-operating-curve.md).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from patchindex.build import BuildPlan
from patchindex.build.workdir import locked, real_path
from patchindex.checks import check_least
from patchindex.denoisers.machine import ScoreMachine
from patchindex.errors import InputError, StoreError
from patchindex.estimators import EstimatorOptions
from patchindex.estimators.curve import OperatingCurve
from patchindex.exact import expected_seconds
from patchindex.geometry import Geometry
from patchindex.index import PatchIndex, open_index
from patchindex.index.layout import scale_group
from patchindex.random_streams import random_stream
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.runtime import threads as use_threads
from patchindex.sampling import sample
from patchindex.schedules import LocalitySchedule, noise_levels
from patchindex.store.checksums import CURVE
from patchindex.study.measure import DEFAULT_SETTINGS, TuneSettings, measure_curve
from patchindex.study.tune_times import CURVE_STAGE, DRAW_STAGE

__all__ = ["exact_is_faster", "fewest_images", "tune"]

SMALLEST, MANY = 3, 4096  # a locality scale, and a number of images

log = logging.getLogger(__name__)


@plain_state()
def tune(
    store: str | Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
    settings: TuneSettings = DEFAULT_SETTINGS,
    progress: Progress | None = None,
) -> PatchIndex:
    """Measure the operating curve of each scale of a store, and return the store, opened.

    Estimators choose their options by the curve. For `auto` it has the cost of near fields and the sample
    that each of them needs; for `topk` it has the share of the softmax that searches find. It is measured at
    the lowest, the middle and the highest noise at which a scale is used, on the CPU. Scales that have a
    curve are skipped.

    Parameters
    ----------
    store : str or Path
        A store that `build_index` made.
    seed : int
        Seed of the images that are drawn, and of their noise.
    threads : int, optional
        CPU threads; by default the number that torch uses.
    overwrite : bool
        Measure again the scales that have a curve.
    settings : TuneSettings
        Sizes to measure: a knob for research.
    progress : callable, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    PatchIndex

    Raises
    ------
    SourceNotFoundError, InputError, StoreError
        As `open_index` does; `InputError` also when a scale has to be measured and the store is read-only.

    Examples
    --------
    >>> import tempfile, numpy as np, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (30, 12, 12), np.uint8)
    >>> path = tempfile.mkdtemp() + "/s.zarr"
    >>> _ = pi.build_index(images, path, scales=[3])
    >>> sorted(tune(path).scale(3).attributes["operating_curve"])
    ['exact', 'images', 'least', 'near', 'scan', 'single', 'top', 'version']
    """
    progress = as_progress(progress)
    check_least(seed=(seed, 0))
    index = open_index(store)
    todo = _unmeasured(index, overwrite)
    if not todo:
        return index
    if not os.access(index.path / scale_group(todo[0]), os.W_OK):
        remedy = "tune a copy that can be written to"
        raise InputError("cannot be written to", where=index.path, remedy=remedy)
    with use_threads(threads), locked(real_path(index.path)):
        index = open_index(store)
        todo = _unmeasured(index, overwrite)
        clean = _draw(index, seed, settings, progress)
        for k in todo:
            betas = noise_levels(k, index.locality)
            betas = sorted({betas[0], betas[len(betas) // 2], betas[-1]})
            rng, stage = random_stream(seed, k), f"k = {k}: {CURVE_STAGE}"
            curve = measure_curve(index, k, betas, clean, rng, settings, partial(progress, stage))
            index.scale(k).save_curve(curve.as_dict())
            log.info("k %d: operating curve measured at %d noise levels", k, len(betas))
    return open_index(store)


def exact_is_faster(index: PatchIndex | BuildPlan, settings: TuneSettings = DEFAULT_SETTINGS) -> bool:
    """Return whether exact scores of all images take less time at every noise than `auto` can.

    `index` is a store, or the plan of a store that is not built yet. If exact scores are faster, an operating
    curve would choose them everywhere, and `patchindex build` does not measure it. At each scale, the time of
    an exact scan is compared with half the time of a near field of the default size: in a
    trajectory, half of the near fields come from the step before. Both times are of one thread, by the cost
    models of the exact scan and of `AutoPolicy`, and depend on the number, the size and the channels of the
    images only.
    """
    if isinstance(index, PatchIndex):
        (n, height, width, channels), scales = index.pixels.shape, index.scales
    else:
        (n, height, width, channels), scales = index.images, tuple(scale.k for scale in index.scales)
    least = _least_seconds(settings) * height * width
    geometries = (Geometry.of(index.machine, k, (height, width), index.train_windows) for k in scales)
    return all(expected_seconds(each, channels, n, [height * width]) < least for each in geometries)


def fewest_images(shape: Sequence[int]) -> int:
    """Return about how many images an index pays from on, at k = 3, for images of a shape (N, H, W, C).

    With fewer images, exact scores take less time than `auto` can; see `exact_is_faster`.
    """
    _, height, width, channels = shape
    area = height * width
    one = expected_seconds(Geometry.of("ELS", SMALLEST, (height, width)), channels, MANY, [area]) / MANY
    return int(float(f"{_least_seconds(DEFAULT_SETTINGS) * area / one:.1e}"))


def _least_seconds(settings: TuneSettings) -> float:
    """Return the seconds per pixel that a near field of the default size takes at least, in a trajectory."""
    policy = settings.policy
    return policy.near_field_seconds(policy.probes, policy.candidates) / 2


def _unmeasured(index: PatchIndex, overwrite: bool) -> list[int]:
    """Return the scales to measure. With `overwrite`, damaged curves are deleted, so that the scales open."""
    if not overwrite:
        return [k for k in index.scales if OperatingCurve.of(index.scale(k)) is None]
    for k in index.scales:
        curve = index.path / scale_group(k) / CURVE
        try:
            index.scale(k)
        except StoreError as error:
            if error.where != curve:
                raise
            curve.unlink()
    return list(index.scales)


def _draw(index: PatchIndex, seed: int, settings: TuneSettings, progress: Progress) -> Tensor:
    """Draw images from the store, by its own schedule or one that takes all scales in turn."""
    schedule = index.locality or LocalitySchedule.of([index.scales[0], *index.scales])
    policy = settings.policy
    options: EstimatorOptions = {"probes": policy.probes, "candidates": policy.candidates, "policy": policy}
    machine = ScoreMachine(index, locality=schedule, estimator="auto", **options)
    progress = part_of(progress, DRAW_STAGE, 0.0, 1.0)
    return sample(machine, settings.images, seed=seed, progress=progress).images
