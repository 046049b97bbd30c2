"""The contract of all estimators: a `ScoreRequest` in, an `Estimate` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from patchindex.checks import check_optional, is_real
from patchindex.errors import InputError, Option
from patchindex.exact import HeaviestPatches, ScoreRequest, scan, scan_parts
from patchindex.index import PatchIndex, ScaleIndex
from patchindex.softmax import SoftmaxState

__all__ = [
    "COSTS",
    "Estimate",
    "Estimator",
    "ScoreContext",
    "check_between",
    "check_tolerance",
    "index_of",
    "label_index",
    "project",
]

TENSORS = ("mean", "stderr", "ess", "captured_mass")
COSTS = ("patches_evaluated", "codes_scanned", "exact_pixels")


@dataclass(frozen=True)
class ScoreContext:
    """The parts of a machine that its estimator needs for every request."""

    index: PatchIndex | None
    device: torch.device  # where scores are computed
    scan: Callable[[ScoreRequest], SoftmaxState] = scan  # of this process, several devices or a cluster
    scan_parts: Callable[[ScoreRequest, Sequence[int]], SoftmaxState] = scan_parts


@dataclass(frozen=True, repr=False)
class Estimate:
    """A posterior mean with its standard error and its cost.

    Attributes
    ----------
    mean : Tensor, shape (B, C, H, W), float32
        `E[x_0 | x_t]` under the denoiser, in [-1, 1] if it is an average of training images. `Wiener`,
        `GaussianMixture` and networks may leave that range.
    stderr : Tensor, shape (B, H, W)
        Standard error of the mean that random draws cause, root mean square over channels: 0 for `exact` and
        for each denoiser that draws none, NaN for `topk`, whose error is a bias and not a variance.
    ess : Tensor, shape (B, H, W)
        Effective sample size of the softmax with weights w, `(sum w)^2 / sum w^2`; NaN for a denoiser without
        a softmax, such as `Wiener`, and 1 for `NearestImage`, the limit of a softmax.
    captured_mass : Tensor, shape (B, H, W)
        Share of the softmax weights that the evaluated patches hold: 1 for `exact` and for each denoiser that
        uses all training images, else estimated.
    patches_evaluated, codes_scanned, exact_pixels : int
        Comparisons of a pixel with a training patch (or image) and approximate distances computed, summed
        over all pixels; and the pixels that were compared with every patch (or image) of their class.
    method : str
        Source of the mean: `"exact"`, all patches; `"near field"`, retrieved patches and a random sample of
        all others; `"sample"`, a random sample alone; `"topk"`, retrieved patches alone. Pixels of a near
        field or a sample may be exact: `exact_pixels` counts them. The methods of images at different times
        are joined by commas. Empty for a denoiser without an estimator.

    Examples
    --------
    >>> import numpy as np, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> pi.ScoreMachine(images, locality=3).posterior_mean(torch.randn(2, 1, 8, 8), 0.5)
    Estimate(2 images of 1 x 8 x 8: exact, 128 of 128 pixels exact, 720 patches per pixel)
    """

    mean: Tensor
    stderr: Tensor
    ess: Tensor
    captured_mass: Tensor
    patches_evaluated: int
    codes_scanned: int = 0
    exact_pixels: int = 0
    method: str = ""

    @classmethod
    def from_state(
        cls, state: SoftmaxState, stderr: Tensor, captured_mass: Tensor, method: str = "", **costs: int
    ) -> Estimate:
        """Return the estimate of a softmax state of shape (B, H, W)."""
        return cls(
            mean=state.mean().permute(0, 3, 1, 2).float().contiguous(),
            stderr=stderr.float(),
            ess=state.ess().float(),
            captured_mass=captured_mass.float(),
            patches_evaluated=int(state.count.sum()),
            method=method,
            **costs,
        )

    @classmethod
    def cat(cls, parts: Sequence[Estimate]) -> Estimate:
        """Join the estimates of parts of a batch."""
        joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in TENSORS}
        costs: dict[str, Any] = {name: sum(getattr(p, name) for p in parts) for name in COSTS}
        methods = dict.fromkeys(each for p in parts for each in p.method.split(", ") if each)
        return cls(**joined, **costs, method=", ".join(methods))

    def to(self, device: torch.device) -> Estimate:
        """Return the same estimate on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def __getitem__(self, rows: Tensor) -> Estimate:
        """Return the same estimate with its images permuted."""
        return replace(self, **{name: getattr(self, name)[rows] for name in TENSORS})

    def __repr__(self) -> str:
        n, channels, height, width = self.mean.shape
        pixels = n * height * width
        found = [self.method] if self.method else []
        found += [f"{self.exact_pixels:,} of {pixels:,} pixels exact"] if self.exact_pixels else []
        if self.patches_evaluated:
            found.append(f"{self.patches_evaluated / pixels:,.0f} patches per pixel")
        if (largest := float(self.stderr.max())) > 0:  # NaN is not
            found.append(f"standard error at most {largest:.2g}")
        images = f"{n} image{'s' * (n != 1)} of {channels} x {height} x {width}"
        return f"Estimate({images}{': ' * bool(found)}{', '.join(found)})"


def index_of(context: ScoreContext, name: str, **counts: int | None) -> PatchIndex:
    """Return the index that an estimator needs; refuse counts that are not None or a whole number from 1."""
    if context.index is None or not context.index.scales:
        raise InputError(
            f"{name} needs a patch index",
            parameter="estimator",
            remedy=[
                "use ",
                Option("estimator", "exact"),
                ", or a store of ELS or bbELS, as patchindex build makes it",
            ],
        )
    check_optional(**{option: (value, 1) for option, value in counts.items()})
    return context.index


def label_index(index: PatchIndex, request: ScoreRequest) -> int | None:
    """Return the number of the request's label among the labels of the index; None for all labels."""
    return None if request.label is None else index.attributes["labels"].index(request.label)


def project(scale: ScaleIndex, request: ScoreRequest) -> Tensor:
    """Return the projected queries of all pixels of a request, (B * H * W, dims)."""
    scale.warn_of_drift()
    # One image at a time: products of another shape would round otherwise.
    return torch.cat([scale.pca.project_queries(x[None], scale.geometry, request.a) for x in request.x])


def check_between(name: str, value: Any, low: float, high: float, remedy: str) -> None:
    """Refuse an option that is not a number above `low` and up to `high`."""
    if not is_real(value) or not low < value <= high:
        what = f"must be a number above {low:g} and at most {high:g}, got {value!r}"
        raise InputError(what, parameter=name, remedy=remedy)


def check_tolerance(tolerance: Any) -> None:
    """Refuse a tolerance outside (0, 2]: images lie in [-1, 1], so that no error is larger than 2."""
    check_between("tolerance", tolerance, 0, 2, "use 0.01, for example")


class Estimator(Protocol):
    """A function from a `ScoreRequest` to an `Estimate`.

    The constructor takes the `ScoreContext` and the options of the estimator.

    Attributes
    ----------
    searches : bool
        True when the estimator searches an index, which must have the scale of each request.
    takes_shards : bool
        True when the estimator gives exact scores by `ScoreContext.scan`, which shards on a cluster replace.
    """

    searches: bool
    takes_shards: bool

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Estimate the posterior mean at every pixel of the request."""

    def heaviest(self, request: ScoreRequest, top: int) -> HeaviestPatches:
        """Return the `top` heaviest patches of the wanted pixels, with their weights among all patches."""
