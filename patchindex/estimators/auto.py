"""`auto`: retrieved patches and a sample of all others, as large as a tolerance needs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from patchindex.errors import InputError
from patchindex.estimators.base import Data, Estimate, Query, check_cpu, index_of, scale_of
from patchindex.estimators.exact import Exact
from patchindex.estimators.near import Near, NearField
from patchindex.exact import expected_seconds, scan
from patchindex.exact.engine import LARGEST_LOGIT, largest_logit
from patchindex.exact.sampled import Members, SampledScan
from patchindex.patches import Geometry
from patchindex.softmax import SoftmaxState

__all__ = ["Auto"]

# Nanoseconds of one thread (AVX-512) for a probe and for a candidate of the near field, and how many times
# its near field a pixel takes in all, fitted to 256 x 1 024 on all of CIFAR-10 at mid noise. They choose
# between an estimate and an exact scan, for which `exact/costs.py` has the like.
PROBE, CANDIDATE, IN_ALL = 1500.0, 500.0, 4.0
OVERHEAD = 1.4  # what a cell of a sample takes against its share of an exact scan
FIRST_CELLS = 64  # of the sample: fewer do not tell what their error is
WORTH = 0.06  # share of all cells that a pixel may need in its sample before it gets a larger near field
WIDER = 4  # times as many probes and candidates then
LEAST_TILES = 16  # of a sample for single pixels
MOST = 0.5  # share of all patches beyond which a single pixel is computed exactly


class Auto:
    """Estimate each pixel to a tolerance at the least cost.

    The *near field* of a pixel, its heaviest patches, is retrieved from the index and summed exactly. All
    other patches are summed over a random sample of the images, by the exact kernel; from the sample follows
    the standard error, and it grows until that is within the tolerance. Pixels that would need too much of it
    get a larger near field first, and those that are still above the tolerance when all others are not are
    computed exactly if that is cheaper. Where that holds for all pixels, as with few images, all is exact at
    once.

    Parameters
    ----------
    data : Data
        With an index, on the CPU.
    tolerance : float
        Of the standard error, root mean square over channels, in units of the images ([-1, 1]).
    probes : int
        Lists whose codes are scanned for a pixel.
    candidates : int
        Patches that are compared exactly with a pixel and those around it.

    Raises
    ------
    InputError
        When there is no index, or an option is not positive.
    """

    def __init__(
        self, data: Data, tolerance: float = 0.01, probes: int = 256, candidates: int = 1024
    ) -> None:
        check_cpu(data, "auto")
        self._index = index_of(data, "auto", probes=probes, candidates=candidates)
        if not 0 < tolerance < float("inf"):
            raise InputError(
                f"must be a positive number, got {tolerance}", where="tolerance", remedy="use 0.01, say"
            )
        self._data, self._tolerance = data, tolerance
        self._probes, self._candidates = probes, candidates

    def __call__(self, query: Query) -> Estimate:
        """Retrieve, sample, and scan what is left."""
        batch = len(query.x)
        geometry = self._index.scale(scale_of(query, "auto")).geometry
        query = replace(query, x=query.x.detach())
        # Beyond the largest logit the exact scan leaves the float32 that all here is in.
        if (
            self._exact_is_cheaper(query, geometry)
            or largest_logit(query.x, geometry, query.a, query.beta) > LARGEST_LOGIT
        ):
            return Exact(self._data)(query)
        field = NearField(self._data, query, self._probes, self._candidates)
        parts = []
        for i in range(batch):
            parts.append(self._image(query, geometry, field, i))
            if query.progress is not None:
                query.progress((i + 1) / batch)
        return Estimate.cat(parts)

    def _image(self, query: Query, geometry: Geometry, field: NearField, i: int) -> Estimate:
        near = field.image(i)
        sample = self._sample(query, geometry, i, near, 0)
        sample.grow(FIRST_CELLS)
        state = _together(near, sample)
        wide = self._needed(state, sample.shares()) > WORTH
        if wide.any() and sample.scanned + FIRST_CELLS <= sample.cells:
            pixels = np.flatnonzero(wide.reshape(-1).numpy())
            before = len(near.members.pixel)
            near = field.extend(i, near, pixels, WIDER * self._probes, WIDER * self._candidates)
            new = Members(*(array[before:] for array in near.members))
            sample.begin_anew(pixels, near.members, new, near.state.max_logit.numpy())
            sample.grow(FIRST_CELLS)
            state = _together(near, sample)
        full = OVERHEAD * self._seconds(query, geometry, query.x[0, 0].numel())
        one = self._seconds(query, geometry, 1)
        while (left := _stderr(state) > self._tolerance).any() and sample.scanned < sample.cells:
            share = sample.scanned / sample.cells
            needed = self._needed(state, sample.shares())[left].sort().values
            # So much for all, and more for single pixels.
            alone = one * (needed - share).clamp_min(0)
            cost = full * (needed - share).clamp_min(0) + alone.sum() - alone.cumsum(0)
            best = int(cost.argmin())
            if float(cost[best]) >= float(alone.sum()):
                break
            # What is needed is a guess as good as the sample is large: at most twice as much.
            more = min(float(needed[best]) - share, share)
            sample.grow(math.ceil(more * sample.cells))
            state = _together(near, sample)
        exact = 0
        if left.any():
            state, exact = self._single_pixels(query, geometry, i, near, sample, state)
        mass = (near.state.reshape(tuple(state.weight.shape)).log_weight() - state.log_weight()).exp()
        return Estimate.from_state(
            state[None],
            stderr=_stderr(state)[None],
            captured_mass=mass.nan_to_num(1.0).clamp(0, 1)[None],
            codes_scanned=near.codes,
            exact_pixels=exact,
        )

    def _single_pixels(
        self,
        query: Query,
        geometry: Geometry,
        i: int,
        near: Near,
        sample: SampledScan,
        state: SoftmaxState,
    ) -> tuple[SoftmaxState, int]:
        """Sample more for pixels above the tolerance, or compute them exactly; return how many exactly."""
        left = _stderr(state) > self._tolerance
        more = self._sample(query, geometry, i, near, 1, left)
        while left.any():
            shares = sample.shares() + more.shares()
            needed = self._needed(state, shares)
            ahead = float((needed - shares)[left].median().clamp_min(0))
            if more.scanned == more.cells or ahead + float(more.shares().max()) > MOST:
                break
            more.only(left)
            more.grow(max(LEAST_TILES, math.ceil(ahead * more.cells)))
            state = _together(near, sample, more)
            left = _stderr(state) > self._tolerance
        if left.any():
            found = scan(
                self._data.training,
                geometry,
                query.x[i : i + 1],
                query.a,
                query.beta,
                label=query.label,
                pixels=left[None],
                memory=self._data.memory,
            )
            for mine, new in zip(vars(state).values(), vars(found).values(), strict=True):
                mine[left] = new
        return state, int(left.sum())

    def _needed(self, state: SoftmaxState, share: Tensor) -> Tensor:
        """Estimate which share of all cells would bring each pixel to the tolerance."""
        one = _stderr(state).square() * share / (1 - share).clamp_min(1e-9)  # of a share f: one (1 - f) / f
        return one / (one + self._tolerance**2)

    def _sample(
        self,
        query: Query,
        geometry: Geometry,
        i: int,
        near: Near,
        salt: int,
        pixels: Tensor | None = None,
    ) -> SampledScan:
        lo, hi = self._data.training.range_of(query.label)
        number = i if query.samples is None else query.samples[i]
        return SampledScan(
            self._index.pixels.numpy(),
            lo,
            hi,
            geometry,
            query.x[i],
            query.a,
            query.beta,
            [query.seed % 2**64, number, int(np.float64(query.beta).view(np.uint64)), salt],
            near.members,
            near.state.max_logit.numpy(),
            pixels,
        )

    def _exact_is_cheaper(self, query: Query, geometry: Geometry) -> bool:
        pixels = query.x[0, 0].numel()
        full = self._seconds(query, geometry, pixels)
        near = 1e-9 * pixels * (self._probes * PROBE + self._candidates * CANDIDATE)
        return IN_ALL * near > full

    def _seconds(self, query: Query, geometry: Geometry, pixels: int) -> float:
        lo, hi = self._data.training.range_of(query.label)
        return expected_seconds(geometry, self._data.training.channels, hi - lo, [pixels])


def _together(near: Near, *samples: SampledScan) -> SoftmaxState:
    """Return the state (H, W) of the near field and of all else, as independent samples estimate it.

    Each sample counts in proportion to its share of all cells.
    """
    shares = [sample.shares() for sample in samples]
    state = near.state.reshape(tuple(shares[0].shape))
    state = SoftmaxState(*(field.clone() for field in vars(state).values()))
    for sample, share in zip(samples, shares, strict=True):
        part = sample.state()
        part.scale(share / sum(shares))
        state.merge(part)
    return state


def _stderr(state: SoftmaxState) -> Tensor:
    return state.stderr().square().mean(-1).sqrt()
