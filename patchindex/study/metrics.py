"""Measures of how close images and estimates are to a reference: one number per image.

The "r^2" of the paper's code is Pearson's r of images that are centred by their global mean, not its square;
here both measures have names of their own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from patchindex.estimators import Estimate

__all__ = ["accuracy", "pearson_r", "r2", "rmse"]

SLACK = 0.001  # of an error beyond two standard errors: 1/8 of a grey level


def pearson_r(images: Tensor, reference: Tensor) -> Tensor:
    """Return the correlation of each image with its reference over all pixels and channels.

    Shape (n,), float64.

    Parameters
    ----------
    images, reference : Tensor, shape (n, C, H, W)

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)
    >>> round(pearson_r(0.5 * x + 0.1, x).item(), 6)
    1.0
    """
    a, b = (t.double().flatten(1) - t.double().flatten(1).mean(1, keepdim=True) for t in (images, reference))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def r2(images: Tensor, reference: Tensor) -> Tensor:
    """Return the coefficient of determination of each image: shape (n,), float64.

        r2 = 1 - sum (image - reference)^2 / sum (reference - mean of the reference)^2

    Parameters
    ----------
    images, reference : Tensor, shape (n, C, H, W)

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)
    >>> r2(x, x).item(), round(r2(0.5 * x, x).item(), 6)
    (1.0, 0.75)
    """
    a, b = images.double().flatten(1), reference.double().flatten(1)
    return 1 - (a - b).square().sum(1) / (b - b.mean(1, keepdim=True)).square().sum(1)


def rmse(images: Tensor, reference: Tensor) -> Tensor:
    """Return the root mean square difference of each image from its reference: shape (n,), float64.

    Parameters
    ----------
    images, reference : Tensor, shape (n, C, H, W)
    """
    return (images.double() - reference.double()).flatten(1).square().mean(1).sqrt()


def accuracy(estimate: Estimate, exact: Tensor) -> dict[str, list[Any]]:
    """Compare an estimate with the exact posterior mean.

    Parameters
    ----------
    estimate : Estimate
        Of B images.
    exact : Tensor, shape (B, C, H, W)
        In [-1, 1].

    Returns
    -------
    dict of list, one entry per image
        `rmse` and `max_error` over pixels and channels; `stderr`, root mean square over pixels; `coverage`,
        the share of pixels and channels with `|error| <= 2 stderr + 0.001`; `captured_mass` and `ess`
        (effective sample size), averages over pixels. `stderr` and `coverage` are None without standard
        errors.

    Examples
    --------
    >>> import torch
    >>> mean, each = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4)
    >>> estimate = Estimate(mean, 0.01 * each, each, each, patches_evaluated=16)
    >>> found = accuracy(estimate, mean + 0.01)
    >>> round(found["rmse"][0], 4), round(found["stderr"][0], 4), found["coverage"]
    (0.01, 0.01, [1.0])
    """
    error = (estimate.mean.double() - exact.double()).abs()
    allowed = (2 * estimate.stderr.double() + SLACK).unsqueeze(1)
    stderr = estimate.stderr.double().square().flatten(1).mean(1).sqrt()
    within = (error <= allowed).double().flatten(1).mean(1)
    known = (~stderr.isnan()).tolist()
    return {
        "rmse": error.square().flatten(1).mean(1).sqrt().tolist(),
        "max_error": error.flatten(1).amax(1).tolist(),
        "stderr": [value if there else None for value, there in zip(stderr.tolist(), known, strict=True)],
        "coverage": [value if there else None for value, there in zip(within.tolist(), known, strict=True)],
        "captured_mass": estimate.captured_mass.double().flatten(1).mean(1).tolist(),
        "ess": estimate.ess.double().flatten(1).mean(1).tolist(),
    }
