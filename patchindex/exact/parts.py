"""Parts of the training images, for engines that scan one part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from patchindex.exact.request import ScoreRequest
from patchindex.runtime import part_of
from patchindex.softmax import SoftmaxState

__all__ = ["STAGE", "scan_each"]

STAGE = "exact scan"


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
