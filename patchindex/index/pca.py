"""Principal components of patches: fitted on a sample, applied as a convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchindex.geometry import Geometry, pad

__all__ = ["GOOD", "LOGIT_VARIANCE", "MAX_DIMS", "PCA", "USUAL_DIMS", "choose_dims", "fit_pca"]

# Variance of the logit error from components left out, at the lowest noise where a scale is used: below GOOD
# it makes no difference, above LOGIT_VARIANCE codes do not order patches. (docs/decisions/0007)
GOOD, LOGIT_VARIANCE = 0.2, 1.0
USUAL_DIMS, MAX_DIMS = 56, 128  # 56 make 64 bytes per patch with its id


@dataclass(frozen=True)
class PCA:
    """`y = V^T (P - mu)` for patches P."""

    components: np.ndarray  # V^T, float32 (dims, k, k, C): orthonormal rows, the largest variance first
    mean: np.ndarray  # mu, float32 (k, k, C)
    energy: float  # share of the variance that the components keep, in [0, 1]

    @property
    def dims(self) -> int:
        """Number of components."""
        return len(self.components)

    def project(self, patches: Tensor) -> Tensor:
        """Return `V^T (P - mu)` of patches (n, k, k, C): shape (n, dims)."""
        components, mean = (torch.from_numpy(a).to(patches.device) for a in (self.components, self.mean))
        return (patches - mean).flatten(1) @ components.flatten(1).T

    def project_images(self, images: Tensor, geometry: Geometry) -> Tensor:
        """Return the projection of every training window of images (n, C, H, W), without unfolding them.

        Shape (n * patches_per_image, dims), in the order of patch ids.
        """
        return self._convolve(pad(images, geometry, geometry.y.train_padding), 1.0)

    def project_queries(self, x: Tensor, geometry: Geometry, a: float) -> Tensor:
        """Return `z = V^T (q - a mu)` for every pixel's window q of noisy images x (B, C, H, W).

        The logit of patch y is `-|z - a y|^2 / (2 beta)`, up to the error of the components left out. Shape
        (B H W, dims).
        """
        return self._convolve(pad(x, geometry, "wrapped" if geometry.y.circular else "zeros"), a)

    def _convolve(self, padded: Tensor, a: float) -> Tensor:
        filters = torch.from_numpy(self.components).to(padded.device)
        offset = -a * (filters.flatten(1) @ torch.from_numpy(self.mean).to(padded.device).flatten())
        # With the channels last, torch convolves faster, and the result needs no other order.
        images = padded.contiguous(memory_format=torch.channels_last)
        out = torch.nn.functional.conv2d(images, filters.permute(0, 3, 1, 2), offset)
        return out.permute(0, 2, 3, 1).reshape(-1, self.dims)


def choose_dims(left_out: np.ndarray) -> int:
    """Choose the number of components: as few as make no difference, at most `USUAL_DIMS`.

    More than `USUAL_DIMS` only where fewer do not order the patches. A multiple of 8, as FAISS's vectorised
    code needs. `left_out` is the variance of the logit error with 1, 2, ... components, descending.

    >>> [choose_dims(scale / np.arange(1, 148) ** 2) for scale in (10.0, 2000.0, 10000.0, 1e9)]
    [8, 56, 104, 128]
    >>> choose_dims(np.zeros(9)), choose_dims(np.zeros(3))
    (8, 3)
    """
    good, needed = (-(-(int((left_out > limit).sum()) + 1) // 8) * 8 for limit in (GOOD, LOGIT_VARIANCE))
    whole = len(left_out) // 8 * 8 or len(left_out)
    return min(good, max(USUAL_DIMS, min(needed, MAX_DIMS)), whole)


def fit_pca(patches: Tensor, dims: int | None = None, *, noise: float = 0.01) -> PCA:
    """Fit principal components to a sample of patches (n, k, k, C), by default `choose_dims` of them.

    Components left out, of mean square r^2, change the logit of a patch by about N(0, a^2 r^2 / beta), with
    a^2 = 1 - beta. `noise` is beta, the lowest at which patches are compared with a query.
    """
    shape = patches.shape[1:]
    flat = patches.flatten(1).double()
    mean = flat.mean(0)
    flat -= mean
    covariance = flat.T @ flat / len(flat)
    variance, vectors = torch.linalg.eigh(covariance)
    variance, vectors = variance.flip(0).clamp_min(0), vectors.flip(1)
    total = variance.sum()
    # Images of one colour have no variance to lose.
    energy = variance.cumsum(0) / total if total > 0 else torch.ones_like(variance)
    if dims is None:
        left_out = (total - variance.cumsum(0)) * (1 - noise) / noise
        dims = choose_dims(left_out.numpy())
    dims = min(dims, len(variance))
    # A component's sign is arbitrary: make its largest entry positive.
    vectors = vectors[:, :dims].T
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    return PCA(
        components=vectors.float().reshape(dims, *shape).numpy(),
        mean=mean.float().reshape(shape).numpy(),
        energy=float(energy[dims - 1]),
    )
