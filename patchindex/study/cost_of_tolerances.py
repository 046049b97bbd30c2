"""The cost of a tolerance of `auto`: the expected time of an image, by the operating curves of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from patchindex.checks import check_least
from patchindex.estimators.base import check_tolerance
from patchindex.estimators.curve import OperatingCurve
from patchindex.index import PatchIndex
from patchindex.schedules import cosine

__all__ = ["TOLERANCES", "ImageSeconds", "cost_of_tolerances"]

TOLERANCES = (0.005, 0.01, 0.02, 0.04, 0.08)


class ImageSeconds(NamedTuple):
    """The expected seconds of an image by `auto` to a tolerance, and by `exact`."""

    tolerance: float
    auto: float
    exact: float


def cost_of_tolerances(
    index: PatchIndex, tolerances: Sequence[float] = TOLERANCES, steps: int = 20
) -> list[ImageSeconds]:
    """Return the expected seconds of an image for each tolerance, on the machine that tuned the store.

    `patchindex.sample` takes these steps, with the locality schedule of the store and the paper's noise
    schedule. The time of a step is that of the nearest noise level on the operating curve of its scale.

    Parameters
    ----------
    index : PatchIndex
        A store, as `patchindex.open_index` returns it.
    tolerances : sequence of float
        Tolerances of `auto`, in (0, 2], in units of the images ([-1, 1]).
    steps : int
        Number of grid points, at least 2; a sampler takes one step fewer.

    Returns
    -------
    list of ImageSeconds
        In order of the tolerances. Empty when the store has no locality schedule, or when a scale has no
        operating curve.

    Raises
    ------
    InputError
        When a tolerance is out of range, or there are fewer than two grid points.
    StoreError
        When an operating curve is damaged.

    Examples
    --------
    >>> import tempfile, numpy as np, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (30, 12, 12), np.uint8)
    >>> index = pi.build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=[3], locality=3)
    >>> cost_of_tolerances(index)  # it is not tuned
    []
    """
    check_least(steps=(steps, 2))
    for tolerance in tolerances:
        check_tolerance(tolerance)
    schedule, area = index.locality, index.pixels.shape[1] * index.pixels.shape[2]
    curves = {k: OperatingCurve.of(index.scale(k)) for k in index.scales}
    betas = [cosine(i / steps) for i in range(steps - 1, 0, -1)]
    if schedule is None or any(curves.get(schedule.k(beta)) is None for beta in betas):
        return []
    found = []
    for tolerance in tolerances:
        auto = exact = 0.0
        for i, beta in enumerate(betas):
            curve = curves[schedule.k(beta)]
            assert curve is not None
            auto += area * curve.near_field(beta, tolerance, steps=i > 0)[1]
            exact += area * curve.exact
        found.append(ImageSeconds(tolerance, auto, exact))
    return found
