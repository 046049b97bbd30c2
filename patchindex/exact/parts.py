"""Parts of the training images, for engines that scan one part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from patchindex.errors import InputError
from patchindex.exact.request import ScoreRequest
from patchindex.runtime import part_of
from patchindex.softmax import SoftmaxState

__all__ = ["STAGE", "check_bounds", "scan_each"]

STAGE = "exact scan"


def check_bounds(request: ScoreRequest, bounds: Sequence[int]) -> None:
    """Refuse the bounds of parts that are empty, or not of the request's images."""
    lo, hi = request.image_range
    pairs = list(pairwise(bounds))
    if not pairs or bounds[0] < 0 or bounds[-1] > hi - lo or any(a >= b for a, b in pairs):
        raise InputError(
            f"must ascend within 0 to {hi - lo}, got {list(bounds)!r:.60}",
            parameter="bounds",
            remedy="give the first image of each part and the end of the last part",
        )


def scan_each(
    scan: Callable[[ScoreRequest], SoftmaxState], request: ScoreRequest, bounds: Sequence[int]
) -> SoftmaxState:
    """Return the states of the parts of a request, (P, B, H, W), by one call of an engine's scan for each."""
    lo, hi = request.image_range
    if list(bounds) == [0, hi - lo]:
        return scan(request)[None]
    first, total = bounds[0], bounds[-1] - bounds[0]
    states = []
    for a, b in pairwise(bounds):
        progress = part_of(request.progress, STAGE, (a - first) / total, (b - first) / total)
        training = request.training.select(slice(lo + a, lo + b))
        states.append(scan(replace(request, training=training, label=None, progress=progress))[None])
    return SoftmaxState.cat(states)
