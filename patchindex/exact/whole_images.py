"""The exact scan of IS: one matrix product compares whole images with a block of training images.

All pixels of an image share their distances, so there is one softmax over images whose centres are images:

    logit_j = a/beta <x, v_j> - a^2/(2 beta) |v_j|^2

which is `-|x - a v_j|^2 / (2 beta)` without the query's own norm; the end of the scan subtracts it. The mean
of some training images is subtracted from x / a and v_j: the distances stay, and their rounding error falls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchindex.devices import to_float64
from patchindex.exact.parts import STAGE, scan_each
from patchindex.exact.request import ScoreRequest
from patchindex.geometry import Geometry
from patchindex.images.by_label import as_tensor, to_unit
from patchindex.images.on_device import blocks_on
from patchindex.runtime import full_precision
from patchindex.softmax import SoftmaxState

__all__ = ["image_bytes", "query_bytes", "scan_images", "scan_parts"]

SAMPLE = 64  # images whose mean is subtracted


def query_bytes(geometry: Geometry, channels: int) -> int:
    """Return the bytes of a query's states, with copies."""
    height, width = geometry.size
    return 8 * height * width * (5 + 3 * channels) * 4


def image_bytes(numbers: int) -> int:
    """Return the bytes of a query's state in `scan_images`, with copies, for images of `numbers` numbers."""
    return 8 * (5 + 3 * numbers) * 4


def scan_parts(request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
    """Return the states of parts of the training images, (P, B, H, W), as `engine.scan_parts` does."""
    return scan_each(_scan, request, bounds)


def _scan(request: ScoreRequest) -> SoftmaxState:
    """Scan all pixels, also those outside the mask: they share their logits."""
    state = scan_images(request)
    batch, channels, height, width = request.x.shape
    whole = SoftmaxState.empty((batch, height, width), channels, request.x.device)
    for name in ("max_logit", "weight", "weight_sq", "count"):
        getattr(whole, name)[:] = getattr(state, name)[:, None, None]
    whole.centre = state.centre.reshape(batch, height, width, channels)
    return whole


def scan_images(request: ScoreRequest) -> SoftmaxState:
    """Return the state of whole images, of shape (B,): the centres are training images as H * W * C numbers.

    All of the memory is for blocks of training images.
    """
    training, x, a, beta, dtype = request.training, request.x, request.a, request.beta, request.dtype
    lo, hi = request.image_range
    batch, channels, height, width = x.shape
    numbers = height * width * channels

    def flat(images: Tensor) -> Tensor:
        return to_unit(images, dtype).reshape(len(images), numbers)

    # In memory: a block as bytes and three times as floats, and the bytes of the next block.
    step = max(1, request.memory // (numbers * (2 + 3 * dtype.itemsize) + 4 * batch * dtype.itemsize))
    origin = flat(as_tensor(training.read(lo, min(lo + min(SAMPLE, step), hi)), x.device)).mean(0)
    queries = x.permute(0, 2, 3, 1).reshape(batch, numbers).to(dtype) - a * origin
    state = SoftmaxState.empty((batch,), numbers, x.device)
    done = 0
    with full_precision(), torch.no_grad(), blocks_on(training, x.device, lo, hi, step) as blocks:
        for block in blocks:
            values = flat(block) - origin
            logits = torch.addmm(
                values.square().sum(1) * (-0.5 * a * a / beta), queries, values.T, alpha=a / beta
            )
            state.add(logits, values)
            done += len(block)
            request.progress(STAGE, done, hi - lo)
    state.centre += state.weight.unsqueeze(-1) * to_float64(origin)
    state.max_logit -= to_float64(queries).square().sum(1) / (2 * beta)
    return state
