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

SAMPLE = 64  # images whose mean colour is the grey
NEGLIGIBLE = 1e-6  # the largest change of a mean by all skipped members


@dataclass(frozen=True)
class Frame:
    """Noisy images (*queries*) in the kernel's units: logits over log 2, without the query's norm."""

    plan: Plan
    queries: list[np.ndarray]  # float32: scaled, grey subtracted, flattened from (H + 1, C, W), last row zero
    norms: np.ndarray  # (B, H, W): squared norms of the windows over 2 beta, in nats; logits lack them
    counts: np.ndarray  # (H, W): patches of an image that each pixel is compared with
    grey: np.ndarray  # (C,), subtracted from all images: sums of smaller values have smaller rounding errors
    norm_scale: float
    threshold: np.float32

    @classmethod
    def of(cls, plan: Plan, x: Tensor, beta: float, sample: np.ndarray, images: int) -> Frame:
        """Prepare noisy images (B, C, H, W); `sample` holds some of the training images, (n, H, W, C)."""
        a = (1 - beta) ** 0.5
        width, channels = sample.shape[2:]
        columns = sample.reshape(-1, width * channels).sum(0, dtype=np.int64)  # rows of C alone are slow
        grey = np.rint(columns.reshape(width, channels).sum(0) / (sample.size / channels)).astype(np.float32)
        centred = x.double() - a * _unit(grey)[:, None, None]
        along_y, along_x = (np.diff(axis.ranges)[:, 0] for axis in (plan.geometry.y, plan.geometry.x))
        counts = along_y[:, None] * along_x
        # Not by torch: after its matrix products, its threads spin for milliseconds and slow down ours.
        along_y, along_x = query_counts(plan.geometry)
        norms = np.einsum("bij,xj->bix", centred.square().sum(1).numpy(), along_x)
        return cls(
            plan=plan,
            queries=[_query(image, a / beta / math.log(2) / 127.5) for image in centred],
            norms=np.einsum("yi,bix->byx", along_y, norms) / (2 * beta),
            counts=counts,
            grey=grey,
            norm_scale=a * a / (2 * beta) / math.log(2) / 127.5**2,
            # A skipped member weighs at most 2^-threshold. The sum is at least 1/2, since the running maximum
            # is rounded up, and a mean in [-1, 1] moves by at most twice the skipped share.
            threshold=np.float32(math.log2(int(counts.max()) * images * 4 / NEGLIGIBLE)),
        )

    def state(self, tops: np.ndarray, totals: np.ndarray, counts: np.ndarray) -> SoftmaxState:
        """Turn sums by `flush` into a state (B, H, W); `counts` (H, W) are the members of pixels."""
        shape, channels = self.norms.shape, len(self.grey)
        state = SoftmaxState.empty(shape, channels)
        logits = np.where(totals[..., 0] == 0, -np.inf, tops * math.log(2))
        state.max_logit = torch.from_numpy(logits.reshape(shape) - self.norms)
        state.weight = torch.from_numpy(totals[..., 0].reshape(shape).copy())
        state.count += torch.from_numpy(counts)
        # The squares were rounded to float32; keep their sum within the Cauchy-Schwarz bounds.
        square = state.weight.square()
        state.weight_sq = torch.from_numpy(totals[..., 1].reshape(shape).copy())
        state.weight_sq = torch.minimum(
            torch.maximum(state.weight_sq, square / state.count.clamp(min=1)), square
        )
        centres = torch.from_numpy(totals[..., 2:] / 127.5).reshape(*shape, channels)
        state.centre = centres + state.weight.unsqueeze(-1) * _unit(self.grey)
        return state


def _unit(grey: np.ndarray) -> Tensor:
    """Map values in [0, 255] to [-1, 1]."""
    return torch.from_numpy(grey.astype(np.float64) / 127.5 - 1)


def _query(image: Tensor, scale: float) -> np.ndarray:
    """Lay out an image (C, H, W) for the kernel: (H + 1, C, W), float32, flat."""
    rows = np.zeros((image.shape[1] + 1, image.shape[0], image.shape[2]), np.float32)
    rows[:-1] = (image * scale).permute(1, 0, 2).numpy()
    return rows.reshape(-1)
