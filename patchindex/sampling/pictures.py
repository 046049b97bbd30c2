"""Pictures of samples: grids of images, and filmstrips of trajectories."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from textwrap import fill
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from patchindex.checks import check_least, check_optional
from patchindex.errors import InputError, printable
from patchindex.sampling.trajectory import Trajectory

__all__ = ["filmstrip", "image_grid", "pictures_of", "png_of"]

LETTERS = 24  # of a line of a row's name
LINES = 3  # of a row's name
NAME_SIZE, HEAD_SIZE, HEAD_HEIGHT = 12, 10, 16  # pixels


class HasImages(Protocol):
    """A result with images, such as `SampleResult`."""

    @property
    def images(self) -> Tensor:
        """Images, (n, C, H, W)."""


def image_grid(
    images: Tensor | HasImages | Mapping[str, Tensor | HasImages],
    columns: int | None = None,
    *,
    height: int = 112,
    gap: int = 4,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> Image.Image:
    """Return images in a grid, as a picture of Pillow, which a notebook shows.

    Images are enlarged by a whole factor, with sharp pixels. Values beyond [-1, 1] are clamped: divide noisy
    images by 2 or 3 to see them.

    Parameters
    ----------
    images : Tensor (n, C, H, W), SampleResult, or mapping of str to one of these
        In [-1, 1]. Of a mapping, each item is one row with its name to the left: images that several
        denoisers draw from the same noise, for example. Rows may be grey and coloured.
    columns : int, optional
        Images per row; by default the grid is about square. Of a mapping: each row shows its first images,
        by default all.
    height : int
        Most pixels of an enlarged image, from top to bottom.
    gap : int
        White pixels between images.
    row_names : sequence of str
        Names to the left of the rows, unless `images` is a mapping: up to three lines of 24 letters each.
    column_names : sequence of str
        Names above the columns.

    Returns
    -------
    PIL.Image.Image
        Grey, or in colour if any image is.

    Raises
    ------
    InputError
        When images have another form, or rows have images of different sizes.

    Examples
    --------
    >>> grid = image_grid({"noise": torch.randn(3, 1, 8, 8) / 3, "LS": torch.zeros(3, 1, 8, 8)}, height=8)
    >>> grid.mode, grid.height  # two rows of 8 pixels, 4 white pixels around them
    ('L', 28)
    """
    check_optional(columns=(columns, 1))
    check_least(height=(height, 1), gap=(gap, 0))
    if isinstance(images, Mapping):
        row_names = [*images]
        rows = [_levels(each, name)[:columns] for name, each in images.items()]
    else:
        pixels = _levels(images)
        columns = columns or math.ceil(math.sqrt(len(pixels)))
        rows = [pixels[first : first + columns] for first in range(0, len(pixels), columns)]
    sizes = {row.shape[1:3] for row in rows}
    if len(sizes) != 1:
        found = ", ".join(f"{h} x {w}" for h, w in sorted(sizes)) or "no images"
        raise InputError(f"have one size, got {found}", parameter="images", remedy="give images of one size")
    ((h, w),) = sizes
    factor = max(1, height // h)
    row_step, column_step = h * factor + gap, w * factor + gap
    channels = max(row.shape[3] for row in rows)
    shape = (len(rows) * row_step + gap, max(map(len, rows)) * column_step + gap, channels)
    canvas = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row.repeat(factor, axis=1).repeat(factor, axis=2)):
            y, x = gap + i * row_step, gap + j * column_step
            canvas[y : y + h * factor, x : x + w * factor] = image
    grid = Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)
    if any(column_names):
        grid = _with_heads(grid, column_names, column_step, gap)
    return _with_row_names(grid, row_names, len(rows), row_step, gap) if any(row_names) else grid


def pictures_of(images: Tensor) -> list[Image.Image]:
    """Return each of the images (n, C, H, W) in [-1, 1] as a picture of H x W pixels."""
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in _levels(images)]


def _levels(images: Tensor | HasImages, name: str = "images") -> np.ndarray:
    """Return images (n, C, H, W) in [-1, 1] as uint8 (n, H, W, C)."""
    given = images if isinstance(images, Tensor) else getattr(images, "images", None)
    if not isinstance(given, Tensor) or given.dim() != 4 or given.shape[1] not in (1, 3) or not len(given):
        found = tuple(given.shape) if isinstance(given, Tensor) else type(images).__name__
        raise InputError(
            f"must be a tensor of shape (n, C, H, W), C 1 or 3, got {found}",
            parameter=name,
            remedy="reshape it",
        )
    levels = ((given.detach().cpu().float().permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).round()
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
        Number of steps; the most pixels that an enlarged image may be high.
    """
    shown = np.unique(np.linspace(0, len(trajectory) - 1, most).round().astype(int))
    rows = []
    for i in range(trajectory.x.shape[1]):
        rows += [
            torch.cat([torch.from_numpy(steps[shown, i]), images[i : i + 1].cpu()])
            for steps in (trajectory.x, trajectory.mean)
        ]
    names = [
        f"t {trajectory.t[step]:.2f}" + (f"  k {trajectory.k[step]}" if trajectory.k[step] else "")
        for step in shown
    ]
    names.append("image")
    return image_grid(torch.cat(rows), columns=len(names), height=height, column_names=names)


def png_of(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()


def _with_row_names(grid: Image.Image, names: Sequence[str], rows: int, step: int, gap: int) -> Image.Image:
    """Return a grid with a name to the left of each of its rows, which are `step` pixels apart."""
    font, texts = ImageFont.load_default(NAME_SIZE), [_wrapped(name) for name in names]
    measure = ImageDraw.Draw(grid)
    width = math.ceil(max(measure.multiline_textbbox((0, 0), text, font=font)[2] for text in texts)) + 2 * gap
    canvas = Image.new(grid.mode, (grid.width + width, grid.height), "white")
    canvas.paste(grid, (width, 0))
    draw = ImageDraw.Draw(canvas)
    top = grid.height - rows * step
    for i, text in enumerate(texts[:rows]):
        place = (width - gap, top + i * step + (step - gap) / 2)
        draw.multiline_text(place, text, fill="black", anchor="rm", align="right", font=font)
    return canvas


def _wrapped(name: str) -> str:
    """Break a name, with options for example, into lines that fit beside a row of images.

    >>> print(_wrapped("pca-locality:tau=0.05,relative_to=pixel"))
    pca-locality: tau=0.05,
    relative_to=pixel
    """
    parts = (re.sub(r"[:,](?=\S)", r"\g<0> ", printable(line)) for line in name.splitlines())
    return "\n".join("\n".join(fill(part, LETTERS) for part in parts).splitlines()[:LINES])


def _with_heads(grid: Image.Image, names: Sequence[str], step: int, gap: int) -> Image.Image:
    """Return a grid with a line of text above each column; columns are `step` pixels apart."""
    canvas = Image.new(grid.mode, (grid.width, grid.height + HEAD_HEIGHT), "white")
    canvas.paste(grid, (0, HEAD_HEIGHT))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(HEAD_SIZE)
    for i, name in enumerate(names):
        place = (gap + i * step + (step - gap) / 2, HEAD_HEIGHT / 2 + 1)
        draw.text(place, printable(name), fill="black", anchor="mm", font=font)
    return canvas
