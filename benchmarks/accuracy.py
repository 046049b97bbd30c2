"""How far an estimate is from the exact mean, how sure it is of itself, and what was spent on it."""

from __future__ import annotations

from typing import Any

import torch

from patchindex.estimators import Estimate

__all__ = ["compared"]


def compared(e: Estimate, exact: torch.Tensor, seconds: float) -> dict[str, Any]:
    """Compare an estimate with the exact mean (B, C, H, W); None where there is no standard error."""
    pixels = e.stderr.numel()
    error = (e.mean - exact).square().mean(1).sqrt()
    rmse, stderr = (float(v.square().mean().sqrt()) for v in (error, e.stderr))
    known = not bool(e.stderr.isnan().any())
    return {
        "us a pixel": 1e6 * seconds / pixels,
        "rmse": rmse,
        "stderr": stderr if known else None,
        "rmse/stderr": rmse / stderr if known and stderr else None,
        "max": float(error.max()),
        "within": float((error <= 2 * e.stderr + 0.001).double().mean()) if known else None,
        "captured": float(e.captured_mass.mean()),
        "codes": e.codes_scanned / pixels,
        "patches": e.patches_evaluated / pixels,
        "exact": e.exact_pixels / pixels,
    }
