"""Conditions of a sample: a noisy image to start from, and pixels that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchindex.checks import is_real
from patchindex.denoisers import Denoiser
from patchindex.denoisers.noising import check_clean
from patchindex.errors import InputError
from patchindex.sampling.draws import as_tensor
from patchindex.schedules.frames import with_noise

__all__ = ["ImageStart", "KnownPixels"]


@dataclass(frozen=True)
class ImageStart:
    """Images that are partly noised, and from which sampling starts (SDEdit, Meng et al., arXiv 2108.01073).

    Attributes
    ----------
    images : Tensor or array, shape (n, C, H, W) or (1, C, H, W)
        Clean images in [-1, 1]; one image stands for all n.
    strength : float
        In (0, 1]: sampling starts at the first time of the grid that is not above the strength. Much of an
        image is kept for a small strength, nothing for 1.

    Examples
    --------
    >>> import numpy as np
    >>> from patchindex.denoisers import ScoreMachine
    >>> from patchindex.sampling import sample
    >>> images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> start = ImageStart(m.training.source.floats(2), strength=0.5)
    >>> start.times([0.8, 0.6, 0.4, 0.2, 0.0])
    [0.4, 0.2, 0.0]
    >>> sample(m, n=3, steps=5, start=start).images.shape
    torch.Size([3, 1, 8, 8])
    """

    images: Any
    strength: float

    def times(self, times: Sequence[float]) -> list[float]:
        """Return the rest of a grid; refuse a strength that leaves no step."""
        if not is_real(self.strength) or not 0 < self.strength <= 1:
            raise InputError(
                f"must lie in (0, 1], got {self.strength!r}", parameter="strength", remedy="use 0.6"
            )
        rest = [t for t in times if t <= self.strength]
        if len(rest) < 2:
            raise InputError(
                f"no step starts at or below {self.strength}; the last one starts at {times[-2]:.3g}",
                parameter="strength",
                remedy="use a larger strength, or more steps",
            )
        return rest

    def noised(self, denoiser: Denoiser, noise: Tensor, t: float) -> Tensor:
        """Return `sqrt(1 - beta(t)) images + sqrt(beta(t)) noise`."""
        clean = clean_images(denoiser, self.images, len(noise), "start")
        return with_noise(clean, noise, denoiser.noise(t))


@dataclass(frozen=True)
class KnownPixels:
    """Pixels whose values are known (inpainting).

    Before each evaluation, a known pixel gets its value noised to the time of the step, with the noise that
    the sample started from. All other pixels are drawn. At the end a known pixel has its value.

    Attributes
    ----------
    images : Tensor or array, shape (n, C, H, W) or (1, C, H, W)
        In [-1, 1]; one image stands for all n. Only known pixels matter.
    mask : Tensor or array of bool, shape (H, W) or (n, H, W)
        True for a known pixel.

    Examples
    --------
    >>> import numpy as np
    >>> from patchindex.denoisers import ScoreMachine
    >>> from patchindex.sampling import sample
    >>> images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> image, left = m.training.source.floats(2), torch.arange(8).expand(8, 8) < 4
    >>> drawn = sample(m, n=3, steps=5, known=KnownPixels(image, left)).images
    >>> torch.equal(drawn[..., :4], image[..., :4].expand(3, 1, 8, 4))
    True
    """

    images: Any
    mask: Any

    def prepared(self, denoiser: Denoiser, n: int) -> KnownPixels:
        """Return the same pixels as tensors (n, C, H, W) and (n, 1, H, W); refuse what does not fit."""
        images = clean_images(denoiser, self.images, n, "known")
        mask = as_tensor(self.mask, "mask", "bools")
        height, width = denoiser.shape[1:]
        if mask.dtype != torch.bool or tuple(mask.shape) not in ((height, width), (n, height, width)):
            raise InputError(
                f"must be bool of shape {(height, width)}, got {mask.dtype} of {tuple(mask.shape)}",
                parameter="mask",
                remedy="give True for each known pixel",
            )
        mask = mask.to(images.device).expand(n, height, width)[:, None]
        return KnownPixels(images, mask)

    def rows(self, first: int, end: int) -> KnownPixels:
        """Return the known pixels of some images, after `prepared`."""
        return KnownPixels(self.images[first:end], self.mask[first:end])

    def held(self, x: Tensor, noise: Tensor, beta: float) -> Tensor:
        """Return x with known pixels at their noised values, after `prepared`."""
        return torch.where(self.mask, with_noise(self.images, noise, beta), x)


def clean_images(denoiser: Denoiser, images: Any, n: int, parameter: str) -> Tensor:
    """Return n clean images on the denoiser's device; refuse images that do not fit."""
    clean = denoiser.check_x(as_tensor(images, parameter), parameter)
    if len(clean) not in (1, n):
        raise InputError(
            f"there are {len(clean)} images for {n} samples", parameter=parameter, remedy="give one, or all"
        )
    check_clean(clean, parameter)
    return clean.expand(n, *clean.shape[1:])
