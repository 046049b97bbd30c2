"""The exact scan of PSPC: posterior means of whole windows, averaged where the windows overlap.

    logit[q, n] = -|W(y, q) - W(v_n, q)|^2 / (2 sigma^2),    w[q, n] = softmax_n logit[q, n]
    mean(p) = 1 / |{q: p in W(q)}| sum_{q: p in W(q)} sum_n w[q, n] v_n(p)

for the window W(q) at position q of a noisy image y and training image n. Sums over windows are products with
a 0-1 matrix along each axis. The sums over q are taken first, so that no patch is ever unfolded: a pass over
the images finds the largest logit and the sum of weights of each window, and a second pass adds the images,
each pixel times the weights of the windows that hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchindex.devices import to_float64
from patchindex.exact.request import WORKING_MEMORY
from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.runtime import Progress, full_precision, no_progress, part_of
from patchindex.softmax import SoftmaxState

__all__ = ["WindowRequest", "WindowResult", "scan", "window_rows"]

STAGE = "exact scan"
TILE = 32  # images; a larger tile falls out of the cache

# Logits further below the largest logit are raised to this difference. That changes no mean, and arithmetic
# with smaller weights, which are not normal numbers of float32, takes ten times as long.
NEGLIGIBLE = -60.0


@dataclass(frozen=True)
class WindowRequest:
    """Noisy images of one noise level, and the windows in which to compare them with training images.

    Attributes
    ----------
    training : TrainingImages
    label : int or None
        Compare with the images of this label only.
    y : Tensor, shape (B, C, H, W)
        Noisy images over their signal scale, `x_t / sqrt(1 - beta)`.
    sigma2 : float
        Noise variance of y, `beta / (1 - beta)`.
    k : int
        Side of the windows.
    padded : bool
        Windows around every pixel, with zeros outside the image; by default, windows inside the image.
    memory : int
        Bytes for temporary arrays.
    progress : Progress
        Called with the work that is done.
    dtype : torch.dtype
        float32 or float64.
    """

    training: TrainingImages
    label: int | None
    y: Tensor
    sigma2: float
    k: int
    padded: bool = False
    memory: int = WORKING_MEMORY
    progress: Progress = no_progress
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class WindowResult:
    """The posterior mean, (B, C, H, W), and the mean ESS of the windows that hold a pixel, (B, H, W).

    Both are float64; `logits` is the number of logits.
    """

    mean: Tensor
    ess: Tensor
    logits: int


def window_rows(size: int, k: int, padded: bool) -> np.ndarray:
    """Return a 0-1 matrix (windows, size): the pixels of each window along an axis of the image.

    A window without padding has min(k, size) pixels. Padding adds nothing to a distance: it is left out.
    """
    pixels = np.arange(size)
    if padded:
        return (np.abs(pixels[:, None] - pixels) <= k // 2).astype(np.float64)
    k = min(k, size)
    first = np.arange(size - k + 1)[:, None]
    return ((pixels >= first) & (pixels < first + k)).astype(np.float64)


def scan(request: WindowRequest) -> WindowResult:
    """Return the mean over windows of the posterior means of whole windows."""
    batch, channels, height, width = request.y.shape
    parts = []
    # A quarter of the memory is for the noisy images of a group, with their states.
    group = max(1, request.memory // 4 // (8 * height * width * (4 * channels + 16)))
    for first in range(0, batch, group):
        last = min(first + group, batch)
        progress = part_of(request.progress, STAGE, first / batch, last / batch)
        with full_precision(), torch.no_grad():
            parts.append(_Windows(request, request.y[first:last]).scan(progress))
    return WindowResult(
        torch.cat([part.mean for part in parts]),
        torch.cat([part.ess for part in parts]),
        sum(part.logits for part in parts),
    )


class _Windows:
    """The windows of some noisy images. Tiles of n training images are of shape (H, W, C, n)."""

    def __init__(self, request: WindowRequest, y: Tensor) -> None:
        self._request, self._dtype = request, request.dtype
        self._lo, self._hi = request.training.range_of(request.label)
        height, width = request.training.size
        # (y - v)^2 = u (u + 2 r) + r^2 with y = near + r and u = near - v. The sum of r^2 is the same for all
        # images. It is left out, because it can be so large that its rounding error matters.
        device, y = y.device, to_float64(y).permute(0, 2, 3, 1).unsqueeze(-1)
        near = y.clamp(-1, 1)
        self._near, self._beyond = (t.to(device, self._dtype) for t in (near, 2 * (y - near)))
        self._rows, self._columns = (
            torch.from_numpy(window_rows(side, request.k, request.padded)).to(y.device)
            for side in (height, width)
        )
        scaled = self._rows * (-0.5 / request.sigma2)
        self._along_y, self._along_x = (t.to(device, self._dtype) for t in (scaled, self._columns))

    def scan(self, progress: Progress) -> WindowResult:
        batch, height, width, channels, _ = self._near.shape
        shape = (batch, len(self._rows), len(self._columns))
        device = self._near.device
        state = SoftmaxState.empty(shape, 0, device)
        nothing = torch.zeros((TILE, 0), dtype=self._dtype, device=device)
        for values in self._tiles(part_of(progress, STAGE, 0.0, 0.5)):
            for b in range(batch):
                state.merge(SoftmaxState.of(self._logits(values, b), nothing[: values.shape[-1]]), (b,))
        top, share = (t.to(device, self._dtype) for t in (state.max_logit.unsqueeze(-1), 1 / state.weight))
        sums = state.weight.device
        total = torch.zeros((batch, height, width, channels), dtype=torch.float64, device=sums)
        rows, columns = (t.T.to(device, self._dtype) for t in (self._rows, self._columns))
        for values in self._tiles(part_of(progress, STAGE, 0.5, 1.0)):
            n = values.shape[-1]
            for b in range(batch):
                weights = self._logits(values, b).sub_(top[b]).clamp_min_(NEGLIGIBLE).exp_()
                weights.mul_(share[b].unsqueeze(-1))
                along = (columns @ weights).reshape(len(self._rows), width * n)
                held = (rows @ along).reshape(height, width, n, 1)
                total[b] += to_float64((values @ held).squeeze(-1))
        counts = self._rows.sum(0).unsqueeze(1) * self._columns.sum(0)
        ess = self._rows.T @ state.ess() @ self._columns / counts
        mean = total.permute(0, 3, 1, 2) / counts
        return WindowResult(mean, ess, int(state.count.sum()))

    def _tiles(self, progress: Progress) -> Iterator[Tensor]:
        """Yield the training images in tiles (H, W, C, n), in [-1, 1]."""
        height, width = self._request.training.size
        size, itemsize = height * width * self._request.training.channels, self._near.element_size()
        windows = height * width
        # A quarter is for blocks of bytes. An image takes four times its floats, and ten times its windows.
        n = self._request.memory // 2 // ((4 * size + 10 * windows) * itemsize)
        n = max(1, min(TILE, n))
        at_once = max(n, self._request.memory // 4 // (3 * size))
        done = 0
        with read_ahead(self._request.training.blocks(self._lo, self._hi, at_once, multiple=n)) as blocks:
            for block in blocks:
                for first in range(0, len(block), n):
                    pixels = as_tensor(block[first : first + n], self._near.device)
                    yield to_unit(pixels.permute(1, 2, 3, 0).contiguous(), self._dtype)
                    done += pixels.shape[0]
                    progress(STAGE, done, self._hi - self._lo)

    def _logits(self, values: Tensor, b: int) -> Tensor:
        """Return the logits of windows and images, (windows along y, along x, n), of a noisy image."""
        height, width, _, n = values.shape
        u = self._near[b] - values
        squares = (u * (u + self._beyond[b])).sum(2).reshape(height, width * n)
        along = (self._along_y @ squares).reshape(-1, width, n)
        return self._along_x @ along
