"""The exact scan: choose an engine, and cut a request into groups of noisy images."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.exact import cpu
from patchindex.exact import offsets as anywhere
from patchindex.exact import whole_images as ideal
from patchindex.exact.request import ScoreRequest
from patchindex.geometry import Geometry
from patchindex.runtime import part_of, plain_state
from patchindex.softmax import SoftmaxState

__all__ = ["Engine", "scan"]

STAGE = "exact scan"


class Engine(Protocol):
    """The functions of an engine module."""

    def query_bytes(self, geometry: Geometry, channels: int) -> int:
        """Return the bytes of one noisy image's sums and states, with copies."""
        ...

    def scan(self, request: ScoreRequest) -> SoftmaxState:
        """Return a state of shape (B, H, W)."""
        ...


@plain_state()
def scan(request: ScoreRequest) -> SoftmaxState:
    """Compare every pixel with every training patch of its position class.

    A compiled kernel (`patchindex.exact.cpu`) does it in float32 on a CPU, on as many threads as torch has;
    `patchindex.exact.offsets` on other devices and in float64; `patchindex.exact.whole_images` for IS. The
    memory holds if one noisy image fits: half a MiB at 32 x 32 x 3 for the kernel, 13 MiB in float64.

    Returns
    -------
    SoftmaxState
        In float64, of shape (B, H, W); with `pixels` of shape (M,): image by image, in raster order for a
        mask, else in the order of the lists.

    Raises
    ------
    InputError
        When x or the geometry do not fit the training images, or `pixels` does not fit x.
    """
    _check(request)
    request = replace(request, x=request.x.detach())
    x, geometry = request.x, request.geometry
    batch, channels, height, width = x.shape
    engine: Engine = anywhere
    if geometry.machine == "IS":
        engine = ideal
    elif x.device.type == "cpu" and request.dtype == torch.float32:
        engine = cpu
    wanted = _wanted(request)
    shape = (batch, height, width) if wanted is None else (sum(map(len, wanted)),)
    result = SoftmaxState.empty(shape, channels, x.device)
    # Half of the memory is for the noisy images of a group, with their states, and half for the scan.
    group = max(1, request.memory // 2 // engine.query_bytes(geometry, channels))
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
            state = engine.scan(part)
        if rows is not None:
            state = state.reshape((-1,))[rows]
        result.write(slice(done, done + len(state.weight)), state)
        done += len(state.weight)
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
