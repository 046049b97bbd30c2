"""Noise of samplers: a function of the seed and of the number of the image, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers import Denoiser
from patchindex.errors import InputError
from patchindex.runtime import memory_limit

__all__ = ["as_tensor", "check_memory", "draw_noise", "starting_noise", "step_noise"]

VALUE_BYTES = 4  # float32
KEPT = 2  # arrays of the size of the images that `sample` always keeps: the noise and the images
STEPS_STREAM = 1  # tells the noise of steps from the noise of the start


def draw_noise(seed: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise (n, C, H, W) in float32; image i depends on the seed and on i only.

    Raises InputError when noise and images need more memory than the process may use.
    """
    check_least(n=(n, 0), seed=(seed, 0))
    check_memory(n, KEPT * math.prod(shape))
    noise = np.empty((n, *shape), np.float32)
    for i in range(n):
        noise[i] = np.random.default_rng([seed, i]).standard_normal(shape, dtype=np.float32)
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


def step_noise(seed: int, image_ids: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
    """Return a function that draws the noise of step i for these images, of the shape of x."""

    def draw(x: Tensor, i: int) -> Tensor:
        rows = [
            np.random.default_rng([seed, image, i, STEPS_STREAM]).standard_normal(x.shape[1:], np.float32)
            for image in image_ids
        ]
        return torch.from_numpy(np.stack(rows)).to(x.device)

    return draw


def starting_noise(denoiser: Denoiser, n: int | None, seed: int, x_T: Tensor | np.ndarray | None) -> Tensor:
    """Return the noise that `sample` starts from, on the denoiser's device: `x_T`, or the seed's."""
    check_least(n=(1 if n is None else n, 1), seed=(seed, 0))
    if x_T is None:
        return draw_noise(seed, 1 if n is None else n, denoiser.shape).to(denoiser.device)
    noise = denoiser.check_x(x_T if isinstance(x_T, Tensor) else as_tensor(x_T), "x_T")
    if n is not None and n != len(noise):
        raise InputError(f"is {n}, but x_T has {len(noise)} images", parameter="n", remedy="leave n out")
    return noise


def as_tensor(x_T: Any, parameter: str = "x_T") -> Tensor:
    """Return an array of floats, of any byte order, strides and width, as a tensor."""
    try:
        array = np.asarray(x_T)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind != "f":
        raise InputError(
            f"is no array of floats: {type(x_T).__name__}", parameter=parameter, remedy="give floats"
        )
    return torch.from_numpy(np.ascontiguousarray(array, np.float64 if array.itemsize > 4 else np.float32))
