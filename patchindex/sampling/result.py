"""`SampleResult`: drawn images, and the record of each step."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchindex.sampling.pictures import image_grid, png_of
from patchindex.sampling.trajectory import Trajectory

__all__ = ["RECORDED", "SampleResult", "array_to_records", "records_to_array"]

SHOWN = 64  # images in a notebook


@dataclass(frozen=True, repr=False)
class SampleResult:
    """Drawn images, with the settings and the record of each step.

    Attributes
    ----------
    images : Tensor, shape (n, C, H, W), float32
        In [-1, 1] up to rounding if a score machine drew them to t = 0: its last posterior mean is an
        average of training pixels. Images of other denoisers may leave that range.
    x_T : Tensor, shape (n, C, H, W), float32
        The noise at the start.
    steps : list of dict
        For each evaluation of the posterior mean of each batch: `first` (number of the batch's first image),
        `images` (of the batch), `t`, `k`, `seconds`, `patches_evaluated`, `codes_scanned`, `exact_pixels`,
        the averages of `captured_mass` and `ess` over pixels, and the root mean square of `stderr`. None
        stands for a value that the denoiser does not have.
    settings : dict
        Arguments of `sample` and settings of the denoiser.
    trajectory : Trajectory, optional
        Noisy images and posterior means of each step, of `sample(..., trajectory=True)`.
    """

    images: Tensor
    x_T: Tensor  # noqa: N815  (the field's name for it)
    steps: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any]
    trajectory: Trajectory | None = field(default=None, repr=False)

    def grid(self, columns: int | None = None) -> Image.Image:
        """Return the images in a grid, by default about square."""
        return image_grid(self.images, columns)

    def __repr__(self) -> str:
        n, channels, height, width = self.images.shape
        found = self.settings
        drawn_by = found.get("machine") or found.get("name") or found.get("denoiser", "a denoiser")
        how = (
            f"{found['sampler']}, steps={found['steps']}, seed={found['seed']}" if "sampler" in found else ""
        )
        return f"SampleResult({n} images of {channels} x {height} x {width} by {drawn_by}: {how})"

    def _repr_html_(self) -> str:
        """Return the grid of the first images, for a notebook."""
        png = base64.b64encode(png_of(image_grid(self.images[:SHOWN]))).decode()
        return f'<img alt="samples" src="data:image/png;base64,{png}"><br>{html.escape(repr(self))}'

    @classmethod
    def cat(cls, parts: Sequence[SampleResult]) -> SampleResult:
        """Join results of parts of a set of images; the settings are the first part's."""
        kept = [part.trajectory for part in parts if part.trajectory is not None]
        return cls(
            torch.cat([part.images for part in parts]),
            torch.cat([part.x_T for part in parts]),
            [step for part in parts for step in part.steps],
            parts[0].settings,
            Trajectory.cat(kept) if kept else None,
        )


RECORDED = (
    *("first", "images", "t", "k", "seconds", "patches_evaluated", "codes_scanned", "exact_pixels"),
    *("captured_mass", "ess", "stderr"),
)
WHOLE = ("first", "images", "k", "patches_evaluated", "codes_scanned", "exact_pixels")


def records_to_array(records: Sequence[dict[str, Any]], rows: int) -> np.ndarray:
    """Return the records of a batch as numbers, (rows, 11) in float64.

    NaN stands for None, and fills rows without a record.

    Examples
    --------
    >>> record = dict.fromkeys(RECORDED, 2) | {"first": 16, "k": None}
    >>> array_to_records(records_to_array([record], rows=2)) == [record]
    True
    """
    array = np.full((rows, len(RECORDED)), np.nan)
    for row, record in zip(array, records, strict=False):
        row[:] = [math.nan if record[name] is None else record[name] for name in RECORDED]
    return array


def array_to_records(array: np.ndarray) -> list[dict[str, Any]]:
    """Return the records of a batch, given as numbers."""
    records = []
    for row in array.tolist():
        found: dict[str, Any] = {
            name: None if math.isnan(v) else v for name, v in zip(RECORDED, row, strict=True)
        }
        if found["t"] is None:
            break
        found |= {name: int(found[name]) for name in WHOLE if found[name] is not None}
        records.append(found)
    return records
