"""Noise, and clean images with noise: the forward process of a denoiser."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers.arguments import times_of
from patchindex.devices import to_float64
from patchindex.errors import InputError
from patchindex.random_streams import random_stream
from patchindex.runtime import memory_limit
from patchindex.schedules import NoiseSchedule
from patchindex.schedules.frames import with_noise

__all__ = ["KEPT", "Noising", "check_clean", "check_memory", "draw_noise"]

VALUE_BYTES = 4  # float32
KEPT = 2  # arrays of the size of the images that `sample` always keeps: the noise and the images
ROUNDING = 0.01  # drawn images may leave [-1, 1] by so much


def draw_noise(seed: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise (n, C, H, W) in float32; image i depends on the seed and on i only.

    Raises InputError when noise and images need more memory than the process may use.
    """
    check_least(n=(n, 0), seed=(seed, 0))
    check_memory(n, KEPT * math.prod(shape))
    noise = np.empty((n, *shape), np.float32)
    for i in range(n):
        noise[i] = random_stream(seed, i).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(noise)


def check_memory(n: int, values: int) -> None:
    """Refuse a number of images that takes more memory than the process may use, at `values` per image."""
    need, limit = VALUE_BYTES * n * values, memory_limit()
    if need > limit:
        raise InputError(
            f"{n} images take {need / 2**30:,.0f} GiB, and this process may use {limit / 2**30:,.1f}",
            parameter="n",
            remedy="draw fewer at a time",
        )


def check_clean(images: Tensor, parameter: str) -> None:
    """Refuse clean images with values outside [-1, 1]."""
    largest = float(images.abs().max())
    if largest > 1 + ROUNDING:
        raise InputError(
            f"values must lie in [-1, 1], got {largest:.3g}",
            parameter=parameter,
            remedy="scale the images: uint8 / 127.5 - 1, as ImageSource.floats does",
        )


class HasNoise(Protocol):
    """The part of a denoiser that noising needs."""

    device: torch.device
    noise: NoiseSchedule

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""

    def check_x(self, x: Tensor, name: str = "x") -> Tensor:
        """Return images on the denoiser's device, in float32."""


class Noising:
    """The method of a denoiser that adds noise."""

    def add_noise(
        self: HasNoise, x_0: Tensor, t: float | Tensor, *, seed: int = 0, eps: Tensor | None = None
    ) -> Tensor:
        """Return `x_t = sqrt(1 - beta(t)) x_0 + sqrt(beta(t)) eps`, by the denoiser's noise schedule.

        Parameters
        ----------
        x_0 : Tensor, shape (n, C, H, W)
            Clean images in [-1, 1], such as `ImageSource.floats` returns. One image stands for all n.
        t : float, or Tensor of shape (n,)
            Times in (0, 1).
        seed : int
            Seed of the noise, which is `sampling.draw_noise(seed, n, shape)`.
        eps : Tensor, shape (n, C, H, W), optional
            Standard normal noise, in place of the seed's. One image stands for all n.

        Returns
        -------
        Tensor
            (n, C, H, W), float32, on the denoiser's device.

        Raises
        ------
        InputError
            When an argument has a wrong shape or number of images, a time is outside (0, 1), or a value of
            `x_0` is outside [-1, 1].

        Examples
        --------
        >>> from patchindex.denoisers import ScoreMachine
        >>> from patchindex.images import open_images
        >>> images = open_images(np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8))
        >>> m = ScoreMachine(images, machine="LS", locality=3)
        >>> x = m.add_noise(images.floats([7]), 0.1, seed=1)
        >>> x.shape, bool((m.posterior_mean(x, 0.1).mean - images.floats([7])).abs().mean() < 0.2)
        (torch.Size([1, 1, 8, 8]), True)
        >>> m.add_noise(images.floats([7]), torch.tensor([0.1, 0.5, 0.9])).shape  # one image, three times
        torch.Size([3, 1, 8, 8])
        """
        clean = self.check_x(x_0, "x_0")
        check_clean(clean, "x_0")
        check_least(seed=(seed, 0))
        noise = None if eps is None else self.check_x(eps, "eps")
        drawn, times = 1 if noise is None else len(noise), t.numel() if isinstance(t, Tensor) else np.size(t)
        counts = {"x_0": len(clean), "eps": drawn, "t": times}
        n = max(counts.values())
        for name, count in counts.items():
            if count not in (1, n):
                raise InputError(
                    f"has {count}, and {max(counts, key=counts.__getitem__)} has {n}",
                    parameter=name,
                    remedy=f"give one, or {n}",
                )
        if noise is None:
            noise = draw_noise(seed, n, self.shape).to(self.device)
        betas = torch.tensor([self.noise(time) for time in times_of(t, n)], dtype=torch.float64)
        clean, noise = to_float64(clean), to_float64(noise)
        noisy = with_noise(clean, noise, betas.to(clean.device)[:, None, None, None])
        return noisy.float().to(self.device)
