"""Noise of samplers: a function of the seed and of the number of the image, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least, check_optional
from patchindex.denoisers import Denoiser
from patchindex.denoisers.noising import draw_noise
from patchindex.errors import InputError
from patchindex.random_streams import random_stream

__all__ = ["as_tensor", "starting_noise", "step_noise"]

STEPS_STREAM = 1  # tells the noise of steps from the noise of the start


def step_noise(seed: int, image_ids: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
    """Return a function that draws the noise of step i for these images, of the shape of x."""

    def draw(x: Tensor, i: int) -> Tensor:
        rows = [
            random_stream(seed, image, i, STEPS_STREAM).standard_normal(x.shape[1:], np.float32)
            for image in image_ids
        ]
        return torch.from_numpy(np.stack(rows)).to(x.device)

    return draw


def starting_noise(denoiser: Denoiser, n: int | None, seed: int, x_T: Tensor | np.ndarray | None) -> Tensor:
    """Return the noise that `sample` starts from, on the denoiser's device: `x_T`, or the seed's."""
    check_least(seed=(seed, 0))
    check_optional(n=(n, 1))
    if x_T is None:
        return draw_noise(seed, 1 if n is None else n, denoiser.shape).to(denoiser.device)
    noise = denoiser.check_x(as_tensor(x_T, "x_T"), "x_T")
    if n is not None and n != len(noise):
        raise InputError(f"is {n}, but x_T has {len(noise)} images", parameter="n", remedy="leave n out")
    return noise


def as_tensor(array_like: Any, parameter: str, kind: Literal["floats", "bools"] = "floats") -> Tensor:
    """Return an array of any byte order and strides as a tensor; a tensor is returned as it is.

    Floats become float64 if they are wider than float32, or else float32.
    """
    if isinstance(array_like, Tensor):
        return array_like
    try:
        array = np.asarray(array_like)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind != kind[0]:
        found = array.dtype if isinstance(array_like, np.ndarray) else type(array_like).__name__
        raise InputError(f"is no array of {kind}: {found}", parameter=parameter, remedy=f"give {kind}")
    wide = np.float64 if array.itemsize > 4 else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, wide if kind == "floats" else bool))
