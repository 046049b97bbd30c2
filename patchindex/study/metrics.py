"""Measures of how close images and estimates are to a reference: one number per image.

The "r^2" of the paper's code is Pearson's r of images that are centred by their global mean, not its square;
here both measures have names of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from patchindex.devices import to_float64
from patchindex.estimators import Estimate

ONE_COLOUR = 1e-5  # standard deviation; float32 rounds posterior means by up to about 1e-6

__all__ = ["accuracy", "pearson_r", "r2", "rmse", "root_mean_square"]

SLACK = 0.001  # of an error beyond two standard errors: 1/8 of a grey level


def pearson_r(images: Tensor, reference: Tensor) -> Tensor:
    """Return the correlation, (n,) float64, of each image (n, C, H, W) with its reference.

    >>> import torch
    >>> x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)
    >>> round(pearson_r(0.5 * x + 0.1, x).item(), 6)
    1.0
    """
    rows = (to_float64(each).flatten(1) for each in (images, reference))
    a, b = (each - each.mean(1, keepdim=True) for each in rows)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def r2(images: Tensor, reference: Tensor) -> Tensor:
    """Return the coefficient of determination, (n,) float64, of each image (n, C, H, W).

        r2 = 1 - sum (image - reference)^2 / sum (reference - mean of the reference)^2

    >>> import torch
    >>> x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)
    >>> r2(x, x).item(), round(r2(0.5 * x, x).item(), 6)
    (1.0, 0.75)
    """
    a, b = to_float64(images).flatten(1), to_float64(reference).flatten(1)
    return 1 - (a - b).square().sum(1) / (b - b.mean(1, keepdim=True)).square().sum(1)


def has_one_colour(images: Tensor) -> Tensor:
    """Return whether each image (n, C, H, W) has one value up to rounding: (n,) bool.

    Neither Pearson's r nor R^2 applies to such an image: they would compare rounding errors.
    """
    return to_float64(images).flatten(1).std(1, correction=0) <= ONE_COLOUR


def rmse(images: Tensor, reference: Tensor) -> Tensor:
    """Return the root mean square difference, (n,) float64, of each image (n, C, H, W) from its reference."""
    return (to_float64(images) - to_float64(reference)).flatten(1).square().mean(1).sqrt()


def root_mean_square(values: Iterable[float]) -> float:
    """Return the root mean square of some values."""
    squares = [value * value for value in values]
    return math.sqrt(sum(squares) / len(squares))


def accuracy(estimate: Estimate, exact: Tensor) -> dict[str, list[Any]]:
    """Compare an estimate with the exact posterior mean (B, C, H, W): lists with one value per image.

    `rmse` and `max_error` are over pixels and channels; `stderr` is the root mean square over pixels;
    `coverage` is the share of pixels and channels with `|error| <= 2 stderr + 0.001`; `captured_mass` and
    `ess` are averages over pixels. `stderr` and `coverage` are None without standard errors.

    >>> import torch
    >>> mean, each = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4)
    >>> estimate = Estimate(mean, 0.01 * each, each, each, patches_evaluated=16)
    >>> found = accuracy(estimate, mean + 0.01)
    >>> round(found["rmse"][0], 4), round(found["stderr"][0], 4), found["coverage"]
    (0.01, 0.01, [1.0])
    """
    error = (to_float64(estimate.mean) - to_float64(exact)).abs()
    allowed = (2 * to_float64(estimate.stderr) + SLACK).unsqueeze(1)
    stderr = to_float64(estimate.stderr).square().flatten(1).mean(1).sqrt()
    within = (error <= allowed).double().flatten(1).mean(1)
    known = ~stderr.isnan()
    return {
        "rmse": error.square().flatten(1).mean(1).sqrt().tolist(),
        "max_error": error.flatten(1).amax(1).tolist(),
        "stderr": [float(value) if there else None for value, there in zip(stderr, known, strict=True)],
        "coverage": [float(value) if there else None for value, there in zip(within, known, strict=True)],
        "captured_mass": to_float64(estimate.captured_mass).flatten(1).mean(1).tolist(),
        "ess": to_float64(estimate.ess).flatten(1).mean(1).tolist(),
    }
