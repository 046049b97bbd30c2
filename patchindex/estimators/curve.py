"""The operating curve of a scale: what options cost and what they are good for, measured on noisy images.

`patchindex.study.tune` measures it and writes it into the store; estimators choose their options by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from patchindex.errors import StoreError
from patchindex.index import ScaleIndex
from patchindex.index.scale import MEASURE_AGAIN

__all__ = ["ATTRIBUTE", "DEEPER", "NearPoint", "OperatingCurve", "TopPoint", "best_share"]

ATTRIBUTE = "operating_curve"  # of a scale's group in the store
# What `auto` does for pixels that need much: so many times as much is retrieved, and then so much less is
# sampled (docs/decisions/0005-near-field-and-sample.md; no more than for four times as much, to be careful).
DEEPER, LESS = 8, 4
ALIKE = 1.1  # times the least
# A near field is of use where what it misses adds at most so much to the square of the error, in units of the
# square of the tolerance. About .4 of it is what pixels have on average.
MISSED = 0.15
MOVES = tuple(2.0**-j for j in range(2, 12))  # of the mean, by single patches
VERSION = 2  # of what is written there


@dataclass(frozen=True)
class NearPoint:
    """A near field as `auto` retrieves it, and what it leaves to a sample of all other patches.

    Attributes
    ----------
    beta : float
        Noise variance.
    probes, candidates : int
    seconds, again : float
        That retrieval takes, a pixel: for a single noisy image, and where a step before has found most of it.
    variance : tuple of float
        Of the posterior mean, mean over channels, with half of the other patches sampled: quantiles over
        pixels, ascending, each of as many pixels. A share f of them leaves (1 - f) / f of it.
    missed : tuple of float, or None
        Mean square error by heavy patches that it misses, though a larger near field has them: those of which
        each moves the mean by more than `MOVES`. A sample seldom has one, and knows nothing of it otherwise.
        None where it was not measured, since exact scores are cheaper than the near field.
    """

    beta: float
    probes: int
    candidates: int
    seconds: float
    again: float
    variance: tuple[float, ...]
    missed: tuple[float, ...] | None

    def sees(self, tolerance: float) -> bool:
        """Whether standard errors to a tolerance are right: what a sample does not see is small."""
        if self.missed is None:
            return True
        hidden = next((i for i, move in enumerate(MOVES) if move <= tolerance / 2), -1)
        return self.missed[hidden] <= MISSED * tolerance**2


@dataclass(frozen=True)
class TopPoint:
    """A search as `topk` does it.

    Attributes
    ----------
    beta : float
        Noise variance.
    probes, candidates : int
    seconds : float
        A pixel.
    mass : float
        What the patches found weigh, over what as many of the heaviest patches do; mean over pixels, in
        [0, 1].
    """

    beta: float
    probes: int
    candidates: int
    seconds: float
    mass: float


Point = TypeVar("Point", NearPoint, TopPoint)


@dataclass(frozen=True)
class OperatingCurve:
    """What was measured at one locality scale.

    Attributes
    ----------
    images : int
        Training images that the noisy ones were compared with.
    exact : float
        Seconds a pixel of exact scores.
    scan, single : float
        Seconds a pixel of a sample of all these: for all pixels at once, and for one alone.
    least : float
        Share of all these that `auto` samples in any case, in (0, 1].
    near : tuple of NearPoint
    top : tuple of TopPoint
    """

    images: int
    exact: float
    scan: float
    single: float
    least: float
    near: tuple[NearPoint, ...]
    top: tuple[TopPoint, ...]

    @classmethod
    def of(cls, scale: ScaleIndex) -> OperatingCurve | None:
        """Return what a store holds of a scale; None when it was not measured, or by another version.

        Raises
        ------
        StoreError
            When it is damaged.
        """
        return cls.read(scale.attributes.get(ATTRIBUTE), scale.path)

    @classmethod
    def read(cls, found: Any, where: object) -> OperatingCurve | None:
        """Return what `as_dict` gave; None for another version's, or nothing. Raises as `of` does."""
        if not isinstance(found, dict) or found.get("version") != VERSION:
            return None
        found = {name: value for name, value in found.items() if name != "version"}
        try:
            near = tuple(NearPoint(**_hashable(point)) for point in found["near"])
            top = tuple(TopPoint(**point) for point in found["top"])
            return cls(**{**found, "near": near, "top": top})
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"its operating curve is damaged ({error})",
                where=where,
                remedy=MEASURE_AGAIN,
            ) from error

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"version": VERSION, **asdict(self)}

    def expected(
        self, point: NearPoint, tolerance: float, images: int | None = None, steps: bool = False
    ) -> float:
        """Return the seconds a pixel that `auto` is expected to take from a near field to a tolerance.

        Parameters
        ----------
        point : NearPoint
        tolerance : float
            Of the standard error.
        images : int, optional
            Training images to draw from, by default all: fewer take less time, and vary more.
        steps : bool
            Whether the noisy image is one of a trajectory, about half of which find what was found before.
        """
        retrieval = (point.seconds + point.again) / 2 if steps else point.seconds
        part = 1.0 if images is None else images / self.images
        one = np.array(point.variance) / part
        needed = one / (one + tolerance**2)
        shares = np.append(np.maximum(needed, min(1.0, self.least / part)), min(1.0, self.least / part))
        alone = part * self.single * np.maximum(needed - shares[:, None], 0)
        deeper = DEEPER * point.seconds + alone / LESS
        return float((retrieval + part * self.scan * shares + np.minimum(alone, deeper).mean(1)).min())

    def near_field(
        self, beta: float, tolerance: float, images: int | None = None, steps: bool = False
    ) -> tuple[NearPoint | None, float]:
        """Return the near field by which `auto` is expected to take the least time, and that time.

        Of those whose standard errors are right at all noise levels: what is missed is rare, and seen at one
        level or another. None, and the time of exact scores, where there is none, or they are cheaper. Times
        are known to a tenth or so: of those that are as good as the best, the smallest.
        """
        part = 1.0 if images is None else images / self.images
        blind = {(point.probes, point.candidates) for point in self.near if not point.sees(tolerance)}
        expected = {
            point: self.expected(point, tolerance, images, steps)
            for point in _at(self.near, beta)
            if (point.probes, point.candidates) not in blind
        }
        least = min(expected.values(), default=math.inf)
        if least > part * self.exact:
            return None, part * self.exact
        good = [point for point in expected if expected[point] <= ALIKE * least]
        best = min(good, key=lambda point: point.seconds)
        return best, expected[best]

    def search(self, beta: float, candidates: int, quality: float) -> TopPoint:
        """Return the search with the fewest probes that finds a share of what the heaviest candidates weigh.

        Of the numbers of candidates that were tried, the nearest counts. Where none of the probes tried is
        enough, since codes are too coarse to tell the heaviest, it is that share of what was found at most.
        """
        points = _at(self.top, beta)
        nearest = min(points, key=lambda point: abs(math.log(point.candidates / candidates))).candidates
        points = sorted((p for p in points if p.candidates == nearest), key=lambda point: point.probes)
        most = max(point.mass for point in points)
        goal = quality if most >= quality else quality * most
        return next(point for point in points if point.mass >= goal)


