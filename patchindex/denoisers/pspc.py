"""`PSPC`: overlapping windows, each with the posterior mean of the whole window, averaged at each pixel."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from patchindex.denoisers.base import Call
from patchindex.denoisers.from_images import DenoiserOptions, TrainingDenoiser
from patchindex.denoisers.registry import register_denoiser
from patchindex.errors import InputError
from patchindex.estimators import Estimate
from patchindex.exact.whole_windows import WindowRequest, scan
from patchindex.images import ImagesLike, LabelsLike
from patchindex.index import PatchIndex
from patchindex.schedules import LocalityLike, LocalitySchedule

__all__ = ["PSPC"]

WINDOWS = ("inside", "padded")


@register_denoiser("pspc")
class PSPC(TrainingDenoiser):
    """A patch-set posterior composite of square patches (PSPC-Square).

    The window W(q) at position q has a softmax over all training images x_n, with logits

        -|W(x_t, q) - a W(x_n, q)|^2 / (2 beta),    a = sqrt(1 - beta)

    which are the logits of LS. The whole window gets the posterior mean `sum_n softmax_n W(x_n, q)`, and a
    pixel gets the mean over all windows that hold it. (Niedoba et al., arXiv 2411.19339.)

    Parameters
    ----------
    source, labels
        As for `TrainingDenoiser`.
    locality : str, path, int, sequence of int, or LocalitySchedule, optional
        Locality schedule: the side k of the windows, as for `ScoreMachine`. An index may have its own. A side
        above the size of the image means the whole image.
    windows : str, optional
        `"inside"`: the (H - k + 1) (W - k + 1) windows inside the image, as in the authors' code, where a
        corner belongs to one window only; or `"padded"`: a window around each of the H W pixels, padded with
        zeros, as in LS.
    **options
        Of `TrainingDenoiser`: `noise`, `label`, `device`, `threads`, `memory`.

    Raises
    ------
    InputError
        When a setting is unknown, or there is no locality schedule.

    Notes
    -----
    `ess` is the mean over the windows that hold a pixel. `patches_evaluated` counts the patches that windows
    are compared with.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
    >>> d = PSPC(images, locality=3)
    >>> e = d.posterior_mean(torch.randn(2, 1, 8, 8), 0.5)
    >>> e.mean.shape, e.patches_evaluated == 2 * 6 * 6 * 50
    (torch.Size([2, 1, 8, 8]), True)
    """

    def __init__(
        self,
        source: PatchIndex | ImagesLike,
        labels: LabelsLike | None = None,
        *,
        locality: LocalityLike | None = None,
        windows: str = "inside",
        **options: Unpack[DenoiserOptions],
    ) -> None:
        super().__init__(source, labels, **options)
        if windows not in WINDOWS:
            raise InputError(
                f"unknown windows {windows!r}", parameter="windows", remedy=f"use {' or '.join(WINDOWS)}"
            )
        if locality is None and self.index is not None:
            locality = self.index.locality
        if locality is None:
            raise InputError(
                "there is none", parameter="locality", remedy="give a locality schedule, or one scale"
            )
        self.locality, self.windows = LocalitySchedule.of(locality, self.noise), windows
        self.locality.check_image_size(self.training.size)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the denoiser, as plain data."""
        return {**super().settings, "locality": self.locality.as_dict(), "windows": self.windows}

    def scale_at(self, t: float) -> int:
        """Return the side of the windows at time t."""
        return self.locality.k(self._beta(t))

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        found = scan(
            WindowRequest(
                self.training,
                call.label,
                x / (1 - beta) ** 0.5,
                beta / (1 - beta),
                self.scale_at(call.t),
                padded=self.windows == "padded",
                memory=self._memory,
                progress=call.progress,
            )
        )
        ess = found.ess.float()
        return Estimate(
            mean=found.mean.float().contiguous(),
            stderr=torch.zeros_like(ess),
            ess=ess,
            captured_mass=torch.ones_like(ess),
            patches_evaluated=found.logits,
            exact_pixels=ess.numel(),
        )
