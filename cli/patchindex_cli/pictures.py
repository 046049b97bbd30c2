"""Grids of images for PNG files."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torch import Tensor


def image_grid(images: Tensor, columns: int | None = None, height: int = 112, gap: int = 4) -> Image.Image:
    """Return images (n, C, H, W) in [-1, 1] in a grid with `columns` images per row, by default about square.

    Images are enlarged by a whole factor, with sharp pixels, up to `height` pixels; `gap` white pixels are
    between images.
    """
    levels = ((images.cpu().permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).round()
    pixels = levels.numpy().astype(np.uint8)
    n, h, w, channels = pixels.shape
    factor = max(1, height // h)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    h, w = h * factor, w * factor
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        y, x = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        canvas[y : y + h, x : x + w] = image
    return Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)
