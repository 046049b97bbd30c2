"""`PCALocality`: a softmax over images for each pixel, under masks from the images' covariance."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Unpack

import torch
from torch import Tensor

from patchindex.checks import is_real
from patchindex.denoisers.arguments import Label
from patchindex.denoisers.base import Call
from patchindex.denoisers.from_images import DenoiserOptions, TrainingDenoiser
from patchindex.denoisers.moments import image_moments
from patchindex.denoisers.registry import register_denoiser
from patchindex.errors import InputError
from patchindex.estimators import Estimate
from patchindex.exact.masked import MaskedRequest, list_masks, scan
from patchindex.images import ImagesLike, LabelsLike
from patchindex.index import PatchIndex
from patchindex.kernels.masked import Masks
from patchindex.runtime import PicklableLock, Progress, part_of

__all__ = ["PCALocality", "locality_masks"]

LEAST_GAIN = 1e-6  # smaller entries W_mm of the Wiener filter count as 1, as in the authors' code
LEAST_NOISE = 1e-9  # smallest noise variance that masks are made for, over the largest variance of a pixel
RELATIVE = ("matrix", "pixel")


@register_denoiser("pca-locality")
class PCALocality(TrainingDenoiser):
    """The denoiser whose locality comes from the covariance of the training images.

    Entry m (a pixel and a channel) mixes the values x_n[m] of all training images x_n, with logits

        -sum_j M_mj (y - x_n)_j^2 / (2 sigma^2),   y = x_t / a,   sigma^2 = beta / a^2,   a = sqrt(1 - beta)

    The mask M_mj is 1 where `|W_mj / W_mm| >= tau * max`, else 0; `W = S (S + sigma^2 I)^-1` is the Wiener
    filter of the images' covariance S, and each channel of a pixel has a mask of its own. An entry with an
    empty mask gets the mean of the images. (Lukoianov et al., arXiv 2509.09672.)

    Parameters
    ----------
    source, labels
        As for `TrainingDenoiser`. The covariance takes 8 D^2 bytes beyond `memory`, with D = C * H * W, and
        four times as much while masks are made.
    tau : float, optional
        Threshold of the masks, in [0, 1]. The default is the authors' value: 0.02 for images above 32 x 32,
        else 0.05 for colour and 0.005 for greyscale.
    relative_to : str
        The maximum that tau multiplies: of `|W_mj / W_mm|` over the whole `"matrix"`, as in the authors'
        code, or over all j for each `"pixel"` m. Both are 1 on CIFAR-10. On MNIST, border pixels that hardly
        vary make the maximum of the matrix about 100, and tau = 0.05 leaves most masks empty; with
        `"pixel"`, tau = 0.05 fits MNIST as well.
    **options
        Of `TrainingDenoiser`: `noise`, `label`, `device`, `threads`, `memory`.

    Raises
    ------
    InputError
        When a setting is unknown or out of range.

    Notes
    -----
    There is one softmax over all images, or over all images of the label. Two public implementations, one of
    them the authors', take a softmax over each batch of a data loader and average the results, so that their
    posterior mean depends on the size of the batch.

    The authors' code divides by W_jj in place of W_mm, which transposes the masks.

    `ess` is the mean over channels. `patches_evaluated` counts a logit for each channel of a pixel.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    >>> d = PCALocality(images)
    >>> e = d.posterior_mean(torch.randn(2, 3, 8, 8), 0.5)
    >>> e.mean.shape, d.settings["tau"]
    (torch.Size([2, 3, 8, 8]), 0.05)
    """

    def __init__(
        self,
        source: PatchIndex | ImagesLike,
        labels: LabelsLike | None = None,
        *,
        tau: float | None = None,
        relative_to: str = "matrix",
        **options: Unpack[DenoiserOptions],
    ) -> None:
        super().__init__(source, labels, **options)
        channels, height, width = self.shape
        if tau is None:
            tau = 0.02 if max(height, width) > 32 else 0.05 if channels > 1 else 0.005
        if not is_real(tau) or not 0 <= tau <= 1:
            raise InputError(
                f"must be a number in [0, 1], got {tau!r}", parameter="tau", remedy="use 0.05, for example"
            )
        if relative_to not in RELATIVE:
            raise InputError(
                f"unknown maximum {relative_to!r}",
                parameter="relative_to",
                remedy=f"use {' or '.join(RELATIVE)}",
            )
        self.tau, self.relative_to = float(tau), relative_to
        self._covariance: tuple[int | None, Tensor] | None = None  # of the last label
        self._masks: OrderedDict[tuple[int | None, float], Masks | Tensor] = OrderedDict()
        self._making = PicklableLock()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the denoiser, as plain data."""
        return {**super().settings, "tau": self.tau, "relative_to": self.relative_to}

    def masks(self, beta: float, label: Label | None = None) -> Tensor:
        """Return the masks at a noise variance: bool (C, H, W, C, H, W), the mask of an entry last.

        Parameters
        ----------
        beta : float
            Noise variance of x_t, in (0, 1).
        label : int or str, optional
            Take the covariance of this label, in place of the denoiser's own label.

        Raises
        ------
        InputError
            When `beta` is outside (0, 1), or the label is unknown.
        """
        if not is_real(beta) or not 0 < beta < 1:
            raise InputError(
                f"must be a number in (0, 1), got {beta!r}", parameter="beta", remedy="use 0.5, for example"
            )
        number = self.label if label is None else self.number_of(label)
        self.check_label(number)
        channels, height, width = self.shape
        flat = locality_masks(self._covariance_of(number), beta / (1 - beta), self.tau, self.relative_to)
        return flat.reshape(height, width, channels, height, width, channels).permute(2, 0, 1, 5, 3, 4)

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        sigma2 = beta / (1 - beta)
        channels, height, width = self.shape
        masks = self._masks_at(sigma2, call.label, part_of(call.progress, "masks", 0.0, 0.1))
        request = MaskedRequest(
            self.training,
            call.label,
            x / (1 - beta) ** 0.5,
            sigma2,
            masks,
            memory=self._memory,
            progress=part_of(call.progress, "exact scan", 0.1, 1.0),
        )
        state = scan(request).reshape((len(x), height, width, channels))
        ess = state.ess().mean(-1).float()
        return Estimate(
            mean=state.mean().squeeze(-1).permute(0, 3, 1, 2).float().contiguous(),
            stderr=torch.zeros_like(ess),
            ess=ess,
            captured_mass=torch.ones_like(ess),
            patches_evaluated=int(state.count.sum()),
            exact_pixels=ess.numel(),
        )

    def _masks_at(self, sigma2: float, label: int | None, progress: Progress) -> Masks | Tensor:
        """Return the masks in the form that the device needs; the latest are kept, in `memory` bytes."""
        key, settings = (label, sigma2), (sigma2, self.tau, self.relative_to)
        with self._making:
            if key not in self._masks:
                masks = locality_masks(self._covariance_of(label, progress), *settings)
                on_cpu = self.device.type == "cpu"
                self._masks[key] = list_masks(masks, self.shape, sigma2) if on_cpu else masks.to(self.device)
                while len(self._masks) > 1 and sum(map(_bytes, self._masks.values())) > self._memory:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(key)
            return self._masks[key]

    def _covariance_of(self, label: int | None, progress: Progress | None = None) -> Tensor:
        """Return the covariance of the images of a label, with entries in the order (H, W, C)."""
        with self._making:
            if self._covariance is None or self._covariance[0] != label:
                self._covariance = None  # before there are two
                options = {} if progress is None else {"progress": progress}
                found = image_moments(
                    self.training, label, device=self.device, memory=self._memory, **options
                ).covariance
                channels, height, width = self.shape
                order = torch.arange(len(found), device=found.device).reshape(channels, height, width)
                order = order.permute(1, 2, 0).flatten()
                self._covariance = label, found[order][:, order]
            return self._covariance[1]


def locality_masks(covariance: Tensor, sigma2: float, tau: float, relative_to: str = "matrix") -> Tensor:
    """Return the masks of a covariance S (D, D), float64: bool (D, D), row m for entry m.

    `M_mj = [ |W_mj / W_mm| >= tau * max ]` with `W = S (S + sigma2 I)^-1`; W_mm below 1e-6 counts as 1, and
    an entry that never varies has an empty mask.
    """
    variances = covariance.diagonal()
    filtered = covariance.clone()
    filtered.diagonal().add_(max(sigma2, LEAST_NOISE * float(variances.max())))
    factor = torch.linalg.cholesky(filtered)
    torch.cholesky_solve(covariance, factor, out=filtered)
    del factor
    gains = filtered.diagonal().clone()
    gains[gains.abs() < LEAST_GAIN] = 1
    ratios = filtered.div_(gains.unsqueeze(1)).abs_()
    largest = ratios.amax(1, keepdim=True) if relative_to == "pixel" else ratios.max()
    return (ratios >= tau * largest) & (variances > 0).unsqueeze(1)


def _bytes(masks: Masks | Tensor) -> int:
    return masks.nbytes if isinstance(masks, Tensor) else sum(part.nbytes for part in masks[:3])
