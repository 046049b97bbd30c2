"""`auto`: retrieved patches and a sample of all others, as large as a tolerance needs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchindex.estimators.base import (
    Estimate,
    ScoreContext,
    check_between,
    check_cpu,
    index_of,
)
from patchindex.estimators.curve import DEEPER, OperatingCurve, best_share
from patchindex.estimators.exact import Exact
from patchindex.estimators.near import Near, NearField
from patchindex.exact import ScoreRequest, expected_seconds, scan
from patchindex.exact.sampled import SampledScan
from patchindex.index import ScaleIndex
from patchindex.runtime import no_progress
from patchindex.softmax import SoftmaxState

__all__ = ["Auto", "combine"]

# Probes and candidates for stores without an operating curve; and for all, nanoseconds of one thread
# (AVX-512) for each, and how many times its near field a pixel takes in all where the choice is close, at
# about 6 000 images of 32 x 32 x 3. They choose between an estimate and an exact scan, for which
# `exact/costs.py` has the like.
PROBES, CANDIDATES = 1024, 1024
PROBE, CANDIDATE, IN_ALL = 370.0, 250.0, 1.7
WORTH = 1.0  # of the time of an exact scan: an estimate that is expected to take more is not begun
FIRST_CELLS = 64  # of the sample: fewer do not tell what their error is
NEARLY = 0.12  # radians between noise levels, of which sin^2 is the variance: a step of the usual 20
DEEP_BYTES = 64  # that a candidate takes while it is compared
# A pixel gets `DEEPER` times as much retrieved, and a new sample, where the sample that it needs would take
# so many times as long as that.
WORTH_IT = 2.0
LEAST_TILES = 16  # of a sample for single pixels
MOST = 0.5  # share of all patches beyond which a single pixel is computed exactly


class _Found(NamedTuple):
    """What a step found for an image, left for the next one."""

    k: int
    label: int | None
    beta: float
    heaviest: np.ndarray

    def of_use(self, request: ScoreRequest) -> bool:
        """Whether most of what is heavy for a query is among them: of the same scale, nearly as noisy."""
        near = abs(math.asin(request.beta**0.5) - math.asin(self.beta**0.5)) < NEARLY
        return near and (self.k, self.label) == (request.geometry.k, request.label)


class Auto:
    """Estimate each pixel to a tolerance at the least cost.

    The *near field* of a pixel, its heaviest patches, is retrieved from the index and summed exactly. All
    other patches are summed over a random sample of the images, by the exact kernel; from the sample follows
    the standard error, and it grows until that is within the tolerance: for all pixels as long as many need
    it, then for those that still do; pixels that would need most patches are computed exactly. Where that is
    cheaper for all of them, as with few images, all is exact at once.

    Parameters
    ----------
    data : ScoreContext
        With an index, on the CPU.
    tolerance : float
        Of the standard error, root mean square over channels, in units of the images ([-1, 1]).
    probes, candidates : int, optional
        Lists whose codes are scanned for a pixel, and patches that are compared exactly with it and those
        around. If both are left out, what the store's operating curve expects to take the least time; else,
        or where it has none, 1 024.

    Raises
    ------
    InputError
        When there is no index, or an option is not positive.
    """

    def __init__(
        self,
        data: ScoreContext,
        tolerance: float = 0.01,
        probes: int | None = None,
        candidates: int | None = None,
    ) -> None:
        check_cpu(data, "auto")
        self._index = index_of(data, "auto", probes=probes, candidates=candidates)
        check_between("tolerance", tolerance, 0, math.inf, "use 0.01, say")
        self._data, self._tolerance = data, tolerance
        self._probes, self._candidates = probes, candidates

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Retrieve, sample, and scan what is left."""
        batch = len(request.x)
        scale = self._index.scale(request.geometry.k)
        request = replace(request, x=request.x.detach())
        chosen = self._choose(request, scale)
        if chosen is None:
            return Exact(self._data)(request)
        probes, candidates = chosen
        # What is retrieved for a batch would not fit into the memory of a large one.
        group = max(1, request.memory // 4 // (8 * candidates * request.x[0, 0].numel()))
        parts = []
        for first in range(0, batch, group):
            mine = request.select(slice(first, first + group))
            field = NearField(self._data, mine, probes, candidates, self._recalled(mine))
            for i in range(len(mine.x)):
                near = field.image(i)
                parts.append(self._image(mine, field, near, i))
                if request.cache is not None:
                    found = _Found(request.geometry.k, request.label, request.beta, near.heaviest)
                    request.cache[mine.image_ids[i]] = found
                request.progress("posterior mean", len(parts), batch)
        return Estimate.cat(parts)

    @staticmethod
    def _recalled(request: ScoreRequest) -> list[np.ndarray]:
        """Return what a step before found for each image; nothing if there is none to whom it is of use."""
        found = [(request.cache or {}).get(number) for number in request.image_ids]
        of_use = all(each is not None and each.of_use(request) for each in found)
        return [each.heaviest for each in found] if of_use else []  # type: ignore[union-attr]

    def _image(self, request: ScoreRequest, field: NearField, near: Near, i: int) -> Estimate:
        sample = self._sample(request, i, near, 0)
        sample.grow(FIRST_CELLS)
        state = combine(near, sample)
        full, one = (self._seconds(request, n) / n for n in (request.x[0, 0].numel(), 1))
        while (left := _variance(state) > self._tolerance**2).any() and sample.scanned < sample.strata:
            share = sample.scanned / sample.strata
            ahead = (self._needed(state, sample.shares()) - share).clamp_min(0) * left
            more, _ = best_share(ahead.numpy().reshape(-1), full, one)
            if more == 0:
                break
            # What is needed is a guess as good as the sample is large: at most twice as much.
            sample.grow(math.ceil(min(more, share) * sample.strata))
            state = combine(near, sample)
        spent = 0  # on what is given up
        found, codes, exact = near.state.reshape(tuple(left.shape)).log_weight(), near.codes, 0
        shares = sample.shares()  # of the patches that are not in the near field
        if left.any():
            ahead = self._needed(state, sample.shares()) - sample.shares()
            retrieving = DEEPER * 1e-9 * (field.probes * PROBE + field.candidates * CANDIDATE)
            # The hardest, if all whose samples would take longer than that do not fit into the memory.
            most = max(1, request.memory // (DEEPER * field.candidates * DEEP_BYTES))
            least = ahead.where(left, -1.0).flatten().sort(descending=True).values[: most + 1][-1]
            deep = left & (ahead * one > WORTH_IT * retrieving) & ((ahead > least) | (left.sum() <= most))
            if deep.any():
                pixels = np.flatnonzero(deep.reshape(-1).numpy())
                spent = int(state.count[deep].sum())
                deeper = field.deeper(i, near, pixels, DEEPER)
                exact += self._single_pixels(request, i, deeper, [], deep, state, shares)
                found = torch.where(deep, deeper.state.reshape(tuple(left.shape)).log_weight(), found)
                codes += deeper.codes
            exact += self._single_pixels(request, i, near, [sample], left & ~deep, state, shares)
        near_mass = (found - state.log_weight()).exp().nan_to_num(1.0).clamp(0, 1)
        estimate = Estimate.from_state(
            state[None],
            stderr=_variance(state).sqrt()[None],
            captured_mass=(near_mass + shares * (1 - near_mass))[None],
            codes_scanned=codes,
            exact_pixels=exact,
        )
        return replace(estimate, patches_evaluated=estimate.patches_evaluated + spent)

    def _single_pixels(
        self,
        request: ScoreRequest,
        i: int,
        near: Near,
        earlier: list[SampledScan],
        left: Tensor,
        state: SoftmaxState,
        shares: Tensor,
    ) -> int:
        """Sample for some pixels alone, a mask, or compute them exactly; return how many exactly.

        Beside earlier samples with the same near field; their states are written to `state`, and which share
        of the patches they are of to `shares`.
        """
        more = self._sample(request, i, near, 1 + len(earlier), left)
        ahead = 0.0
        while left.any():
            if earlier or more.scanned:
                all_samples = sum((sample.shares() for sample in earlier), more.shares())
                ahead = float((self._needed(state, all_samples) - all_samples)[left].median().clamp_min(0))
            if more.scanned == more.strata or ahead + float(more.shares().max()) > MOST:
                break
            more.restrict(left)
            more.grow(max(LEAST_TILES, math.ceil(ahead * more.strata)))
            _write(state, combine(near, *earlier, more)[left], left)
            shares[left] = 1 - math.prod(1 - sample.shares()[left] for sample in (*earlier, more))
            left = left & (_variance(state) > self._tolerance**2)
        if left.any():
            found = scan(replace(request.select(slice(i, i + 1)), pixels=left[None], progress=no_progress))
            found.count += state.count[left]
            _write(state, found, left)
            shares[left] = 1
        return int(left.sum())

    def _needed(self, state: SoftmaxState, share: Tensor) -> Tensor:
        """Estimate the share of all strata that would bring each pixel to the tolerance."""
        one = _variance(state) * share / (1 - share).clamp_min(1e-9)  # of a share f: one (1 - f) / f
        return one / (one + self._tolerance**2)

    def _sample(
        self,
        request: ScoreRequest,
        i: int,
        near: Near,
        salt: int,
        pixels: Tensor | None = None,
    ) -> SampledScan:
        one = request.select(slice(i, i + 1))
        if pixels is not None:
            one = replace(one, pixels=pixels[None])
        images, top = self._index.pixels.numpy(), near.state.max_logit.numpy()
        return SampledScan(one, images, near.members, top, salt)

    def _images(self, request: ScoreRequest) -> int:
        lo, hi = request.image_range
        return hi - lo

    def _choose(self, request: ScoreRequest, scale: ScaleIndex) -> tuple[int, int] | None:
        """Return probes and candidates; None where exact scores are expected to be cheaper."""
        curve = OperatingCurve.of(scale)
        images = self._images(request)
        if curve is not None and self._probes is None and self._candidates is None:
            way = self._tolerance, images, request.cache is not None
            point, _ = curve.near_field(request.beta, *way)
            return None if point is None else (point.probes, point.candidates)
        probes, candidates = self._probes or PROBES, self._candidates or CANDIDATES
        pixels = request.x[0, 0].numel()
        near = 1e-9 * (probes * PROBE + candidates * CANDIDATE) * pixels
        if IN_ALL * near > WORTH * self._seconds(request, pixels):
            return None
        return probes, candidates

    def _seconds(self, request: ScoreRequest, pixels: int) -> float:
        training = request.training
        return expected_seconds(request.geometry, training.channels, self._images(request), [pixels])


def combine(near: Near, *samples: SampledScan) -> SoftmaxState:
    """Return the state (H, W) of the near field and of all else, as independent samples estimate it.

    Each sample counts in proportion to its share of all strata.
    """
    shares = [sample.shares() for sample in samples]
    state = near.state.reshape(tuple(shares[0].shape))
    state = SoftmaxState(*(field.clone() for field in vars(state).values()))
    for sample, share in zip(samples, shares, strict=True):
        part = sample.state()
        part.scale(share / sum(shares))
        state.merge(part)
    return state


def _write(state: SoftmaxState, new: SoftmaxState, pixels: Tensor) -> None:
    """Replace the state of some pixels, a mask."""
    for mine, other in zip(vars(state).values(), vars(new).values(), strict=True):
        mine[pixels] = other


def _variance(state: SoftmaxState) -> Tensor:
    """Return the variance of the posterior mean, mean over channels, (H, W)."""
    return state.mean_variance().mean(-1)
