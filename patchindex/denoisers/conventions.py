"""Adapters: the posterior mean of a denoiser in the conventions of other libraries.

`patchindex.schedules.frames` has the scalings of noisy images. A noise level that another library names
becomes the time at which the denoiser's noise schedule has the same noise variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from patchindex.denoisers.arguments import Label
from patchindex.devices import in_float64
from patchindex.errors import InputError
from patchindex.estimators import Estimate
from patchindex.schedules import NoiseSchedule, time_of
from patchindex.schedules.frames import beta_of_flow, beta_of_sigma, flow_norm

__all__ = ["Adaptable", "Epsilon", "VarianceExploding", "Velocity", "mean_at"]


LARGEST_SIGMA = torch.finfo(torch.float32).max  # noisy images of more noise overflow
MOST_NOISE = 1 - 1e-9  # stands for 1, images of noise alone: the weights of patches differ by 1e-4 there


class HasMean(Protocol):
    """The part of a denoiser that adapters need."""

    noise: NoiseSchedule

    def posterior_mean(
        self, x: Tensor, t: float | Tensor, *, label: Label | None = None, seed: int = 0
    ) -> Estimate:
        """Return the posterior mean."""


@dataclass(frozen=True)
class _Adapter:
    """A denoiser, with the options of its calls.

    Attributes
    ----------
    denoiser : HasMean
    label : int or str, optional
        In place of the denoiser's own label, unless a call has one.
    seed : int
        Of the denoiser's random draws.
    """

    denoiser: HasMean
    label: Label | None = None
    seed: int = 0

    def _mean(self, x: Tensor, betas: list[float], label: Label | None) -> Tensor:
        return mean_at(self.denoiser, x, betas, label=self.label if label is None else label, seed=self.seed)


class VarianceExploding(_Adapter):
    """`D(y, sigma)`, the posterior mean of `y = x_0 + sigma eps`, as k-diffusion and EDM call denoisers."""

    def __call__(self, y: Tensor, sigma: float | Tensor, label: Label | None = None) -> Tensor:
        """Return the posterior mean, (B, C, H, W); `sigma` is above 0, a number or of shape (B,)."""
        sigmas = _numbers(sigma, len(y), "sigma", LARGEST_SIGMA)
        factor = _column([(1 + each**2) ** -0.5 for each in sigmas], y)
        return self._mean(y * factor, [beta_of_sigma(each) for each in sigmas], label).to(y.dtype)


class Epsilon(_Adapter):
    """`eps(x, t) = (x - a mu) / sqrt(beta)`, the noise in a variance-preserving image at the denoiser's t."""

    def __call__(self, x: Tensor, t: float | Tensor, label: Label | None = None) -> Tensor:
        """Return the noise, (B, C, H, W); t in (0, 1) is a number or of shape (B,)."""
        label = self.label if label is None else label
        mean = self.denoiser.posterior_mean(x, t, label=label, seed=self.seed).mean
        betas = [self.denoiser.noise(time) for time in _numbers(t, len(x), "t", 1)]
        a, b = (_column([each**0.5 for each in values], x) for values in ([1 - v for v in betas], betas))
        return ((x - a * mean) / b).to(x.dtype)


class Velocity(_Adapter):
    """`v(z, s) = eps - x_0`, the velocity of a rectified flow at `z = (1 - s) x_0 + s eps`."""

    def __call__(self, z: Tensor, s: float | Tensor, label: Label | None = None) -> Tensor:
        """Return the velocity, (B, C, H, W); s in (0, 1] is a number or of shape (B,)."""
        times = _numbers(s, len(z), "s", 1)
        mean = self._mean(
            z / _column([flow_norm(each) for each in times], z), [beta_of_flow(each) for each in times], label
        )
        return ((z - mean) / _column(times, z)).to(z.dtype)


def mean_at(
    denoiser: HasMean, x: Tensor, betas: list[float], *, label: Label | None = None, seed: int = 0
) -> Tensor:
    """Return the posterior mean of variance-preserving images whose noise variances are given.

    Parameters
    ----------
    denoiser : Denoiser
    x : Tensor, shape (B, C, H, W)
    betas : list of B float
        In (0, 1].
    label, seed
        As for `Denoiser.posterior_mean`.

    Raises
    ------
    InputError
        As from `Denoiser.posterior_mean`; when a variance is outside (0, 1], or the noise schedule of the
        denoiser ends below it.
    """
    times = {beta: time_of(denoiser.noise, min(beta, MOST_NOISE)) for beta in dict.fromkeys(betas)}
    t = torch.tensor([times[beta] for beta in betas], dtype=torch.float64)
    return denoiser.posterior_mean(x, t, label=label, seed=seed).mean


def _numbers(value: Any, batch: int, name: str, most: float) -> list[float]:
    """Return a number per image, above 0 and up to `most`."""
    try:
        numbers = in_float64(value).flatten().tolist()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = []
    if len(numbers) not in (1, batch) or not all(0 < each <= most for each in numbers):
        raise InputError(
            f"must be one positive number, or {batch}, up to {most:.2g}, got {value!r}",
            parameter=name,
            remedy="give one for each image",
        )
    return numbers * batch if len(numbers) == 1 else numbers


def _column(values: list[float], like: Tensor) -> Tensor:
    """Return a number per image, to be multiplied with images."""
    return torch.tensor(values, dtype=torch.float64).to(like.device, like.dtype)[:, None, None, None]


class Adaptable:
    """The methods of a denoiser that return adapters."""

    def as_denoiser(self: HasMean, label: Label | None = None, seed: int = 0) -> VarianceExploding:
        """Return `D(y, sigma)`, the posterior mean of `y = x_0 + sigma eps`, for k-diffusion and EDM.

        The noise schedule has to reach sigma: `noise="edm"` goes to 80, `noise="flow"` beyond.
        """
        return VarianceExploding(self, label, seed)

    def as_epsilon(self: HasMean, label: Label | None = None, seed: int = 0) -> Epsilon:
        """Return `eps(x, t)`, the noise in x_t at the time t of the denoiser, in (0, 1)."""
        return Epsilon(self, label, seed)

    def as_velocity(self: HasMean, label: Label | None = None, seed: int = 0) -> Velocity:
        """Return `v(z, s) = eps - x_0`, the velocity of a rectified flow at `z = (1 - s) x_0 + s eps`.

        The noise schedule has to reach the noise of z: make the denoiser with `noise="flow"`.
        """
        return Velocity(self, label, seed)
