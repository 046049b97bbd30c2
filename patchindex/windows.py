"""The pixels of windows: of noisy images by position, of training images by patch id."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patchindex.geometry import Axis, Geometry
from patchindex.images.by_label import to_unit

__all__ = ["gather_patches", "pad", "query_counts", "query_windows", "windows"]


def pad(images: Tensor, geometry: Geometry, padding: str) -> Tensor:
    """Surround images with what the windows at their borders see.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
        In [-1, 1], so that zero padding is zero.
    geometry : Geometry
        For the window size.
    padding : str
        `"valid"` (nothing), `"wrapped"` (the image itself) or `"zeros"`.

    Returns
    -------
    Tensor
        Shape (B, C, H + 2 d, W + 2 d) with d = k // 2, or the images for `"valid"`.
    """
    if padding == "valid":
        return images
    d = geometry.k // 2
    if padding == "zeros":
        return torch.nn.functional.pad(images, (d, d, d, d))
    for dim, axis in ((2, geometry.y), (3, geometry.x)):
        images = images.index_select(dim, torch.arange(-d, axis.size + d, device=images.device) % axis.size)
    return images


def windows(images: Tensor, geometry: Geometry, *, query: bool) -> Tensor:
    """Return all windows of images, as a view of the padded images.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
        In [-1, 1].
    geometry : Geometry
        Says how the windows are padded.
    query : bool
        Whether the images are noisy ones; else they are training images.

    Returns
    -------
    Tensor
        Shape (B, C, H, W, k, k); for training images only the positions that windows have.
    """
    wrapped = "wrapped" if geometry.y.circular else "zeros"
    padded = pad(images, geometry, wrapped if query else geometry.y.train_padding)
    return padded.unfold(2, geometry.k, 1).unfold(3, geometry.k, 1)


def query_windows(x: Tensor, geometry: Geometry) -> Tensor:
    """Return every pixel's window.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        Noisy images.
    geometry : Geometry
        Says how the windows are padded.

    Returns
    -------
    Tensor
        Shape (B * H * W, k, k, C), pixels in raster order: a view of the padded images until it is reshaped.
    """
    k, (height, width) = geometry.k, geometry.size
    by_pixel = windows(x, geometry, query=True).permute(0, 2, 3, 4, 5, 1)
    return by_pixel.reshape(len(x) * height * width, k, k, -1)


def query_counts(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return how often the query windows centred on position i cover pixel j, along y and along x.

    With them, `sum_ij y[p, i] |x[i, j]|^2 x[q, j]` is the squared norm of the window of pixel (p, q).

    Parameters
    ----------
    geometry : Geometry
        Says how the windows are padded.

    Returns
    -------
    arrays of float64, shapes (H, H) and (W, W)
    """

    def counts(axis: Axis) -> np.ndarray:
        padding = "wrapped" if axis.circular else "zeros"
        return Axis(axis.size, axis.k, axis.circular, padding, axis.classes).window

    return counts(geometry.y), counts(geometry.x)


def gather_patches(pixels: Tensor, geometry: Geometry, ids: Tensor) -> Tensor:
    """Return training patches by id.

    Parameters
    ----------
    pixels : Tensor, shape (N, H, W, C), uint8
        The training images.
    geometry : Geometry
        Says where the windows are and how they are padded.
    ids : Tensor, shape (...), int64
        Patch ids, `image * patches_per_image + raster index of the window`.

    Returns
    -------
    Tensor
        Shape (..., k, k, C), float32 in [-1, 1].
    """
    if geometry.y.train_padding == "wrapped" or pixels[..., 0].numel() < geometry.k:
        return _gather_by_pixel(pixels, geometry, ids)
    # A row of a window is k pixels side by side. Copied whole, it is ten times as fast as by pixel; where it
    # leaves the image it runs into the next row, which is zeroed.
    image, y, x = (index.unsqueeze(-1) for index in geometry.position(ids))
    (height, width), k, channels = geometry.size, geometry.k, pixels.shape[3]
    window = torch.arange(k, device=ids.device) - k // 2
    rows, row_inside = _inside(y + window, geometry.y)
    starts = (image * height + rows) * width + x - k // 2
    last = pixels[..., 0].numel() - k
    runs = pixels.contiguous().as_strided((last + 1, k * channels), (channels, 1))
    flat = runs.index_select(0, starts.clamp(0, last).flatten())
    patches = to_unit(flat.reshape(*ids.shape, k, k, channels))
    if geometry.y.train_padding == "zeros":
        _, col_inside = _inside(x + window, geometry.x)
        patches.mul_(row_inside.to(patches)[..., None, None]).mul_(col_inside.to(patches)[..., None, :, None])
        # Runs that would begin before the first pixel, or end after the last, were moved.
        moved = ((starts < 0) | (starts > last)).any(-1)
        if moved.any():
            patches[moved] = _gather_by_pixel(pixels, geometry, ids[moved])
    return patches


def _gather_by_pixel(pixels: Tensor, geometry: Geometry, ids: Tensor) -> Tensor:
    image, y, x = geometry.position(ids)
    window = torch.arange(geometry.k, device=ids.device) - geometry.k // 2
    rows, row_inside = _inside(y.unsqueeze(-1) + window, geometry.y)
    cols, col_inside = _inside(x.unsqueeze(-1) + window, geometry.x)
    patches = to_unit(pixels[image[..., None, None], rows[..., :, None], cols[..., None, :]])
    return patches * (row_inside.unsqueeze(-1) & col_inside.unsqueeze(-2)).unsqueeze(-1)


def _inside(positions: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Move positions along an axis into the image, around it or to its border, and say which were inside."""
    if axis.train_padding == "wrapped":
        positions = positions % axis.size
    inside = (positions >= 0) & (positions < axis.size)
    return positions.clamp(0, axis.size - 1), inside
