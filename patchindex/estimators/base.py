"""The one contract of all estimators: a `Query` in, an `Estimate` out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.exact import scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.index import PatchIndex
from patchindex.softmax import SoftmaxState

__all__ = [
    "Estimate",
    "Estimator",
    "Query",
    "ScoreContext",
    "TrajectoryCache",
    "check_between",
    "check_cpu",
    "index_of",
    "scale_of",
]


TrajectoryCache = dict[int, Any]


@dataclass(frozen=True)
class Query:
    """Noisy images whose posterior mean is asked for.

    Attributes
    ----------
    x : Tensor, shape (B, C, H, W), float32
    a, beta : float
        Signal scale `sqrt(1 - beta)` and noise variance.
    k : int or None
        Locality scale; None for IS, which has none.
    label : int or None
        Only training images of this label; None for all.
    seed : int
        For estimators that draw.
    image_ids : sequence of int, optional
        Numbers of the images, which draws depend on; by default 0, 1, ... in this batch.
    progress : callable or None
        Told the share that is done, in (0, 1].
    cache : dict or None
        What the steps before found, by number of the image; an estimator reads and writes it as it likes.
        Only steps of the same trajectories share it.
    """

    x: Tensor
    a: float
    beta: float
    k: int | None
    label: int | None = None
    seed: int = 0
    image_ids: Sequence[int] | None = None
    progress: Callable[[float], None] | None = None
    cache: TrajectoryCache | None = None


@dataclass(frozen=True)
class ScoreContext:
    """What an estimator draws from.

    Attributes
    ----------
    training : TrainingImages
    machine, train_windows : str
        The score machine.
    index : PatchIndex or None
        The patch index, when there is one.
    device : torch.device
        Where scores are computed.
    memory : int
        Bytes that temporary arrays may take.
    dtype : torch.dtype
        float32, or float64 for exact studies.
    scan : callable
        What exact scores are made by: `patchindex.exact.scan`, or the like on a cluster.
    """

    training: TrainingImages
    machine: str
    train_windows: str
    index: PatchIndex | None
    device: torch.device
    memory: int
    dtype: torch.dtype = torch.float32
    scan: Callable[..., SoftmaxState] = scan

    def geometry(self, k: int | None) -> Geometry:
        """Return the machine's geometry at locality scale k."""
        return Geometry.of(self.machine, k, self.training.size, self.train_windows)


@dataclass(frozen=True)
class Estimate:
    """A posterior mean, what was spent on it and how sure it is.

    Attributes
    ----------
    mean : Tensor, shape (B, C, H, W), float32
        `E[x_0 | x_t]` under the machine, in [-1, 1].
    stderr : Tensor, shape (B, H, W)
        Standard error of the mean, root mean square over channels: 0 for `exact`, NaN for `topk`, which has
        a bias and no variance.
    ess : Tensor, shape (B, H, W)
        Effective sample size of the softmax, `(sum w)^2 / sum w^2`.
    captured_mass : Tensor, shape (B, H, W)
        Share of the softmax that the evaluated patches hold, in [0, 1]: 1 for `exact`, else an estimate.
    patches_evaluated : int
        Exact logits computed, over all pixels.
    codes_scanned : int
        Codes whose approximate distance was computed, over all pixels.
    exact_pixels : int
        Pixels that were compared with every patch of their class.
    """

    mean: Tensor
    stderr: Tensor
    ess: Tensor
    captured_mass: Tensor
    patches_evaluated: int
    codes_scanned: int = 0
    exact_pixels: int = 0

    @classmethod
    def from_state(
        cls,
        state: SoftmaxState,
        *,
        stderr: Tensor,
        captured_mass: Tensor,
        codes_scanned: int = 0,
        exact_pixels: int = 0,
    ) -> Estimate:
        """Make the estimate of a softmax state of shape (B, H, W)."""
        return cls(
            mean=state.mean().permute(0, 3, 1, 2).float().contiguous(),
            stderr=stderr.float(),
            ess=state.ess().float(),
            captured_mass=captured_mass.float(),
            patches_evaluated=int(state.count.sum()),
            codes_scanned=codes_scanned,
            exact_pixels=exact_pixels,
        )

    @classmethod
    def cat(cls, parts: Sequence[Estimate]) -> Estimate:
        """Join the estimates of parts of a batch."""
        return cls(
            mean=torch.cat([p.mean for p in parts]),
            stderr=torch.cat([p.stderr for p in parts]),
            ess=torch.cat([p.ess for p in parts]),
            captured_mass=torch.cat([p.captured_mass for p in parts]),
            patches_evaluated=sum(p.patches_evaluated for p in parts),
            codes_scanned=sum(p.codes_scanned for p in parts),
            exact_pixels=sum(p.exact_pixels for p in parts),
        )

    def __getitem__(self, rows: Tensor) -> Estimate:
        """Return the same estimate with its images in another order, a permutation."""
        tensors = ("mean", "stderr", "ess", "captured_mass")
        return replace(self, **{name: getattr(self, name)[rows] for name in tensors})


def check_cpu(data: ScoreContext, name: str) -> None:
    """Refuse a device that an estimator's kernels do not run on.

    Raises
    ------
    InputError
        When it is not the CPU.
    """
    if data.device.type != "cpu":
        raise InputError(
            "it runs on the CPU only", where=f"estimator {name!r}", remedy="use device cpu, or 'topk'"
        )


def index_of(data: ScoreContext, name: str, **options: int | None) -> PatchIndex:
    """Return the index that an estimator needs.

    Raises
    ------
    InputError
        When there is none, or one of the estimator's counts is given and no whole number from 1.
    """
    if data.index is None or not data.index.scales:
        raise InputError(
            "it needs a patch index, and there is none", where=f"estimator {name!r}", remedy="use 'exact'"
        )
    for option, value in options.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"must be a whole number, got {value}", where=option, remedy="use 256, say")
        if value < 1:
            raise InputError(f"must be at least 1, got {value}", where=option, remedy="use a larger number")
    return data.index


def check_between(name: str, value: Any, low: float, high: float, remedy: str) -> None:
    """Refuse an option that is no finite number above `low` and up to `high`.

    Raises
    ------
    InputError
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low < float(value) <= high or math.isinf(value):
        most = "" if high == math.inf else f" and at most {high:g}"
        raise InputError(f"must be a number above {low:g}{most}, got {value!r}", where=name, remedy=remedy)


def scale_of(query: Query, name: str) -> int:
    """Return the locality scale that an estimator needs.

    Raises
    ------
    InputError
        When the query has none.
    """
    if query.k is None:
        raise InputError(f"{name} needs one", where="locality scale", remedy="give k or a locality schedule")
    return int(query.k)


class Estimator(Protocol):
    """A way to estimate the posterior mean.

    A class whose constructor takes the `ScoreContext` and its own options by keyword, and whose instances
    turn a `Query` into an `Estimate`.
    """

    def __call__(self, query: Query) -> Estimate:
        """Estimate the posterior mean at every pixel of the query."""
        ...
