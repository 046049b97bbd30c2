"""The time of `tune`: the work of each stage, counted, by the cost models of the estimators."""

from __future__ import annotations

import time

import numpy as np
import torch

from patchindex.build import BuildPlan
from patchindex.build.settings import some_images
from patchindex.estimators.neighbours import PAIR_BYTES
from patchindex.exact import ScoreRequest, expected_seconds, scan
from patchindex.exact.request import WORKING_MEMORY
from patchindex.geometry import Geometry
from patchindex.images import ImageSource, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.study.measure import DEFAULT_SETTINGS, TuneSettings

__all__ = ["CURVE_STAGE", "DRAW_STAGE", "measure_slowness", "tuning_seconds"]

DRAW_STAGE, CURVE_STAGE = "images to tune by", "operating curve"

MEASURED_IMAGES = 256
STEPS = 19  # of the images that are drawn
LEVELS = 3  # noise levels of a scale
# Measured, on stores of 2 000 and 6 000 images.
SEARCHED = 0.55  # near fields, in units of the seconds of `AutoPolicy`: these are of a store with many lists
AGAIN = 0.25  # a near field that starts from an earlier one
PRODUCT = 2.2e-10  # seconds of a product in the search for the heaviest patches
SEARCH = 0.004  # seconds of a search of `topk` for all pixels of a noise level


def tuning_seconds(
    plan: BuildPlan, settings: TuneSettings = DEFAULT_SETTINGS, *, slower: float = 1.0
) -> dict[str, float]:
    """Return the expected seconds of each stage of `tune`, by the names of the stages in its progress.

    The seconds are of one thread with AVX-512, times `slower`.
    """
    if not plan.scales:
        return {}
    n, height, width, channels = plan.images
    area, policy = height * width, settings.policy
    first = policy.near_field_seconds(policy.probes, policy.candidates) * SEARCHED
    drawn, curves = 0.0, {}
    for k in (scale.k for scale in plan.scales):
        geometry = Geometry.of(plan.machine, k, (height, width), plan.train_windows)
        exact = expected_seconds(geometry, channels, n, [area]) / area
        step = min(exact, policy.total_cost * first)
        drawn += settings.images * area * step * STEPS / len(plan.scales)
        per_pixel = settings.share * exact
        for size in settings.near[:-1]:  # the last is seldom measured
            seconds = policy.near_field_seconds(*size) * SEARCHED
            per_pixel += (1 + AGAIN) * seconds
            if seconds > exact:
                break
        whole = area * per_pixel
        if policy.near_field_seconds(*settings.near[0]) * SEARCHED < exact:
            fitting = WORKING_MEMORY // (policy.deeper * policy.candidates * PAIR_BYTES)
            whole += area * first + min(area, fitting) * policy.deeper * first
        heaviest = n * geometry.patches_per_image * k**2 * channels * settings.pixels * PRODUCT
        searches = len(settings.probes) * len(settings.candidates) * SEARCH
        timing = 2 * area * exact * min(1, settings.exact_images / n)
        curves[f"k = {k}: {CURVE_STAGE}"] = LEVELS * (settings.images * whole + heaviest + searches) + timing
    return {stage: slower * seconds for stage, seconds in {DRAW_STAGE: drawn, **curves}.items()}


def measure_slowness(source: ImageSource, plan: BuildPlan) -> float:
    """Return the seconds of a short exact scan here, in units of its expected seconds."""
    images = some_images(source, MEASURED_IMAGES)
    geometry = Geometry.of(plan.machine, plan.scales[0].k, images.shape[1:3], plan.train_windows)
    x = np.random.default_rng(0).standard_normal((1, images.shape[3], *images.shape[1:3]), np.float32)
    training = TrainingImages(open_images(images, axes="NHWC"))
    request = ScoreRequest(training, geometry, torch.from_numpy(x), 0.5)
    scan(request)  # loads kernels
    start = time.perf_counter()
    scan(request)
    expected = expected_seconds(geometry, images.shape[3], len(images), [x[0, 0].size])
    return (time.perf_counter() - start) / expected
