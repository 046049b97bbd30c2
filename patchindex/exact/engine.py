"""The exact scan: which engine does it, for which queries at a time, and which of their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.exact import cpu
from patchindex.exact import offsets as anywhere
from patchindex.exact import whole_images as ideal
from patchindex.exact.request import Request
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.runtime import full_precision
from patchindex.softmax import SoftmaxState

__all__ = ["LARGEST_DIFFERENCE", "LARGEST_LOGIT", "Engine", "largest_difference", "largest_logit", "scan"]

# Beyond it (x must be thousands of times as large as any noisy image) float32 has no digits left to tell
# logits apart by; such x are scanned in float64.
LARGEST_LOGIT = 2.0**26
# The same for logits that are made of squares of differences, which are rounded as such.
LARGEST_DIFFERENCE = 2.0**22


class Engine(Protocol):
    """What a module has to have to be an engine."""

    def query_bytes(self, geometry: Geometry, channels: int) -> int:
        """Return what a query takes whatever the training images: its sums and states, with copies."""
        ...

    def scan(self, request: Request) -> SoftmaxState:
        """Return a state of shape (B, H, W)."""
        ...


def scan(
    training: TrainingImages,
    geometry: Geometry,
    x: Tensor,
    a: float,
    beta: float,
    *,
    label: int | None = None,
    pixels: Tensor | Sequence[Tensor] | None = None,
    memory: int = 256 << 20,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float], None] | None = None,
) -> SoftmaxState:
    """Compare every pixel with every training patch of its position class.

    In float32 on a CPU the compiled kernel of `patchindex.exact.cpu` does it, on as many threads as torch
    has; on other devices and in float64 `patchindex.exact.offsets`; for IS, which compares whole images,
    `patchindex.exact.whole_images`.

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
    pixels : Tensor of bool, shape (B, H, W), or sequence of B tensors of int64, optional
        Only these pixels: a mask, or for each image raster numbers `y * W + x`. Few cost in proportion to
        their number; where a scan of all pixels is cheaper than that, it is done instead.
    memory : int
        Bytes that temporary arrays may take, if one query fits: half a MiB at 32 x 32 x 3 for the kernel, and
        in float64 about 13 MiB, 100 at 64 x 64.
    dtype : torch.dtype
        float32, or float64 for studies.
    progress : callable, optional
        Told the share of the scan that is done, in (0, 1].

    Returns
    -------
    SoftmaxState
        In float64. Of shape (B, H, W); with `pixels` of shape (M,), the pixels asked for: image by image, in
        raster order for a mask, else as they are listed.

    Raises
    ------
    InputError
        When x or the geometry do not fit the training images, or `pixels` has another shape or type than
        above, or numbers outside the image.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    >>> training, geometry = TrainingImages(images), Geometry.of("ELS", 3, (8, 8))
    >>> x = torch.zeros(1, 1, 8, 8)
    >>> state = scan(training, geometry, x, 0.8, 0.36)
    >>> state.mean().shape, int(state.count[0, 0, 0]) == 4 * 6 * 6
    (torch.Size([1, 8, 8, 1]), True)
    >>> scan(training, geometry, x, 0.8, 0.36, pixels=[torch.tensor([63, 5])]).mean().shape
    torch.Size([2, 1])
    """
    _check(x, geometry, training)
    x = x.detach()
    batch, channels, height, width = x.shape
    engine: Engine = anywhere
    if geometry.machine == "IS":
        engine = ideal
    elif x.device.type == "cpu" and dtype == torch.float32:
        engine = cpu
        if largest_logit(x, geometry, a, beta) > LARGEST_LOGIT:
            engine, dtype = anywhere, torch.float64
    lo, hi = training.range_of(label)
    wanted = None if pixels is None else _wanted(pixels, x)
    shape = (batch, height, width) if wanted is None else (sum(map(len, wanted)),)
    result = SoftmaxState.empty(shape, channels, x.device)
    # Half of the memory is for the queries of a group, with their states, and half for the scan.
    group = max(1, memory // 2 // engine.query_bytes(geometry, channels))
    done = 0
    for first in range(0, batch, group):
        part = slice(first, min(first + group, batch))

        def told(share: float, part: slice = part) -> None:
            if progress is not None:
                progress((part.start + share * (part.stop - part.start)) / batch)

        mask, rows = None, None
        if wanted is not None:
            mask = torch.zeros((len(wanted[part]), height * width), dtype=torch.bool, device=x.device)
            for row, numbers in zip(mask, wanted[part], strict=True):
                row[numbers] = True
            rows = torch.cat([i * height * width + numbers for i, numbers in enumerate(wanted[part])])
            if not len(rows):
                told(1.0)
                continue
        with full_precision(), torch.no_grad():
            request = Request(training, lo, hi, geometry, x[part], a, beta, mask, memory // 2, dtype, told)
            state = engine.scan(request)
        if rows is not None:
            state = SoftmaxState(*(field.flatten(0, 2)[rows] for field in vars(state).values()))
        for whole, found in zip(vars(result).values(), vars(state).values(), strict=True):
            whole[done : done + len(found)] = found
        done += len(state.weight)
    return result


def _check(x: Tensor, geometry: Geometry, training: TrainingImages) -> None:
    """Refuse noisy images that do not fit: the kernel reads without looking."""
    expected = (training.channels, *training.size)
    if x.dim() != 4 or tuple(x.shape[1:]) != expected:
        raise InputError(
            f"must be of shape (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}",
            where="x",
            remedy="give noisy images of the training images' size",
        )
    if geometry.size != training.size:
        raise InputError(
            f"is of images of {geometry.size}, the training images are of {training.size}",
            where="geometry",
            remedy="make it for their size",
        )


def largest_logit(x: Tensor, geometry: Geometry, a: float, beta: float) -> float:
    """Bound the products that logits are made of."""
    height, width = geometry.size
    pixels = min(geometry.k, height) * min(geometry.k, width) * x.shape[1]
    return pixels * float(x.abs().max() if len(x) else 0.0) * 2 * a / beta


def largest_difference(x: Tensor, geometry: Geometry, a: float, beta: float) -> float:
    """Bound minus the logits: squares of differences over twice the noise variance."""
    height, width = geometry.size
    pixels = min(geometry.k, height) * min(geometry.k, width) * x.shape[1]
    return pixels * (float(x.abs().max() if len(x) else 0.0) + a) ** 2 / (2 * beta)


def _wanted(pixels: Tensor | Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Return the raster numbers of the pixels asked for, image by image."""
    batch, _, height, width = x.shape
    if isinstance(pixels, Tensor) and pixels.dtype == torch.bool:
        if tuple(pixels.shape) != (batch, height, width):
            raise InputError(
                f"a mask must be of shape {(batch, height, width)}, got {tuple(pixels.shape)}",
                where="pixels",
                remedy="give the shape of the images without channels",
            )
        return [mask.flatten().nonzero()[:, 0] for mask in pixels.to(x.device)]
    wanted = [torch.as_tensor(numbers, device=x.device) for numbers in pixels]
    if len(wanted) != batch:
        raise InputError(
            f"there are {len(wanted)} lists for {batch} images", where="pixels", remedy="give one for each"
        )
    for i, numbers in enumerate(wanted):
        integers = not (numbers.is_floating_point() or numbers.dtype == torch.bool)
        if numbers.dim() != 1 or not (integers or not len(numbers)):
            raise InputError(
                f"must be a list of integers, got {numbers.dtype} of shape {tuple(numbers.shape)}",
                where=f"pixels of image {i}",
                remedy="give raster numbers y * W + x, or a mask of bool for all images",
            )
        least, most = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
        if not 0 <= least <= most < height * width:
            raise InputError(
                f"numbers must be 0 to {height * width - 1}, got {least} to {most}",
                where=f"pixels of image {i}",
                remedy="give raster numbers y * W + x",
            )
    return [numbers.long() for numbers in wanted]
