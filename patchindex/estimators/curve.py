"""The operating curve of a locality scale: what near fields and searches of several sizes cost and find.

`patchindex.study.tune` measures the curve on noisy images and writes it into the store; `auto` and `topk`
choose their probes and candidates by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from patchindex.errors import StoreError
from patchindex.estimators.policy import DEFAULT_POLICY, AutoPolicy
from patchindex.index import ScaleIndex
from patchindex.index.attributes import CURVE_MOVES, CURVE_VERSION
from patchindex.index.scale import MEASURE_AGAIN

__all__ = ["MOVES", "NearPoint", "OperatingCurve", "TopPoint", "best_share"]

ATTRIBUTE = "operating_curve"  # of a scale's group in the store
MOVES = tuple(
    2.0**-j for j in range(2, 2 + CURVE_MOVES)
)  # of the mean, by a single patch; the columns of `missed`


@dataclass(frozen=True)
class NearPoint:
    """A near field of `auto` at one noise level: its cost, and the sample of other patches that it needs."""

    beta: float
    probes: int
    candidates: int
    seconds: float  # per pixel, to retrieve it for a noisy image by itself
    again: float  # the same for an image whose previous step has found most of it
    # Variance of the posterior mean, mean over channels, when half of the other patches are sampled: equally
    # spaced quantiles over pixels, ascending. A sample of a share f has (1 - f) / f times this variance.
    variance: tuple[float, ...]
    # Mean squared error due to patches that only a larger near field has: for each of `MOVES`, of patches
    # that each move the mean by more. A sample seldom has such a patch, so the standard error does not show
    # them. None where exact scores are cheaper.
    missed: tuple[float, ...] | None

    def sees(self, tolerance: float, policy: AutoPolicy = DEFAULT_POLICY) -> bool:
        """Return whether standard errors are right at this tolerance, since few heavy patches are missed."""
        if self.missed is None:
            return True
        hidden = next((i for i, move in enumerate(MOVES) if move <= tolerance / 2), -1)
        return self.missed[hidden] <= policy.missed * tolerance**2


@dataclass(frozen=True)
class TopPoint:
    """A search of `topk` at one noise level, with probes and candidates per pixel."""

    beta: float
    probes: int
    candidates: int
    seconds: float  # per pixel
    mass: float  # of the patches found, over that of the same number of heaviest patches; mean over pixels


Point = TypeVar("Point", NearPoint, TopPoint)


@dataclass(frozen=True)
class OperatingCurve:
    """All measurements at one locality scale; seconds are per pixel."""

    images: int  # training images of the store
    exact: float  # seconds of exact scores
    scan: float  # seconds of a sample that has all patches, of all pixels of an image at once
    single: float  # seconds of the same for a single pixel
    least: float  # share of all patches that `auto` samples at least, in (0, 1]
    near: tuple[NearPoint, ...]
    top: tuple[TopPoint, ...]

    @classmethod
    def of(cls, scale: ScaleIndex) -> OperatingCurve | None:
        """Return a scale's curve; None for no curve or another version. A damaged one is a StoreError."""
        return cls.read(scale.attributes.get(ATTRIBUTE), scale.path)

    @classmethod
    def read(cls, found: Any, where: object) -> OperatingCurve | None:
        """Return the curve that `as_dict` wrote; None for other data. Raises as `of` does."""
        if not isinstance(found, dict) or found.get("version") != CURVE_VERSION:
            return None
        found = {name: value for name, value in found.items() if name != "version"}
        try:
            near = tuple(NearPoint(**_with_tuples(point)) for point in found["near"])
            top = tuple(TopPoint(**point) for point in found["top"])
            return cls(**{**found, "near": near, "top": top})
        except (KeyError, TypeError) as error:
            what = f"its operating curve is damaged ({error})"
            raise StoreError(what, where=where, remedy=MEASURE_AGAIN) from error

    def as_dict(self) -> dict[str, Any]:
        """Return the curve as plain data."""
        return {"version": CURVE_VERSION, **asdict(self)}

    def expected(
        self,
        point: NearPoint,
        tolerance: float,
        part: float = 1.0,
        steps: bool = False,
        policy: AutoPolicy = DEFAULT_POLICY,
    ) -> float:
        """Return the seconds per pixel that `auto` is expected to take with a near field.

        With a `part` of the training images, such as the images of one label, a scan takes less time and a
        sample varies more. With `steps`, of a trajectory, about half of them find the heavy patches of the
        step before.
        """
        retrieval = (point.seconds + point.again) / 2 if steps else point.seconds
        one = np.array(point.variance) / part
        needed = one / (one + tolerance**2)
        shares = np.append(np.maximum(needed, min(1.0, self.least / part)), min(1.0, self.least / part))
        alone = part * self.single * np.maximum(needed - shares[:, None], 0)
        deeper = policy.deeper * point.seconds + alone / policy.deeper_saves
        return float((retrieval + part * self.scan * shares + np.minimum(alone, deeper).mean(1)).min())

    def near_field(
        self,
        beta: float,
        tolerance: float,
        part: float = 1.0,
        steps: bool = False,
        policy: AutoPolicy = DEFAULT_POLICY,
    ) -> tuple[NearPoint | None, float]:
        """Return the smallest of the fastest near fields, and its seconds; None and theirs for exact scores.

        Only near fields whose standard errors are right at all noise levels count: missed patches are rare
        and may show at one level only. A near field below the default size has to save much time
        (`AutoPolicy.saves`). Arguments as for `expected`.
        """
        blind = {(point.probes, point.candidates) for point in self.near if not point.sees(tolerance, policy)}
        expected = {
            point: self.expected(point, tolerance, part, steps, policy)
            for point in _at(self.near, beta)
            if (point.probes, point.candidates) not in blind
        }
        large = [seconds for point, seconds in expected.items() if point.candidates >= policy.candidates]
        most = policy.saves * min(large, default=math.inf)
        expected = {
            point: seconds
            for point, seconds in expected.items()
            if seconds <= most or point.candidates >= policy.candidates
        }
        least = min(expected.values(), default=math.inf)
        if least > part * self.exact:
            return None, part * self.exact
        good = [point for point in expected if expected[point] <= policy.same_cost * least]
        best = min(good, key=lambda point: point.seconds)
        return best, expected[best]

    def search(self, beta: float, candidates: int, quality: float) -> TopPoint:
        """Return the search of `topk` with the fewest probes whose mass is at least `quality`.

        Where codes are too coarse to reach `quality`, the goal is that share of the largest mass.
        """
        points = _at(self.top, beta)
        nearest = min(points, key=lambda point: abs(math.log(point.candidates / candidates))).candidates
        points = sorted((p for p in points if p.candidates == nearest), key=lambda point: point.probes)
        most = max(point.mass for point in points)
        goal = quality if most >= quality else quality * most
        return next(point for point in points if point.mass >= goal)


def _with_tuples(point: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in point.items()}


def _at(points: Sequence[Point], beta: float) -> list[Point]:
    """Return the points of the noise level nearest to beta."""
    nearest = min({point.beta for point in points}, key=lambda tried: abs(math.log(tried / beta)))
    return [point for point in points if point.beta == nearest]


def best_share(needed: np.ndarray, full: float, one: float) -> tuple[float, float]:
    """Return the share of all patches that is best sampled for all pixels at once, and the cost per pixel.

    When pixel i needs the share n_i, a share s for all pixels costs `full s + one mean(max(n_i - s, 0))`,
    which is least at one of the n_i or at 0. `full` and `one` are the costs per pixel of a scan of all
    patches, for all pixels at once and for a single pixel.
    """
    shares = np.concatenate([[0.0], np.sort(needed)])
    # The pixels above s are the last ones; each needs its own share less s.
    above = np.arange(len(shares))[::-1]
    beyond = shares.sum() - shares.cumsum() - shares * above
    costs = full * shares + one * beyond / len(needed)
    best = int(costs.argmin())
    return float(shares[best]), float(costs[best])
