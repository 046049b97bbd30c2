"""`NearestImage`: the training image nearest to the noisy image."""

from __future__ import annotations

import torch
from torch import Tensor

from patchindex.denoisers.base import Call
from patchindex.denoisers.from_images import TrainingDenoiser
from patchindex.denoisers.registry import register_denoiser
from patchindex.devices import to_float64
from patchindex.estimators import Estimate
from patchindex.images.by_label import as_tensor, to_unit
from patchindex.images.nearest import nearest_images

__all__ = ["NearestImage"]


@register_denoiser("nearest")
class NearestImage(TrainingDenoiser):
    """The training image nearest to the noisy image.

        mu = v_j,    j = argmin_n |x / a - v_n|,    a = sqrt(1 - beta)

    over all training images v_n (of the label). `mu` is the limit of the ideal score machine (IS) for a
    softmax without temperature. Among images at exactly the same distance, the image that comes first in the
    source is taken.

    Parameters
    ----------
    source, labels, noise, label, device, threads, memory
        As for `TrainingDenoiser`.

    Raises
    ------
    InputError
        When a setting is unknown or does not fit the images.

    Notes
    -----
    One float32 matrix product gives the distances to a block of images, with a bound of their rounding
    errors. Images that may be nearest within the bound are compared again, in float64.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> x = torch.from_numpy(images[7:8, None] / 127.5 - 1)
    >>> mean = NearestImage(images).posterior_mean(x, 0.05).mean
    >>> bool((mean - x).abs().max() < 1e-6)
    True
    """

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        y = to_float64(x) / (1 - beta) ** 0.5
        found = nearest_images(
            y, self.training, label=call.label, memory=self._memory, progress=call.progress
        )
        pixels = self.training.read_some(self.training.numbers_of(found.image[:, 0].cpu().numpy()))
        one = torch.ones_like(y[:, 0], dtype=torch.float32)
        lo, hi = self.training.range_of(call.label)
        return Estimate(
            to_unit(as_tensor(pixels, y.device)).permute(0, 3, 1, 2).contiguous(),
            stderr=0 * one,
            ess=one,
            captured_mass=one,
            patches_evaluated=one.numel() * (hi - lo),
            exact_pixels=one.numel(),
        )
