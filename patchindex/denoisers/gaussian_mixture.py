"""`GaussianMixture`: the posterior mean of a mixture of Gaussians, one for each label."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from patchindex.denoisers.base import Call
from patchindex.denoisers.registry import register_denoiser
from patchindex.denoisers.wiener import DenseGaussian, GaussianDenoiser
from patchindex.devices import to_float64
from patchindex.estimators import Estimate
from patchindex.runtime import Progress, part_of

__all__ = ["GaussianMixture"]


@register_denoiser("gaussian-mixture")
class GaussianMixture(GaussianDenoiser):
    """A mixture of whole-image Gaussians, one for each label of the training images.

        mu = sum_c w_c(x) mu_c(x),    w_c(x) = softmax_c(log p_c + log N(x; a m_c, a^2 S_c + beta I))

    mu_c is the `Wiener` posterior mean with the mean m_c and the covariance S_c of the images with label c,
    p_c is the share of these images, and a = sqrt(1 - beta). With one label, or for calls with a label, it is
    `Wiener`. (Wang & Vastola, arXiv 2412.09726, compare Gaussians, mixtures of Gaussians and mixtures of
    points, which is IS. They fit mixtures; here the labels say which image belongs to which Gaussian.)

    Parameters
    ----------
    source, labels
        As for `TrainingDenoiser`. Images without labels have one Gaussian.
    **options
        `noise`, `label`, `device`, `threads` and `memory`, as for `Wiener`. The decompositions of all labels
        are kept while they fit into `memory`; others are made again for each call.

    Raises
    ------
    InputError
        As for `Wiener`.

    Notes
    -----
    `Estimate.ess` is 1 / sum_c w_c^2, the number of Gaussians that matter: one number for each image.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> mixture = GaussianMixture(images, labels=np.arange(20) % 2)
    >>> e = mixture.posterior_mean(torch.randn(3, 1, 8, 8), 0.5)
    >>> e.mean.shape, bool((e.ess >= 1).all() and (e.ess <= 2).all())
    (torch.Size([3, 1, 8, 8]), True)
    """

    def _check_memory(self, label: int | None) -> None:
        """Refuse a covariance of one label that is too large for the memory."""
        for each in self._components(label):
            super()._check_memory(each)

    def _prepare(self, label: int | None, progress: Progress) -> None:
        for each in self._components(label):
            self._filter(each, progress)

    def _components(self, label: int | None) -> list[int | None]:
        """Return the labels of the Gaussians of a call."""
        labels = self.training.labels
        if label is not None or labels is None:
            return [label]
        return np.unique(labels).tolist()

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        components = self._components(call.label)
        x = to_float64(x)
        top = torch.full((len(x), 1, 1, 1), -torch.inf, dtype=x.dtype, device=x.device)
        total, squares, mean = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(x)
        for i, label in enumerate(components):
            part = part_of(call.progress, "posterior mean", i / len(components), (i + 1) / len(components))
            gaussian = self._filter(label, part)
            assert isinstance(gaussian, DenseGaussian)
            lo, hi = self.training.range_of(label)
            log = (math.log(hi - lo) + gaussian.log_density(x, beta)).reshape(top.shape)
            # A softmax with a running maximum, so that the means of one label are in memory at a time.
            highest = torch.maximum(top, log)
            old, weight, top = (top - highest).exp(), (log - highest).exp(), highest
            total, squares = old * total + weight, old.square() * squares + weight.square()
            mean = old * mean + weight * gaussian.apply(x, beta)
            part("posterior mean", 1, 1)
        mean = (mean / total).float().contiguous()
        one = torch.ones_like(mean[:, 0])
        ess = (total.square() / squares).float()[:, 0] * one
        return Estimate(mean, stderr=0 * one, ess=ess, captured_mass=one, patches_evaluated=0)
