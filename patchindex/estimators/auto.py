"""`auto`: retrieved patches and a random sample of all others, as large as a tolerance needs."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchindex.estimators.base import Estimate, ScoreContext, check_tolerance, index_of
from patchindex.estimators.curve import OperatingCurve, best_share
from patchindex.estimators.exact import Exact
from patchindex.estimators.near import Near, NearField
from patchindex.estimators.policy import DEFAULT_POLICY, AutoPolicy
from patchindex.exact import HeaviestPatches, ScoreRequest, expected_seconds, heaviest, scan
from patchindex.exact.heaviest import largest_first, wanted_pixels
from patchindex.exact.sampled import SampledScan
from patchindex.kernels.known_patches import KnownPatches
from patchindex.runtime import no_progress
from patchindex.softmax import SoftmaxState

__all__ = ["Auto", "combine"]

log = logging.getLogger(__name__)


class Auto:
    """Estimate each pixel to a tolerance at the least cost, on the CPU.

    The *near field* of a pixel, its heaviest patches, is retrieved from the index and summed exactly. All
    other patches are estimated from a random sample of the images, which also gives the standard error. The
    sample grows, for all pixels and then for single ones, until the standard error is within the tolerance.
    Pixels that would need most of the patches are computed exactly; with few images, all pixels are.

    Parameters
    ----------
    tolerance : float
        Largest standard error of a pixel, root mean square over channels, in units of the images ([-1, 1]).
        In (0, 2]: no error is larger than 2.
    probes, candidates : int, optional
        Inverted lists whose codes are scanned (probes), and patches that are compared exactly (candidates),
        per pixel. If both are left out, the store's operating curve (`patchindex.tune`) chooses them. Without
        a curve, or if one of them is given, each that is left out is 1 024 for a tolerance of 0.01 or less,
        512 for 0.02, and 256 for 0.04 or more.
    policy : AutoPolicy
        Settings of the cost model: a knob for research.

    Raises
    ------
    InputError
        When there is no index, or an option is out of range.
    """

    searches = True
    takes_shards = True

    def __init__(
        self,
        context: ScoreContext,
        tolerance: float = 0.01,
        probes: int | None = None,
        candidates: int | None = None,
        policy: AutoPolicy = DEFAULT_POLICY,
    ) -> None:
        self.index = index_of(context, "auto", probes=probes, candidates=candidates)
        check_tolerance(tolerance)
        self.tolerance, self.policy = tolerance, policy
        self._context, self._probes, self._candidates = context, probes, candidates

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Estimate the posterior mean, one noisy image after the other."""
        request = replace(request, x=request.x.detach())
        chosen = self.choose(request)
        if chosen is None:
            return Exact(self._context)(request)
        batch, candidates = len(request.x), chosen[1]
        # The patch ids of a group, 8 bytes each, take a quarter of the memory at most.
        group = max(1, request.memory // 4 // (8 * candidates * request.x[0, 0].numel()))
        parts = []
        for first in range(0, batch, group):
            mine = request.select(slice(first, first + group))
            field = self.retrieve(mine, *chosen)
            for i in range(len(mine.x)):
                image = _Image(self, mine.select(slice(i, i + 1)), field, i).grow_to_tolerance()
                parts.append(image.estimate())
                self.remember(mine, i, image.near)
                del image  # frees its near fields before the next image makes its own
                request.progress("posterior mean", len(parts), batch)
        return Estimate.cat(parts)

    def heaviest(self, request: ScoreRequest, top: int) -> HeaviestPatches:
        """Return the heaviest patches of the near field, with their weights among all patches.

        The near field and the sample of whole images give the sum of all weights, whichever pixels are
        wanted. Where exact scores are expected to be cheaper, every patch is compared.
        """
        whole = replace(request, x=request.x.detach(), pixels=None)
        chosen = self.choose(whole)
        if chosen is None:
            return heaviest(request, top)
        image, place = wanted_pixels(request)
        parts = []
        for i in range(len(request.x)):
            one = whole.select(slice(i, i + 1))
            drawn = _Image(self, one, self.retrieve(one, *chosen), 0).grow_to_tolerance()
            parts.append(drawn.heaviest(place[image == i], top))
            request.progress("heaviest patches", i + 1, len(request.x))
        return HeaviestPatches.cat(parts)

    def choose(self, request: ScoreRequest) -> tuple[int, int] | None:
        """Return probes and candidates for a request; None where exact scores are expected to be cheaper."""
        curve = OperatingCurve.of(self.index.scale(request.geometry.k))
        if curve is not None and self._probes is None and self._candidates is None:
            lo, hi = request.image_range
            part, steps = (hi - lo) / curve.images, request.cache is not None
            point, _ = curve.near_field(request.beta, self.tolerance, part, steps, self.policy)
            found = None if point is None else (point.probes, point.candidates)
            log.debug(
                "k %d, beta %.4f: operating curve: %s", request.geometry.k, request.beta, found or "exact"
            )
            return found
        policy, pixels = self.policy, request.x[0, 0].numel()
        probes, candidates = policy.untuned_size(self.tolerance)
        size = self._probes or probes, self._candidates or candidates
        # A coarse tolerance makes the near field smaller, and the rest of an estimate no cheaper.
        full = self._probes or policy.probes, self._candidates or policy.candidates
        rest = (policy.total_cost - 1) * policy.near_field_seconds(*full)
        seconds = pixels * (policy.near_field_seconds(*size) + rest)
        return None if seconds > policy.cost_limit * _scan_seconds(request, pixels) else size

    def retrieve(self, request: ScoreRequest, probes: int, candidates: int) -> NearField:
        """Retrieve the near fields of a request, starting from what an earlier step found if possible."""
        found = [(request.cache or {}).get(number) for number in request.image_ids]
        recalled = [each.heaviest for each in found if each is not None and self._is_recent(each, request)]
        if len(recalled) < len(found):
            recalled = []
        return NearField(self._context, request, probes, candidates, recalled, self.policy)

    def remember(self, request: ScoreRequest, i: int, near: Near) -> None:
        """Keep the heaviest patches of image i in the request's cache, for the next step."""
        if request.cache is not None:
            found = _Found(request.geometry.k, request.label, request.beta, near.heaviest)
            request.cache[request.image_ids[i]] = found

    def sample(self, request: ScoreRequest, near: Near, salt: int = 0) -> SampledScan:
        """Return an empty sample of the patches outside the near field of one image."""
        images, top = self.index.pixels.numpy(), near.state.max_logit.numpy()
        return SampledScan(request, images, near.members, top, salt)

    def _is_recent(self, found: _Found, request: ScoreRequest) -> bool:
        """Return whether an earlier step had the same scale and label, and nearly the same noise."""
        angles = math.asin(request.beta**0.5), math.asin(found.beta**0.5)
        near = abs(angles[0] - angles[1]) < self.policy.same_noise
        return near and (found.k, found.label) == (request.geometry.k, request.label)


class _Found(NamedTuple):
    """An entry of the trajectory cache: what a step found for one image."""

    k: int
    label: int | None
    beta: float
    heaviest: np.ndarray  # as in `Near`


class _Image:
    """One noisy image, whose estimate grows in three steps until each pixel is within the tolerance.

    The steps leave `state`, the softmax, and `shares`, the sampled share of all other patches, both (H, W).
    """

    def __init__(self, auto: Auto, request: ScoreRequest, field: NearField, i: int) -> None:
        self._auto, self._policy = auto, auto.policy
        self._request, self._field, self._i = request, field, i
        self.near = field.image(i)
        self.sample = auto.sample(request, self.near)
        self.near_weight = self.near.state.log_weight().reshape(request.geometry.size)
        self.larger: tuple[Near, Tensor] | None = None  # a larger near field, and the mask of its pixels
        self.codes, self.exact = self.near.codes, 0
        self.dropped = 0  # patches of samples that a larger near field replaced

    def grow_to_tolerance(self) -> _Image:
        """Take the three steps; return the image."""
        self.grow_sample()
        self.retrieve_deeper()
        self.finish_pixels()
        return self

    def grow_sample(self) -> None:
        """Step 1: grow the sample for all pixels, as long as that is cheaper than single pixels."""
        sample, pixels = self.sample, self._request.x[0, 0].numel()
        full, one = _scan_seconds(self._request, pixels) / pixels, _scan_seconds(self._request, 1)
        more = self._policy.first_strata
        while more:
            sample.grow(more)
            self.state, self.shares = combine(self.near, sample), sample.shares()
            if not (left := self._left()).any() or sample.scanned == sample.strata:
                break
            share = sample.scanned / sample.strata
            ahead = self._needed(self.shares).sub(share).clamp_min(0) * left
            best, _ = best_share(ahead.numpy().reshape(-1), full, one)
            # A small sample gives a poor guess of the share that is needed: at most double the sample.
            more = math.ceil(min(best, share) * sample.strata)

    def retrieve_deeper(self) -> None:
        """Step 2: retrieve a larger near field for few pixels, whose samples would cost much more."""
        left = self._left()
        if not left.any():
            return
        policy, field = self._policy, self._field
        ahead = self._needed(self.shares) - self.shares
        retrieval = policy.deeper * policy.near_field_seconds(field.probes, field.candidates)
        dear = ahead * _scan_seconds(self._request, 1) > policy.worth_deeper * retrieval
        # The hardest pixels, if not all of them fit into the memory.
        most = field.most_deeper
        least = ahead.where(left, -1.0).flatten().sort(descending=True).values[: most + 1][-1]
        deep = left & dear & ((ahead > least) | (left.sum() <= most))
        if deep.any():
            self.dropped = int(self.state.count[deep].sum())
            near = field.deeper(self._i, self.near, np.flatnonzero(deep.reshape(-1).numpy()))
            self._sample_single(deep, near, [])
            weight = near.state.log_weight().reshape(deep.shape)
            self.near_weight = torch.where(deep, weight, self.near_weight)
            self.codes += near.codes
            self.larger = near, deep

    def finish_pixels(self) -> None:
        """Step 3: sample for single pixels, in addition to the sample for all, or compute them exactly."""
        if (left := self._left()).any():
            self._sample_single(left, self.near, [self.sample])

    def captured_mass(self) -> Tensor:
        """Return the share of the softmax that the near field and the sample hold, (H, W)."""
        near_mass = (self.near_weight - self.state.log_weight()).exp().nan_to_num(1.0).clamp(0, 1)
        return near_mass + self.shares * (1 - near_mass)

    def heaviest(self, place: Tensor, top: int) -> HeaviestPatches:
        """Return the heaviest members of the near fields of some pixels, raster numbers.

        A pixel with a larger near field has the members of the larger near field.
        """
        pixels, rows = place.unique(return_inverse=True)  # the same pixel may be wanted twice
        row_of = np.full(self.state.weight.numel(), -1, np.int32)
        row_of[pixels.numpy()] = np.arange(len(pixels))
        if self.larger is None:
            members = _members_of(self.near, row_of)
        else:
            larger, mask = self.larger
            deep = mask.flatten().numpy()
            others = _members_of(self.near, np.where(deep, -1, row_of))
            members = _members_of(larger, np.where(deep, row_of, -1))
            members = KnownPatches(*map(np.concatenate, zip(others, members, strict=True)))
        total = self.state.log_weight().flatten()[pixels]
        table = largest_first(members, total, top)[rows].padded(top)
        spread = self.state.variance[..., 0].sqrt() / self.state.weight
        return replace(
            table,
            ess=self.state.ess().flatten()[place],
            captured_mass=self.captured_mass().flatten()[place],
            relative_error=spread.flatten()[place],
        )

    def estimate(self) -> Estimate:
        """Return the estimate of the image."""
        estimate = Estimate.from_state(
            self.state[None],
            stderr=_variance(self.state).sqrt()[None],
            captured_mass=self.captured_mass()[None],
            method="near field",
            codes_scanned=self.codes,
            exact_pixels=self.exact,
        )
        return replace(estimate, patches_evaluated=estimate.patches_evaluated + self.dropped)

    def _sample_single(self, left: Tensor, near: Near, earlier: list[SampledScan]) -> None:
        """Bring some pixels, a mask, within the tolerance by one more sample, or compute them exactly."""
        policy = self._policy
        sample = self._auto.sample(replace(self._request, pixels=left[None]), near, 1 + len(earlier))
        ahead = 0.0
        while left.any():
            if earlier or sample.scanned:
                shares = sum((each.shares() for each in earlier), sample.shares())
                ahead = float((self._needed(shares) - shares)[left].median().clamp_min(0))
            share = float(sample.shares().max())
            if sample.scanned == sample.strata or ahead + share > policy.largest_sample:
                break
            sample.restrict(left)
            sample.grow(max(policy.pixel_strata, math.ceil(ahead * sample.strata)))
            self.state.write(left, combine(near, *earlier, sample)[left])
            self.shares[left] = 1 - math.prod(1 - each.shares()[left] for each in (*earlier, sample))
            left = left & self._left()
        if left.any():
            found = scan(replace(self._request, pixels=left[None], progress=no_progress))
            found.count += self.state.count[left]
            self.state.write(left, found)
            self.shares[left] = 1
            self.exact += int(left.sum())

    def _left(self) -> Tensor:
        """Return the pixels whose standard error is above the tolerance, a mask (H, W)."""
        return _variance(self.state) > self._auto.tolerance**2

    def _needed(self, shares: Tensor) -> Tensor:
        """Estimate the share of all strata that brings each pixel to the tolerance; `shares` were sampled."""
        one = _variance(self.state) * shares / (1 - shares).clamp_min(1e-9)  # of a share f: one (1 - f) / f
        return one / (one + self._auto.tolerance**2)


def combine(near: Near, *samples: SampledScan) -> SoftmaxState:
    """Return the softmax (H, W) of a near field and samples of all else, weighted by their sizes."""
    shares = [sample.shares() for sample in samples]
    state = near.state.reshape(tuple(shares[0].shape)).clone()
    for sample, share in zip(samples, shares, strict=True):
        part = sample.state()
        part.scale(share / sum(shares))
        state.merge(part)
    return state


def _members_of(near: Near, row_of: np.ndarray) -> KnownPatches:
    """Return the members of some pixels, with rows in place of pixels; other pixels have the row -1."""
    rows = row_of[near.members.pixel]
    mine = rows >= 0
    return KnownPatches(rows[mine], *(array[mine] for array in near.members[1:]))


def _variance(state: SoftmaxState) -> Tensor:
    """Return the variance of the posterior mean, mean over channels, (H, W)."""
    return state.mean_variance().mean(-1)


def _scan_seconds(request: ScoreRequest, pixels: int) -> float:
    """Return the expected seconds of one thread of a scan for this number of pixels of an image."""
    lo, hi = request.image_range
    return expected_seconds(request.geometry, request.training.channels, hi - lo, [pixels])
