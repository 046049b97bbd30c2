"""`exact`: every patch of every training image."""

from __future__ import annotations

from dataclasses import replace

import torch

from patchindex.estimators.base import Estimate, ScoreContext
from patchindex.exact import HeaviestPatches, ScoreRequest, check_engine, heaviest
from patchindex.runtime import part_of

__all__ = ["Exact"]

IMAGES = 256  # at a time: a state takes five times the memory of an estimate, and more images are no faster


class Exact:
    """Compare each pixel with every patch of its position class.

    The other estimators are measured against it. The standard error is 0 and the captured mass is 1. In
    float32 it agrees with float64 to 2e-5 of the largest value for t >= 0.3, and to 5e-4 at t = 0.05, where
    large logits are rounded. No index is needed.

    Parameters
    ----------
    engine : str, optional
        Engine of the scan, `"cpu"`, `"fused"` or `"offsets"`; by default the fastest one that can run.

    Raises
    ------
    InputError, DeviceError
        When the engine is unknown, or cannot run on the device.
    """

    searches = False
    takes_shards = True

    def __init__(self, context: ScoreContext, engine: str | None = None) -> None:
        if engine is not None:
            check_engine(engine, context.device)
        self._context, self._engine = context, engine

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Scan the training images once for every 256 noisy images."""
        request = replace(request, engine=self._engine or request.engine)
        parts, batch = [], len(request.x)
        for first in range(0, batch, IMAGES):
            last = min(first + IMAGES, batch)
            progress = part_of(request.progress, "posterior mean", first / batch, last / batch)
            state = self._context.scan(replace(request.select(slice(first, last)), progress=progress))
            zero = torch.zeros_like(state.weight)
            parts.append(
                Estimate.from_state(
                    state, stderr=zero, captured_mass=zero + 1, method="exact", exact_pixels=zero.numel()
                )
            )
        return Estimate.cat(parts)

    def heaviest(self, request: ScoreRequest, top: int) -> HeaviestPatches:
        """Return the heaviest patches of the wanted pixels, by comparison with every patch."""
        return heaviest(request, top)
