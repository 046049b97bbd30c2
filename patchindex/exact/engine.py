"""The exact scan: which engine does it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patchindex.exact import cpu
from patchindex.exact import torch as anywhere
from patchindex.patches import Geometry
from patchindex.softmax import SoftmaxState
from patchindex.training import TrainingImages

__all__ = ["scan"]


def scan(
    training: TrainingImages,
    geometry: Geometry,
    x: Tensor,
    a: float,
    beta: float,
    *,
    label: int | None = None,
    memory: int = 256 << 20,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float], None] | None = None,
) -> SoftmaxState:
    """Compare every pixel with every training patch of its position class.

    In float32 on a CPU the compiled kernel of `patchindex.exact.cpu` does it, on as many threads as torch
    has; on other devices, in float64 and for IS `patchindex.exact.torch`.

    Parameters
    ----------
    training : TrainingImages
        N images of the geometry's size.
    geometry : Geometry
        The machine and its locality scale.
    x : Tensor, shape (B, C, H, W)
        Noisy images, on the device that does the work.
    a, beta : float
        Signal scale `sqrt(1 - beta)` and noise variance.
    label : int, optional
        Only images of this label.
    memory : int
        Bytes that temporary arrays may take, if one query fits: about 13 MiB at 32 x 32 x 3, 100 at 64 x 64.
    dtype : torch.dtype
        float32, or float64 for studies.
    progress : callable, optional
        Told the share of the scan that is done, in (0, 1].

    Returns
    -------
    SoftmaxState
        For the pixels, shape (B, H, W), in float64.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    >>> x = torch.zeros(1, 1, 8, 8)
    >>> state = scan(TrainingImages(images), Geometry.of("ELS", 3, (8, 8)), x, 0.8, 0.36)
    >>> state.mean().shape, int(state.count[0, 0, 0]) == 4 * 6 * 6
    (torch.Size([1, 8, 8, 1]), True)
    """
    if x.device.type == "cpu" and dtype == torch.float32 and geometry.machine != "IS":
        return cpu.scan(training, geometry, x, a, beta, label=label, memory=memory, progress=progress)
    return anywhere.scan(
        training, geometry, x, a, beta, label=label, memory=memory, dtype=dtype, progress=progress
    )
