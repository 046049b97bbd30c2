"""How far an estimate is from the exact mean, and how sure it is of itself: one number an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from patchindex.estimators import Estimate

__all__ = ["SLACK", "accuracy"]

SLACK = 0.001  # of an error beyond two standard errors: 1/8 of a grey level


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
    dict of list, one entry an image
        `rmse` and `max_error` over pixels and channels; `stderr`, root mean square over pixels; `coverage`,
        the share of channels of pixels with `|error| <= 2 stderr + 0.001` (None without standard errors, as
        `stderr`); `captured_mass` and `ess`, averages over pixels.

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
    known = ~stderr.isnan()
    return {
        "rmse": error.square().flatten(1).mean(1).sqrt().tolist(),
        "max_error": error.flatten(1).amax(1).tolist(),
        "stderr": [value if there else None for value, there in zip(stderr.tolist(), known, strict=True)],
        "coverage": [value if there else None for value, there in zip(within.tolist(), known, strict=True)],
        "captured_mass": estimate.captured_mass.double().flatten(1).mean(1).tolist(),
        "ess": estimate.ess.double().flatten(1).mean(1).tolist(),
    }
