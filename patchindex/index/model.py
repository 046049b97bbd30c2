"""The trained model of a locality scale: principal components, ranges of codes, inverted lists.

A patch P is projected, `y = V^T (P - mu)`; the list of the nearest centroid holds it; and its code has 8 bits
per dimension, over the range of the training sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import zarr
from torch import Tensor

from patchindex.geometry import Geometry
from patchindex.images.by_label import to_unit
from patchindex.index.lists import InvertedLists
from patchindex.index.pca import PCA
from patchindex.runtime import require_faiss

__all__ = ["CHUNK_BYTES", "ScaleModel", "fit_ranges", "project_all"]

CHUNK_BYTES = 64 << 20  # memory of one step of a stage


@dataclass(frozen=True)
class ScaleModel:
    """The trained model of a locality scale, which puts a patch into a list and makes its code."""

    ARRAYS: ClassVar = (
        "pca_components",
        "pca_mean",
        "centroids",
        "list_bounds",
        "cells",
        "cell_bounds",
        "code_ranges",
    )

    pca: PCA
    lists: InvertedLists
    ranges: np.ndarray  # float32 (2, dims): lowest value and width of the codes' range in each dimension

    def save(self, group: zarr.Group) -> None:
        """Write the arrays into the group of a scale, over any that are there."""
        of_pca = self.pca.components, self.pca.mean
        of_lists = self.lists.centroids, self.lists.bounds, self.lists.cells, self.lists.cell_bounds
        for name, array in zip(self.ARRAYS, (*of_pca, *of_lists, self.ranges), strict=True):
            group.create_array(name, data=array, overwrite=True)

    @classmethod
    def load(cls, group: zarr.Group, device: torch.device) -> ScaleModel:
        """Read the arrays that `save` wrote, and the energy of the components."""
        components, mean, centroids, bounds, cells, cell_bounds, ranges = (
            np.asarray(group[name][:])  # type: ignore[index]
            for name in cls.ARRAYS
        )
        pca = PCA(components, mean, float(group.attrs["pca_energy"]))  # type: ignore[arg-type]
        return cls(pca, InvertedLists(centroids, bounds, cells, cell_bounds, device), ranges)

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
    """Return lowest value and width of vectors (n, dims) in each dimension: float32, shape (2, dims)."""
    low = sample.min(0)
    return np.stack([low, sample.max(0) - low]).astype(np.float32)


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
