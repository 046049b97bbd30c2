"""Figures of matplotlib, which comes with the extra `plots`."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from torch import Tensor

from patchindex.errors import InputError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_class", "file_title", "show_image", "show_window"]

NAME_WIDTH = 18  # characters of a file name


@cache
def figure_class() -> type[Figure]:
    """Return matplotlib's `Figure`, with a picture for notebooks; without matplotlib, raise an InputError."""
    try:
        from matplotlib import figure
    except ImportError:
        remedy = "pip install 'patchindex[plots]'"
        raise InputError("matplotlib is not installed", where="plot", remedy=remedy) from None

    class Figure(figure.Figure):
        """A figure that a notebook shows, also where pyplot, which registers figures, is not imported."""

        def _repr_png_(self) -> bytes:
            png = BytesIO()
            self.savefig(png, format="png")
            return png.getvalue()

    return Figure


def show_image(axes: Any, image: Tensor) -> None:
    """Draw one image (C, H, W) in [-1, 1], grey or in colour, without an axis."""
    levels = ((image.detach().cpu().permute(1, 2, 0).float() + 1) / 2).clamp(0, 1).numpy()
    axes.imshow(levels.squeeze(2) if levels.shape[2] == 1 else levels, cmap="gray", vmin=0, vmax=1)
    axes.axis("off")


def show_window(axes: Any, pixel: tuple[int, int], k: int | None) -> None:
    """Draw the border of the k x k window of a pixel (y, x); without k, the border of the pixel."""
    from matplotlib.patches import Rectangle

    width = k or 1
    corner = (pixel[1] - width / 2, pixel[0] - width / 2)
    axes.add_patch(Rectangle(corner, width, width, fill=False, color="C1", linewidth=2))


def file_title(name: str) -> str:
    """Return the end of a file name, as a title of a figure shows it."""
    name = printable(name)
    # The font has Latin letters only, and two dollars would begin a formula.
    shown = name.encode("latin-1", "replace").decode("latin-1").replace("$", r"\$")
    return f"{'...' * (len(name) > NAME_WIDTH)}{shown[-NAME_WIDTH:]}"
