"""Moments of the inverted lists: size, mean and variance of the codes of each list, and of each cell."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from patchindex.devices import float64_device
from patchindex.index.lists import InvertedLists
from patchindex.softmax import SoftmaxState

__all__ = ["ListMoments"]

PRIOR_CODES = 16
REST_BYTES = 32 << 20  # memory for the logits of pixels and lists that are computed at once


class ListMoments:
    """Sizes, means and variances of the codes of a scale's lists.

    `counts`, int64 (labels or 1, lists), are the patches of each label; `means` and `variances`, float32
    (lists, dims), are of all patches of a list.
    """

    def __init__(
        self, lists: InvertedLists, counts: np.ndarray, means: np.ndarray, variances: np.ndarray
    ) -> None:
        self.lists, self.counts, self.means, self.variances = lists, counts, means, variances
        self._cells: dict[int | None, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def sizes(self, label_index: int | None = None) -> np.ndarray:
        """Return the number of patches in each list, of all labels or of the label with this index."""
        return np.asarray(self.counts.sum(0) if label_index is None else self.counts[label_index])

    def mean_distance(self) -> float:
        """Return the mean squared distance of codes to the centroids of their lists."""
        sizes = self.sizes()
        each = np.square(self.means - self.lists.centroids).sum(1) + self.variances.sum(1)
        return float(sizes @ each.astype(np.float64) / sizes.sum())

    def of_class(
        self, c: int, label_index: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return means and variances of a position class's lists, the bounds of its cells, and their moments.

        Cell i has the lists `bounds[i]` to `bounds[i + 1]` of these. The moments of the cells are means,
        variances and sizes; with a label index they count only patches of that label.
        """
        lo, hi = (int(bound) for bound in self.lists.bounds[c : c + 2])
        first, last = np.searchsorted(self.lists.cell_bounds, (lo, hi))
        bounds = self.lists.cell_bounds[first : last + 1] - lo
        means, variances = (tensor[lo:hi].numpy() for tensor in self._tensors)
        if label_index not in self._cells:
            self._cells[label_index] = self._cell_moments(label_index)
        of_cells = self._cells[label_index]
        return means, variances, bounds, tuple(array[first:last] for array in of_cells)  # type: ignore[return-value]

    def _cell_moments(self, label_index: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        means, variances = (tensor.numpy() for tensor in self._tensors)
        bounds, sizes = self.lists.cell_bounds, self.sizes(label_index).astype(np.float64)
        mean, spread = np.zeros((2, len(bounds) - 1, means.shape[1]))
        count = np.zeros(len(bounds) - 1)
        for cell, (lo, hi) in enumerate(pairwise(bounds.tolist())):  # float64 copies of one cell at a time
            n, m = sizes[lo:hi], means[lo:hi].astype(np.float64)
            count[cell] = n.sum()
            total = max(count[cell], 1)
            mean[cell] = n @ m / total
            spread[cell] = np.maximum(n @ (variances[lo:hi] + m**2) / total - mean[cell] ** 2, 0)
        return mean.astype(np.float32), spread.astype(np.float32), count

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        """Means and variances of the lists, (lists, dims) float32, on the device.

        The variance of a list of few codes may be 0 by chance, so each list counts `PRIOR_CODES` more codes,
        which have the mean variance of all lists.
        """
        counts = torch.from_numpy(self.sizes()).to(self.lists.device).unsqueeze(1).float()
        means = torch.from_numpy(self.means).to(self.lists.device)
        variances = torch.from_numpy(self.variances).to(self.lists.device)
        pooled = (counts.T.double() / counts.double().sum()).float() @ variances
        return means, (variances * counts + PRIOR_CODES * pooled) / (counts + PRIOR_CODES)

    def log_rest(
        self,
        z: Tensor,
        classes: np.ndarray,
        a: float,
        beta: float,
        ceiling: Tensor,
        label_index: int | None = None,
    ) -> Tensor:
        """Estimate the log sum of exp(logit) over the patches that were not retrieved for each pixel.

        The sum over a list of n codes with mean m_d and variance s_d^2 in dimension d is that of a Gaussian,

            n prod_d sqrt(beta / v_d) exp(-(z_d - a m_d)^2 / (2 v_d)),    v_d = beta + a^2 s_d^2

        and at most `n exp(ceiling)`: `ceiling` (n,) has the logit, in PCA space, of the last patch that was
        retrieved for each of the projected queries z (n, dims). Returns float64 (n,).
        """
        log_sizes = torch.from_numpy(self.sizes(label_index)).to(z).log()
        out = torch.empty(len(z), dtype=torch.float64, device=float64_device(z.device))
        bounds = self.lists.bounds
        for c in range(len(bounds) - 1):
            lists = slice(int(bounds[c]), int(bounds[c + 1]))
            # z may be on a GPU, and the lists on the CPU.
            base, slopes = (t.to(z.device) for t in self._log_sums(lists, a, beta, label_index))
            mine = torch.from_numpy(np.flatnonzero(classes == c)).to(z.device)
            for rows in mine.split(max(1, REST_BYTES // (24 * (lists.stop - lists.start)))):
                gaussian = torch.addmm(base, torch.cat([z[rows].square(), z[rows]], 1), slopes)
                logits = torch.minimum(gaussian, log_sizes[lists] + ceiling[rows].unsqueeze(1))
                no_centres = torch.empty(logits.shape[1], 0, dtype=z.dtype, device=z.device)
                out[rows.to(out.device)] = SoftmaxState.of(logits, no_centres).log_weight()
        return out

    def _log_sums(
        self, lists: slice, a: float, beta: float, label_index: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return base and slopes of the Gaussians' log sums, `base + [z^2, z] @ slopes`."""
        sizes = torch.from_numpy(self.sizes(label_index)[lists]).to(self.lists.device)
        means, variances = (tensor[lists].double() for tensor in self._tensors)
        v = beta + a * a * variances
        scaled = a * means / v
        base = sizes.double().log() - (a * means * scaled - (beta / v).log()).sum(1) / 2
        return base.float(), torch.cat([-0.5 / v, scaled], 1).float().T.contiguous()