def _hashable(point: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in point.items()}


def _at(points: Sequence[Point], beta: float) -> list[Point]:
    """Return the points of the noise level nearest to beta."""
    nearest = min({point.beta for point in points}, key=lambda tried: abs(math.log(tried / beta)))
    return [point for point in points if point.beta == nearest]


def best_share(needed: np.ndarray, full: float, one: float) -> tuple[float, float]:
    """Return the share of all patches that is best sampled for all pixels at once, and the cost a pixel.

    Pixels that need more of them get it alone. With n_i the share that pixel i needs, the cost of sampling a
    share s for all is `full s + one mean(max(n_i - s, 0))`, which is least at one of the n_i, or at 0.

    Parameters
    ----------
    needed : array of float, shape (pixels,)
        In [0, 1].
    full, one : float
        What a scan of all patches costs a pixel: for all pixels at once, and for one alone.

    Examples
    --------
    >>> best_share(np.array([0.25, 0.25, 0.25, 0.75]), 1.0, 2.0)
    (0.25, 0.5)
    """
    shares = np.concatenate([[0.0], np.sort(needed)])
    # What those above s need beyond it; a share more is s larger for all of them.
    above = np.arange(len(shares))[::-1]
    beyond = shares.sum() - shares.cumsum() - shares * above
    costs = full * shares + one * beyond / len(needed)
    best = int(costs.argmin())
    return float(shares[best]), float(costs[best])
