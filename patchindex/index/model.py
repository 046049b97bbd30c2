"""The trained model of a locality scale: principal components, ranges of codes, inverted lists.

A patch P is projected, `y = V^T (P - mu)`; the list of the nearest centroid holds it; and its code has 8 bits
per dimension, over the range of the training sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from patchindex.geometry import Geometry
from patchindex.images.by_label import to_unit
from patchindex.index.lists import InvertedLists
from patchindex.index.pca import PCA
from patchindex.index.values import model_arrays
from patchindex.runtime import require_faiss

__all__ = ["CHUNK_BYTES", "ScaleModel", "fit_ranges", "project_all"]

CHUNK_BYTES = 64 << 20  # memory of one step of a stage
NO_VARIANCE = 1e-5  # largest width of a dimension that holds rounding errors only
FULL_WIDTH = 2.0  # of pixels: for images of one colour


@dataclass(frozen=True)
class ScaleModel:
    """The trained model of a locality scale, which puts a patch into a list and makes its code."""

    pca: PCA
    lists: InvertedLists
    ranges: np.ndarray  # float32 (2, dims): lowest value and width of the codes' range in each dimension

    def save(self, group: zarr.Group) -> None:
        """Write the arrays into the group of a scale, over any that are there."""
        arrays = {
            "pca_components": self.pca.components,
            "pca_mean": self.pca.mean,
            "centroids": self.lists.centroids,
            "list_bounds": self.lists.bounds,
            "cells": self.lists.cells,
            "cell_bounds": self.lists.cell_bounds,
            "code_ranges": self.ranges,
        }
        for name, array in arrays.items():
            group.create_array(name, data=array, overwrite=True)

    @classmethod
    def load(
        cls,
        folder: Path,
        geometry: Geometry,
        channels: int,
        attributes: Mapping[str, Any],
        device: torch.device,
    ) -> ScaleModel:
        """Read and check the arrays that `save` wrote; the `attributes` of the scale are checked already."""
        found = model_arrays(folder, geometry, channels, attributes)
        pca = PCA(found["pca_components"], found["pca_mean"], float(attributes["pca_energy"]))
        lists = InvertedLists(
            found["centroids"], found["list_bounds"], found["cells"], found["cell_bounds"], device
        )
        return cls(pca, lists, found["code_ranges"])

    def encode(
        self, pixels: Tensor, geometry: Geometry, images: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield lists, int64 (n,), and codes, uint8 (n, dims), of the patches of images, by patch id.

        Each step also yields the number of images completed.
        """
        for start, stop, vectors in project_all(pixels, geometry, self.pca, self.lists.device, images):
            assigned = self.lists.assign(vectors, np.tile(geometry.train_classes, stop - start))
            yield stop, assigned, self.codes(vectors.cpu().numpy())

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """Return the codes of projected patches (n, dims): uint8, the same shape."""
        return np.asarray(self._quantizer.compute_codes(vectors))

    @cached_property
    def _quantizer(self) -> Any:
        faiss = require_faiss()
        found = faiss.ScalarQuantizer(self.pca.dims, faiss.ScalarQuantizer.QT_8bit)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.ranges).reshape(-1), found.trained)
        return found


def fit_ranges(sample: np.ndarray) -> np.ndarray:
    """Return lowest value and width of vectors (n, dims) in each dimension: float32, shape (2, dims).

    A dimension without variance gets the width of the widest one: its range would hold rounding errors, and
    the codes of images that are appended later would be clipped.
    """
    low, high = sample.min(0).astype(np.float64), sample.max(0).astype(np.float64)
    widest = float((high - low).max())
    flat = high - low <= NO_VARIANCE * max(1.0, widest)
    half = (widest if widest > NO_VARIANCE else FULL_WIDTH) / 2
    low, high = np.where(flat, [low - half, low + half], [low, high])
    return np.stack([low, high - low]).astype(np.float32)


def project_all(
    pixels: Tensor, geometry: Geometry, pca: PCA, device: torch.device, images: np.ndarray
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield start, stop and the projected patches of `images[start:stop]`, float32 (n, dims)."""
    height, width = geometry.size
    # Memory per image: padded pixels, projections in two layouts, and codes.
    per_image = 4 * (4 * height * width * pixels.shape[3] + 4 * geometry.patches_per_image * pca.dims)
    step = max(1, CHUNK_BYTES // per_image)
    for start in range(0, len(images), step):
        some = torch.from_numpy(images[start : start + step])
        tile = to_unit(pixels[some].to(device).permute(0, 3, 1, 2))
        yield start, start + len(tile), pca.project_images(tile, geometry)
