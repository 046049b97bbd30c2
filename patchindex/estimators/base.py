"""The contract of all estimators: a `ScoreRequest` in, an `Estimate` out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from patchindex.errors import InputError, Option
from patchindex.exact import ScoreRequest, scan
from patchindex.index import PatchIndex
from patchindex.softmax import SoftmaxState

__all__ = ["Estimate", "Estimator", "ScoreContext", "check_between", "check_cpu", "index_of"]


@dataclass(frozen=True)
class ScoreContext:
    """The parts of a machine that its estimator needs for every request."""

    index: PatchIndex | None
    device: torch.device  # where scores are computed
    scan: Callable[[ScoreRequest], SoftmaxState] = scan  # exact scores, of this process or of a cluster


@dataclass(frozen=True)
class Estimate:
    """A posterior mean with its standard error and its cost.

    Attributes
    ----------
    mean : Tensor, shape (B, C, H, W), float32
        `E[x_0 | x_t]` under the machine, in [-1, 1].
    stderr : Tensor, shape (B, H, W)
        Standard error of the mean, root mean square over channels: 0 for `exact`, NaN for `topk`, whose error
        is a bias and not a variance.
    ess : Tensor, shape (B, H, W)
        Effective sample size of the softmax with weights w, `(sum w)^2 / sum w^2`.
    captured_mass : Tensor, shape (B, H, W)
        Share of the softmax weights that the evaluated patches hold, in [0, 1]: 1 for `exact`, else an
        estimate.
    patches_evaluated : int
        Exact logits computed, summed over all pixels.
    codes_scanned : int
        Codes whose approximate distance was computed, summed over all pixels.
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
        """Return the estimate of a softmax state of shape (B, H, W)."""
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
        """Return the same estimate with its images permuted."""
        tensors = ("mean", "stderr", "ess", "captured_mass")
        return replace(self, **{name: getattr(self, name)[rows] for name in tensors})


def check_cpu(context: ScoreContext, name: str) -> None:
    """Refuse a device other than the CPU."""
    if context.device.type != "cpu":
        raise InputError(
            f"{name} runs on the CPU only",
            parameter="device",
            remedy=["use ", Option("device", "cpu"), " or ", Option("estimator", "topk")],
        )


def index_of(context: ScoreContext, name: str, **counts: int | None) -> PatchIndex:
    """Return the index that an estimator needs; refuse counts that are not None or a whole number from 1."""
    if context.index is None or not context.index.scales:
        raise InputError(
            f"{name} needs a patch index",
            parameter="estimator",
            remedy=["use ", Option("estimator", "exact")],
        )
    for option, value in counts.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"must be a whole number, got {value}", parameter=option, remedy="use 256, say")
        if value < 1:
            raise InputError(f"must be at least 1, got {value}", parameter=option, remedy="use 256, say")
    return context.index


def check_between(name: str, value: Any, low: float, high: float, remedy: str) -> None:
    """Refuse an option that is not a finite number above `low` and up to `high`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low < float(value) <= high or math.isinf(value):
        most = "" if high == math.inf else f" and at most {high:g}"
        what = f"must be a number above {low:g}{most}, got {value!r}"
        raise InputError(what, parameter=name, remedy=remedy)


class Estimator(Protocol):
    """A function from a `ScoreRequest` to an `Estimate`.

    Estimators are classes; the constructor takes the `ScoreContext` and the options of the estimator.
    """

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Estimate the posterior mean at every pixel of the request."""
