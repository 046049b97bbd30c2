"""`auto` without a near field: a random sample of the training images, as large as a tolerance needs."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from patchindex.devices import float64_device
from patchindex.estimators.base import Estimate, ScoreContext, check_tolerance
from patchindex.estimators.exact import Exact
from patchindex.exact import HeaviestPatches, ScoreRequest, check_engine, heaviest
from patchindex.exact.groups import GroupSums
from patchindex.random_streams import random_stream
from patchindex.runtime import part_of
from patchindex.softmax import SoftmaxState

__all__ = ["SampledAuto"]

log = logging.getLogger(__name__)

STAGE = "posterior mean"
GROUPS = 512  # of all images at most: fewer make the first sample larger, and more take longer to scan
LEAST = 16  # images of a group: engines take no less time for fewer
# Groups of the first sample, and the factor from each sample to the next. A pixel leaves after one of these
# samples, whatever the other pixels need, so that results do not depend on the batch.
FIRST, GROWTH = 32, 1.5
AT_ONCE = 32  # groups of a scan: the states of all of them are in memory
# Largest relative standard error of the sum of weights of a pixel that leaves: beyond, the linearised
# standard error of the mean says little.
LARGEST_RELATIVE = 0.25


class SampledAuto:
    """Estimate each pixel to a tolerance from a random sample of the training images, without an index.

    The images are scanned in random order, group after group. A pixel leaves when its standard error is
    within the tolerance. A pixel that never does is exact in the end, when all images are scanned. The order
    depends on the seed and on the noise level, and not on the noisy image, so that a batch shares its scans.
    IS and LS, and fewer than 1 024 images, are computed exactly. On the CPU, so are images of which several
    are unpacked to read one (`ImageSource.packed`), as from zarr or HDF5 in chunks: a scan in random order
    would unpack each chunk many times.

    The standard error has two parts: the spread of the groups, and an allowance for patches that were not
    drawn (`patchindex.exact.groups`). A pixel whose sum of weights has a relative standard error above .25
    does not leave. There is a risk left: one patch may weigh more than all other patches together, and no
    drawn patch tells of it. The probability that a sample misses such a patch is the share of the images
    that was not drawn, `1 - captured_mass`. Decision record 16 measures how often that matters.

    Parameters
    ----------
    tolerance : float
        Largest standard error of a pixel, root mean square over channels, in units of the images ([-1, 1]).
        In (0, 2]: no error is larger than 2.
    engine : str, optional
        Engine of the scans, as for `Exact`.

    Raises
    ------
    InputError, DeviceError
        When the tolerance is outside (0, 2], or the engine is unknown or cannot run on the device.
    """

    searches = False
    takes_shards = False

    def __init__(self, context: ScoreContext, tolerance: float = 0.01, engine: str | None = None) -> None:
        check_tolerance(tolerance)
        if engine is not None:
            check_engine(engine, context.device)
        self.tolerance, self._context, self._engine = tolerance, context, engine

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Estimate the posterior mean, for as many noisy images together as the memory holds."""
        if self._exact_is_faster(request):
            return Exact(self._context, self._engine)(request)
        request = replace(request, x=request.x.detach(), engine=self._engine or request.engine)
        batch, channels, height, width = request.x.shape
        each = GroupSums.bytes_a_pixel(channels, AT_ONCE) * height * width
        together = max(1, request.memory // 2 // each)
        parts = []
        for first in range(0, batch, together):
            last = min(first + together, batch)
            progress = part_of(request.progress, STAGE, first / batch, last / batch)
            mine = replace(request.select(slice(first, last)), progress=progress, memory=request.memory // 2)
            parts.append(self._estimate(mine))
        return Estimate.cat(parts)

    def heaviest(self, request: ScoreRequest, top: int) -> HeaviestPatches:
        """Return the heaviest patches of the wanted pixels, by comparison with every patch."""
        return heaviest(request, top)

    def _exact_is_faster(self, request: ScoreRequest) -> bool:
        """Return whether all images are scanned anyway, or cannot be read in random order."""
        lo, hi = request.image_range
        # A store or a .npy file is read in any order.
        packed = request.x.device.type == "cpu" and request.training.source.packed
        return request.geometry.is_exact or hi - lo < 2 * FIRST * LEAST or packed

    def _estimate(self, request: ScoreRequest) -> Estimate:
        """Sample until every pixel has left; return the estimate."""
        (lo, hi), (batch, _, height, width) = request.image_range, request.x.shape
        level = int(np.float64(request.beta).view(np.uint64))
        order = random_stream(request.seed, level).permutation(hi - lo)
        drawn = replace(request, training=request.training.select(lo + order), label=None)
        # Groups of one size, but for the last one: other sizes would add to the spread of the sums.
        bounds = [*range(0, hi - lo, _group_size(hi - lo)), hi - lo]
        groups = len(bounds) - 1
        pixels = _Pixels.empty(request)
        left, sums = pixels.all, pixels.no_sums
        done, ahead = 0, FIRST
        while True:
            mask = torch.zeros(batch * height * width, dtype=torch.bool, device=left.device)
            mask[left] = True
            some = replace(drawn, pixels=mask.reshape(batch, height, width))
            # Sums over all images need no standard error, so that one group holds the images that are left.
            ends = [done, groups] if ahead == groups else [*range(done, ahead, AT_ONCE), ahead]
            for first, last in pairwise(ends):
                span = (bounds[first] / (hi - lo), bounds[last] / (hi - lo))
                some = replace(some, progress=part_of(request.progress, STAGE, *span))
                cuts = [first, last] if ahead == groups else range(first, last + 1)
                sums.add(self._context.scan_parts(some, [bounds[cut] for cut in cuts]))
            done, share = ahead, bounds[ahead] / (hi - lo)
            enough = pixels.write(left, sums, share, self.tolerance)
            left, sums = left[~enough], sums.restrict(~enough)
            log.debug("%d of %d images: %d pixels left", bounds[done], hi - lo, len(left))
            if not len(left):
                request.progress(STAGE, 1.0, 1.0)
                return pixels.estimate((batch, height, width))
            ahead = min(groups, math.ceil(done * GROWTH))


def _group_size(images: int) -> int:
    """Return the number of images of a group."""
    return max(LEAST, math.ceil(images / GROUPS))


@dataclass
class _Pixels:
    """The results of all pixels of a batch, (B * H * W)."""

    state: SoftmaxState
    variance: Tensor  # of the mean over channels, with the allowance
    shares: Tensor

    @classmethod
    def empty(cls, request: ScoreRequest) -> _Pixels:
        batch, channels, height, width = request.x.shape
        pixels, device = batch * height * width, float64_device(request.x.device)
        zero = torch.zeros(pixels, dtype=torch.float64, device=device)
        return cls(SoftmaxState.empty((pixels,), channels, device), zero, zero.clone())

    @property
    def all(self) -> Tensor:
        """The numbers of all pixels."""
        return torch.arange(len(self.shares), device=self.shares.device)

    @property
    def no_sums(self) -> GroupSums:
        """The sums of no group for all pixels."""
        return GroupSums.empty(len(self.shares), self.state.centre.shape[-1], self.shares.device)

    def write(self, pixels: Tensor, sums: GroupSums, share: float, tolerance: float) -> Tensor:
        """Write the estimates of some pixels that are good enough; return which ones are, a mask."""
        state = sums.state(share)
        variance = state.mean_variance().mean(-1) + sums.allowance(share)
        relative = state.variance[:, 0].clamp_min(0).sqrt() / state.weight
        enough = (variance <= tolerance**2) & (relative <= LARGEST_RELATIVE)
        if share == 1:
            enough = torch.ones_like(enough)
            state.variance, variance = torch.zeros_like(state.variance), torch.zeros_like(variance)
        self.state.write(pixels[enough], state[enough])
        self.variance[pixels[enough]] = variance[enough]
        self.shares[pixels[enough]] = share
        return enough

    def estimate(self, shape: tuple[int, int, int]) -> Estimate:
        return Estimate.from_state(
            self.state.reshape(shape),
            stderr=self.variance.sqrt().reshape(shape),
            captured_mass=self.shares.reshape(shape),
            method="sample",
            exact_pixels=int((self.shares == 1).sum()),
        )
