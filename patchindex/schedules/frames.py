"""Frames: scalings of one noisy image that papers and libraries use.

    variance preserving    x = a x_0 + sqrt(beta) eps,  a = sqrt(1 - beta)    DDPM, DDIM, this package
    variance exploding     y = x_0 + sigma eps                                 EDM, k-diffusion
    flow                   z = (1 - s) x_0 + s eps                             rectified flow, flow matching

They are one image up to a factor: `y = x / a` with `sigma = sqrt(beta) / a`, and
`z = x sqrt((1 - s)^2 + s^2)` with `s = sigma / (1 + sigma)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["beta_of_flow", "beta_of_sigma", "flow_norm", "sigma_of", "with_noise"]


def with_noise(x_0: Tensor, eps: Tensor, beta: float | Tensor) -> Tensor:
    """Return the variance-preserving image `sqrt(1 - beta) x_0 + sqrt(beta) eps`."""
    return (1 - beta) ** 0.5 * x_0 + beta**0.5 * eps


def sigma_of(beta: float) -> float:
    """Return `sqrt(beta / (1 - beta))`, the noise of a variance-exploding image.

    Examples
    --------
    >>> sigma_of(0.5), round(beta_of_sigma(sigma_of(0.3)), 12)
    (1.0, 0.3)
    """
    return math.sqrt(beta / (1 - beta))


def beta_of_sigma(sigma: float) -> float:
    """Return `sigma^2 / (1 + sigma^2)`, the noise variance of a variance-preserving image."""
    return sigma**2 / (1 + sigma**2)


def beta_of_flow(s: float) -> float:
    """Return `s^2 / ((1 - s)^2 + s^2)`, the noise variance at time s of a rectified flow."""
    return s**2 / ((1 - s) ** 2 + s**2)


def flow_norm(s: float) -> float:
    """Return `sqrt((1 - s)^2 + s^2)`: an image of a rectified flow is x times this factor."""
    return math.hypot(1 - s, s)
