"""Images as tensors: from an array to a device, and from uint8 to floats in [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_tensor", "to_unit"]


def as_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Return an array as a tensor on a device; a read-only array is copied: torch can write to any tensor."""
    return torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)


def to_unit(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 pixels as floats in [-1, 1]: `p / 127.5 - 1`."""
    return pixels.to(dtype).div_(127.5).sub_(1)
