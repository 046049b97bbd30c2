"""Pictures of samples: grids of images, and filmstrips of trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from patchindex.errors import printable
from patchindex.sampling.trajectory import Trajectory

__all__ = ["filmstrip", "image_grid", "pictures_of", "png_of"]

LETTERS = 24  # of a row's name


def image_grid(
    images: Tensor,
    columns: int | None = None,
    height: int = 112,
    gap: int = 4,
    row_names: Sequence[str] = (),
) -> Image.Image:
    """Return images (n, C, H, W) in [-1, 1] in a grid with `columns` images per row, by default about square.

    Images are enlarged by a whole factor, with sharp pixels, up to `height` pixels; `gap` white pixels are
    between images. `row_names` are written to the left of the rows, at most 24 letters of each.
    """
    pixels = _levels(images)
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
    grid = Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)
    return _with_row_names(grid, row_names, h + gap, gap) if any(row_names) else grid


def pictures_of(images: Tensor) -> list[Image.Image]:
    """Return each of the images (n, C, H, W) in [-1, 1] as a picture of H x W pixels."""
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in _levels(images)]


def _levels(images: Tensor) -> np.ndarray:
    levels = ((images.cpu().permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).round()
    return levels.numpy().astype(np.uint8)


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


def _with_row_names(grid: Image.Image, names: Sequence[str], height: int, gap: int) -> Image.Image:
    """Return a grid with a name to the left of each row; rows are `height` pixels apart."""
    font = ImageFont.load_default(12)
    texts = [printable(name)[:LETTERS] for name in names]
    width = math.ceil(max(font.getlength(text) for text in texts)) + 2 * gap
    canvas = Image.new(grid.mode, (grid.width + width, grid.height), "white")
    canvas.paste(grid, (width, 0))
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(texts):
        place = (width - gap, gap + i * height + (height - gap) / 2)
        draw.text(place, text, fill="black", anchor="rm", font=font)
    return canvas


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
