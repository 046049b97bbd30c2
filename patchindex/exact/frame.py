"""Queries in the units of the CPU kernel, and its sums as softmax states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchindex.exact.tables import Plan
from patchindex.geometry import query_counts
from patchindex.softmax import SoftmaxState

__all__ = ["SAMPLE", "Frame"]

SAMPLE = 64  # images whose grey is taken off
NEGLIGIBLE = 1e-6  # what all that is skipped may change of a mean


@dataclass(frozen=True)
class Frame:
    """Noisy images as the kernel takes them. Its logits are in units of log 2, without the query's norm.

    Attributes
    ----------
    plan : Plan
    queries : list of array of float32
        Scaled, without grey, flat: (H + 1, C, W), the last row zeros.
    norms : array of float64, shape (B, H, W)
        What the kernel's logits have too much, in nats: squared norms of the windows over 2 beta.
    counts : array of int64, shape (H, W)
        How many patches of an image each pixel is compared with.
    grey : array of float32, shape (C,)
        Subtracted from the images: sums of smaller values round less.
    norm_scale : float
    threshold : float32
    """

    plan: Plan
    queries: list[np.ndarray]
    norms: np.ndarray
    counts: np.ndarray
    grey: np.ndarray
    norm_scale: float
    threshold: np.float32

    @classmethod
    def of(cls, plan: Plan, x: Tensor, beta: float, sample: np.ndarray, images: int) -> Frame:
        """Prepare noisy images (B, C, H, W) for a scan of some images like those of a sample (n, H, W, C)."""
        a = (1 - beta) ** 0.5
        width, channels = sample.shape[2:]
        columns = sample.reshape(-1, width * channels).sum(0, dtype=np.int64)  # rows of C alone are slow
        grey = np.rint(columns.reshape(width, channels).sum(0) / (sample.size / channels)).astype(np.float32)
        centred = x.double() - a * _unit(grey)[:, None, None]
        along_y, along_x = (np.diff(axis.ranges)[:, 0] for axis in (plan.geometry.y, plan.geometry.x))
        counts = along_y[:, None] * along_x
        # Not by torch, whose matrix products leave threads behind that spin for milliseconds, in our way.
        along_y, along_x = query_counts(plan.geometry)
        norms = np.einsum("bij,xj->bix", centred.square().sum(1).numpy(), along_x)
        return cls(
            plan=plan,
            queries=[_query(image, a / beta / math.log(2) / 127.5) for image in centred],
            norms=np.einsum("yi,bix->byx", along_y, norms) / (2 * beta),
            counts=counts,
            grey=grey,
            norm_scale=a * a / (2 * beta) / math.log(2) / 127.5**2,
            # What is skipped weighs at most 2^-threshold a member, of a sum that is 1/2 or more since the
            # running maximum was rounded up; a mean in [-1, 1] moves by twice that share.
            threshold=np.float32(math.log2(int(counts.max()) * images * 4 / NEGLIGIBLE)),
        )

    def state(self, tops: np.ndarray, totals: np.ndarray, counts: np.ndarray) -> SoftmaxState:
        """Return the state (B, H, W) of sums as `kernel.flush` writes them.

        Parameters
        ----------
        tops, totals : arrays of float64, shape (B, pixels) and (B, pixels, 2 + C)
        counts : array of int64, shape (H, W)
            How many members each pixel has.
        """
        shape, channels = self.norms.shape, len(self.grey)
        state = SoftmaxState.empty(shape, channels)
        logits = np.where(totals[..., 0] == 0, -np.inf, tops * math.log(2))
        state.max_logit = torch.from_numpy(logits.reshape(shape) - self.norms)
        state.weight = torch.from_numpy(totals[..., 0].reshape(shape).copy())
        state.count += torch.from_numpy(counts)
        # Squares were rounded to float32 one by one; for their sum Cauchy and Schwarz hold all the same.
        square = state.weight.square()
        state.weight_sq = torch.from_numpy(totals[..., 1].reshape(shape).copy())
        state.weight_sq = torch.minimum(
            torch.maximum(state.weight_sq, square / state.count.clamp(min=1)), square
        )
        centres = torch.from_numpy(totals[..., 2:] / 127.5).reshape(*shape, channels)
        state.centre = centres + state.weight.unsqueeze(-1) * _unit(self.grey)
        return state


def _unit(grey: np.ndarray) -> Tensor:
    """Return uint8 values in [-1, 1]."""
    return torch.from_numpy(grey.astype(np.float64) / 127.5 - 1)


def _query(image: Tensor, scale: float) -> np.ndarray:
    """Lay out an image (C, H, W) as the kernel takes it: (H + 1, C, W), float32, flat."""
    rows = np.zeros((image.shape[1] + 1, image.shape[0], image.shape[2]), np.float32)
    rows[:-1] = (image * scale).permute(1, 0, 2).numpy()
    return rows.reshape(-1)
