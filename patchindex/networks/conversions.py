"""Conversions between the predictions and the time variables of networks.

With `a = sqrt(1 - beta)` and `x = a x_0 + sqrt(beta) eps`, the posterior mean of x_0 is

    epsilon    (x - sqrt(beta) eps) / a
    x0         x_0
    v          a x - sqrt(beta) v,          v = a eps - sqrt(beta) x_0     (Salimans & Ho, arXiv 2202.00512)
    score      (x + beta score) / a

A network of the time variable `sigma` sees `y = x / a = x_0 + sigma eps`, with `sigma = sqrt(beta) / a`, as
Karras et al. (arXiv 2206.00364) do. Its score is the score of y, so that the mean is `y + sigma^2 score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.schedules.frames import sigma_of

__all__ = ["PREDICTIONS", "TIMES", "NoiseTable", "mean_of", "network_input"]

PREDICTIONS = ("epsilon", "x0", "v", "score")
TIMES = ("t", "sigma", "index")


class NoiseTable:
    """A noise schedule given by the noise variances of n steps: `beta(t) = betas[round(n t) - 1]`.

    Parameters
    ----------
    betas : sequence of float
        Noise variances in (0, 1], ascending: `1 - alphas_cumprod` of a scheduler of diffusers, not its
        `betas`, which are the increments from step to step.

    Raises
    ------
    InputError
        When a variance is outside (0, 1], or they are not ascending.

    Examples
    --------
    >>> table = NoiseTable([0.1, 0.2, 0.5, 0.9])
    >>> table(0.0), table(0.25), table(0.9), table.index(0.45)
    (0.0, 0.1, 0.9, 2)
    """

    def __init__(self, betas: Sequence[float] | np.ndarray | Tensor) -> None:
        try:
            self.betas = np.asarray(betas, np.float64)
        except (TypeError, ValueError):
            raise InputError("is not a list of numbers", parameter="schedule", remedy=REMEDY) from None
        inside = (
            self.betas.ndim == 1
            and self.betas.size > 0
            and bool(((self.betas > 0) & (self.betas <= 1)).all())
        )
        if not inside or bool((np.diff(self.betas) <= 0).any()):
            raise InputError(
                "must be noise variances in (0, 1], ascending", parameter="schedule", remedy=REMEDY
            )
        self.__name__ = (
            f"table of {self.betas.size} variances from {self.betas[0]:.3g} to {self.betas[-1]:.3g}"
        )

    def __call__(self, t: float) -> float:
        """Return the noise variance at time t in [0, 1]; 0 at t = 0."""
        step = min(max(round(t * self.betas.size), 1), self.betas.size)
        return float(self.betas[step - 1]) if t > 0 else 0.0

    def index(self, beta: float) -> int:
        """Return the position of the variance that is nearest to `beta`."""
        return int(np.abs(self.betas - beta).argmin())


REMEDY = "give 1 - alphas_cumprod"


def network_input(x: Tensor, t: float, beta: float, time: str, table: Any) -> tuple[Tensor, Tensor]:
    """Return the images and the times (B,) that a network of this time variable takes.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        `a x_0 + sqrt(beta) eps`.
    t, beta : float
    time : str
        One of `TIMES`: `"t"`, `"sigma"`, or `"index"`, the position in `table` of the variance nearest to
        `beta`, as int64.
    table : NoiseTable
        Used by `"index"` only.
    """
    if time == "sigma":
        return x / (1 - beta) ** 0.5, torch.full((len(x),), sigma_of(beta), device=x.device)
    if time == "index":
        return x, torch.full((len(x),), table.index(beta), device=x.device)
    return x, torch.full((len(x),), t, device=x.device)


def mean_of(predicted: Tensor, x: Tensor, beta: float, predicts: str, time: str) -> Tensor:
    """Return the posterior mean that goes with the prediction of a network; all shapes (B, C, H, W)."""
    a, scale = (1 - beta) ** 0.5, beta**0.5
    if predicts == "x0":
        return predicted
    if predicts == "v":
        return a * x - scale * predicted
    if predicts == "score":
        return (x + (beta / a if time == "sigma" else beta) * predicted) / a
    return (x - scale * predicted) / a
