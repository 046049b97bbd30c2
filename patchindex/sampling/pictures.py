"""Pictures of samples: grids of images, and filmstrips of trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from patchindex.sampling.trajectory import Trajectory

__all__ = ["filmstrip", "image_grid", "png_of"]


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


def filmstrip(trajectory: Trajectory, images: Tensor, most: int = 10, height: int = 56) -> Image.Image:
    """Return the steps of samples from left to right: noisy images, and posterior means below them.

    At most `most` steps are shown, first and last among them, with their time and locality scale above; the
    last column has the images.

    Parameters
    ----------
    trajectory : Trajectory
    images : Tensor, shape (n, C, H, W)
        The final images, of which as many are shown as the trajectory has.
    most, height : int
        Number of steps; least height of an image in pixels.
    """
    shown = np.unique(np.linspace(0, len(trajectory) - 1, most).round().astype(int))
    rows = []
    for i in range(trajectory.x.shape[1]):
        rows += [
            torch.cat([torch.from_numpy(steps[shown, i]), images[i : i + 1].cpu()])
            for steps in (trajectory.x, trajectory.mean)
        ]
    grid = image_grid(torch.cat(rows), columns=len(shown) + 1, height=height)
    names = [
        f"t {trajectory.t[step]:.2f}" + (f"  k {trajectory.k[step]}" if trajectory.k[step] else "")
        for step in shown
    ]
    return _with_heads(grid, [*names, "image"])


def png_of(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()


def _with_heads(grid: Image.Image, heads: Sequence[str]) -> Image.Image:
    """Return a grid with a line of text above each column."""
    line = 16
    canvas = Image.new(grid.mode, (grid.width, grid.height + line), "white")
    canvas.paste(grid, (0, line))
    draw, width = ImageDraw.Draw(canvas), grid.width / len(heads)
    for i, text in enumerate(heads):
        draw.text(
            ((i + 0.5) * width, line / 2 + 1),
            text,
            fill="black",
            anchor="mm",
            font=ImageFont.load_default(10),
        )
    return canvas
