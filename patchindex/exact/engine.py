"""The exact scan: choose an engine, and cut a request into groups of noisy images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from patchindex.devices import check_dtype
from patchindex.errors import InputError
from patchindex.exact.choice import Engine, engine_of
from patchindex.exact.parts import STAGE, check_bounds
from patchindex.exact.request import ScoreRequest
from patchindex.runtime import part_of, plain_state
from patchindex.softmax import SoftmaxState

__all__ = ["Engine", "scan", "scan_parts"]


@plain_state()
def scan(request: ScoreRequest) -> SoftmaxState:
    """Compare every pixel with every training patch of its position class.

    The engine is `request.engine`, or the first of these that can run: `patchindex.exact.whole_images` for
    IS; in float32 `cpu`, a compiled kernel on as many threads as torch has, or `fused`, a Triton kernel on a
    CUDA device of compute capability 8.0 or later; `offsets`, in torch, on all devices and in float64. The
    memory holds if one noisy image fits: half a MiB at 32 x 32 x 3 for `cpu`, 13 MiB in float64.

    Parameters
    ----------
    request : ScoreRequest
        Noisy images (B, C, H, W) of one noise variance, and the training images.

    Returns
    -------
    SoftmaxState
        In float64, of shape (B, H, W); with `pixels` of shape (M,): image by image, in raster order for a
        mask, else in the order of the lists. It is on the `float64_device` of x.

    Raises
    ------
    InputError
        When x or the geometry do not fit the training images, `pixels` does not fit x, or the engine cannot
        run the request.
    DeviceError
        When the engine needs a device or a package that is not there, or the dtype is float64 and the device
        has no float64.

    Examples
    --------
    >>> import numpy as np
    >>> from patchindex.geometry import Geometry
    >>> from patchindex.images.by_label import TrainingImages
    >>> training = TrainingImages(np.arange(6 * 25, dtype=np.uint8).reshape(6, 5, 5))
    >>> state = scan(ScoreRequest(training, Geometry.of("LS", 3, (5, 5)), torch.zeros(2, 1, 5, 5), 0.5))
    >>> state.mean().shape, state.count[0, 0].tolist()
    (torch.Size([2, 5, 5, 1]), [6, 6, 6, 6, 6])
    """
    lo, hi = request.image_range
    return scan_parts(request, [0, hi - lo])[0]


@plain_state()
def scan_parts(request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
    """Return a softmax state for each of several parts of the training images.

    Part i has the images `bounds[i]` to `bounds[i + 1] - 1` of the request's images with its label,
    counted from 0 in label order; no part is empty. `TrainingImages.select` gives images another order.

    Returns
    -------
    SoftmaxState
        In float64, of shape (P, B, H, W) for P parts; with `pixels` of shape (P, M), as from `scan`.

    Raises
    ------
    InputError
        When there are less than two bounds, or they do not ascend within the range; else as from `scan`.
    DeviceError
        As from `scan`.

    Examples
    --------
    >>> import numpy as np
    >>> from patchindex.geometry import Geometry
    >>> from patchindex.images.by_label import TrainingImages
    >>> training = TrainingImages(np.arange(6 * 25, dtype=np.uint8).reshape(6, 5, 5))
    >>> request = ScoreRequest(training, Geometry.of("LS", 3, (5, 5)), torch.zeros(2, 1, 5, 5), 0.5)
    >>> state = scan_parts(request, [0, 2, 6])
    >>> state.count.shape, state.count[:, 0, 0, 0].tolist()
    (torch.Size([2, 2, 5, 5]), [2, 4])
    """
    check_bounds(request, bounds)
    _check(request)
    check_dtype(request.x.device, request.dtype)
    request = replace(request, x=request.x.detach())
    x, geometry = request.x, request.geometry
    batch, channels, height, width = x.shape
    engine: Engine = engine_of(request)
    wanted = _wanted(request)
    shape = (batch, height, width) if wanted is None else (sum(map(len, wanted)),)
    parts = len(bounds) - 1
    result = SoftmaxState.empty((parts, *shape), channels, x.device)
    # Half of the memory is for the noisy images of a group, with their states, and half for the scan.
    group = max(1, request.memory // 2 // (parts * engine.query_bytes(geometry, channels)))
    whole = replace(request, pixels=wanted, memory=request.memory // 2)
    done = 0
    for first in range(0, batch, group):
        last = min(first + group, batch)
        progress = part_of(request.progress, STAGE, first / batch, last / batch)
        part = replace(whole.select(slice(first, last)), progress=progress)
        rows = None
        if wanted is not None:
            rows = torch.cat([i * height * width + n for i, n in enumerate(wanted[first:last])])
            if not len(rows):
                progress(STAGE, 1.0, 1.0)
                continue
        with torch.no_grad():
            state = engine.scan_parts(part, bounds)
        if rows is not None:
            state = state.reshape((parts, -1))[:, rows.to(state.weight.device)]
        size = state.weight.shape[1]
        result.write((slice(None), slice(done, done + size)), state)
        done += size
    return result


def _check(request: ScoreRequest) -> None:
    """Refuse noisy images that do not fit: the kernel does not check bounds."""
    x, geometry, training = request.x, request.geometry, request.training
    expected = (training.channels, *training.size)
    if x.dim() != 4 or tuple(x.shape[1:]) != expected:
        raise InputError(
            f"must be of shape (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}",
            parameter="x",
            remedy="give noisy images of the training images' size",
        )
    if geometry.size != training.size:
        raise InputError(
            f"is of images of {geometry.size}, the training images are of {training.size}",
            parameter="geometry",
            remedy="make it for their size",
        )


def _wanted(request: ScoreRequest) -> list[Tensor] | None:
    """Return the raster numbers of the wanted pixels, image by image; None for all pixels."""
    pixels, x = request.pixels, request.x
    if pixels is None:
        return None
    batch, _, height, width = x.shape
    if isinstance(pixels, Tensor) and pixels.dtype == torch.bool:
        if tuple(pixels.shape) != (batch, height, width):
            raise InputError(
                f"a mask must be of shape {(batch, height, width)}, got {tuple(pixels.shape)}",
                parameter="pixels",
                remedy="give the shape of the images without channels",
            )
        return [mask.flatten().nonzero()[:, 0] for mask in pixels.to(x.device)]
    wanted = [torch.as_tensor(numbers, device=x.device) for numbers in pixels]
    if len(wanted) != batch:
        raise InputError(
            f"there are {len(wanted)} lists for {batch} images",
            parameter="pixels",
            remedy="give one for each",
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
