"""`Originality`: distances of images from training images, as tables, a summary, files and figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchindex.store.text_files import write_csv, write_json
from patchindex.study.originality_plots import plot_neighbours, plot_originality
from patchindex.study.shown import ShownRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Originality"]


@dataclass(frozen=True)
class Originality(ShownRows):
    """Distances of images from training images, made by `originality`.

    Attributes
    ----------
    rows : list of dict
        One row per image. `nearest` and `second`: distances to the two nearest training images, unshifted;
        `shifted`: distance to the nearest shifted training image. `nearest_image` and `shifted_image`:
        numbers of these training images in the source; `nearest_name` and `shifted_name`: their file names,
        if the training images have names; `shift_y`, `shift_x`: pixels that the shifted image
        moves down and to the right. `relative_nearest`, `relative_shifted`: distance over the median of the
        baseline; 1 is as far as a held-out image. `copy`: whether nearest / second < 1/3 (Yoon et al.,
        "Diffusion probabilistic models generalize when they fail to memorize", 2023).
    baseline : list of dict
        The same distances, of training images to all others.
    steps : list of dict
        One row per image and time: `ess`, effective sample size of the softmax over patches, and
        `images_per_pixel`, the number of training images that a pixel draws from (both geometric means over
        the chosen pixels); `images`, the number of training images that the image draws from (exponential of
        the entropy of their weights); `heaviest` and `heaviest_image`, the largest weight of a training image
        and its number, and `heaviest_name`, its file name. None where all neighbourhoods are flat.
    images : dict of str to Tensor
        `images`, and the `nearest` and `shifted` training images, each (n, C, H, W) in [-1, 1].
    settings : dict
    """

    rows: list[dict[str, Any]] = field(repr=False)
    baseline: list[dict[str, Any]] = field(repr=False)
    steps: list[dict[str, Any]] = field(repr=False)
    images: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any]

    def shown_rows(self) -> list[dict[str, Any]]:
        """Return the summary without its steps, as one row."""
        return [{name: value for name, value in self.summary().items() if name != "steps"}]

    def summary(self) -> dict[str, Any]:
        """Return medians over images, the number of copies, and medians of `images` and `ess` by time."""

        def median(rows: list[dict[str, Any]], column: str) -> float | None:
            values = [row[column] for row in rows if row[column] is not None]
            return float(np.median(values)) if values else None

        distances = ("nearest", "shifted", "relative_nearest", "relative_shifted")
        at = {t: [row for row in self.steps if row["t"] == t] for t in self.settings["times"]}
        columns = ("images", "images_per_pixel", "ess", "heaviest")
        return {
            "images": len(self.rows),
            **{name: median(self.rows, name) for name in distances},
            **{f"baseline_{name}": median(self.baseline, name) for name in ("nearest", "shifted")},
            "copies": sum(row["copy"] for row in self.rows),
            "steps": [
                {"t": t, "k": mine[0]["k"]} | {name: median(mine, name) for name in columns}
                for t, mine in at.items()
            ],
        }

    def to_csv(self, path: str | Path) -> None:
        """Write the rows; the columns of `steps` are joined on, with the time in their names."""
        at = {(row["image"], row["t"]): row for row in self.steps}
        columns = ("ess", "images_per_pixel", "images", "heaviest", "heaviest_image", "heaviest_name")
        more = [
            {
                f"{name}_t{t:g}": at[row["image"], t][name]
                for t in self.settings["times"]
                for name in columns
                if name in at[row["image"], t]
            }
            for row in self.rows
        ]
        write_csv(path, [row | extra for row, extra in zip(self.rows, more, strict=True)])

    def to_json(self, path: str | Path) -> None:
        """Write settings, summary, rows, baseline and steps."""
        parts = {"rows": self.rows, "baseline": self.baseline, "steps": self.steps}
        write_json(path, {"settings": self.settings, "summary": self.summary(), **parts})

    def plot(self) -> Figure:
        """Draw the distances beside the baseline, and the training images drawn from against t."""
        return plot_originality(self.rows, self.baseline, self.steps)

    def plot_images(self, most: int = 12) -> Figure:
        """Draw the first images above their nearest and nearest shifted training images."""
        return plot_neighbours({name: x[:most] for name, x in self.images.items()}, self.rows)
