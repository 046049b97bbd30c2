"""What an engine is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """A scan of some training images for a group of queries.

    Attributes
    ----------
    training : TrainingImages
    lo, hi : int
        Training images lo to hi - 1.
    geometry : Geometry
    x : Tensor, shape (B, C, H, W)
        Noisy images, on the device that does the work.
    a, beta : float
        Signal scale and noise variance.
    mask : Tensor of bool, shape (B, H * W), or None
        The pixels asked for; others of the result may hold anything. None for all.
    memory : int
        Bytes for what grows with a block of training images.
    dtype : torch.dtype
        float32 or float64.
    told : callable
        Hears the share that is done, in (0, 1].
    """

    training: TrainingImages
    lo: int
    hi: int
    geometry: Geometry
    x: Tensor
    a: float
    beta: float
    mask: Tensor | None
    memory: int
    dtype: torch.dtype
    told: Callable[[float], None]
