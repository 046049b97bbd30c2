"""What training finds of a locality scale: which components codes keep, their range, and the lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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

CHUNK_BYTES = 64 << 20  # what one step of a stage may take


@dataclass(frozen=True)
class ScaleModel:
    """All that it takes to put a patch into its list.

    Attributes
    ----------
    pca : PCA
    lists : InvertedLists
    ranges : array, shape (2, dims), float32
        Lowest value and width of what codes can express in each dimension.
    """

    pca: PCA
    lists: InvertedLists
    ranges: np.ndarray

    def save(self, group: zarr.Group) -> None:
        """Write it into a scale's group, in place of what is there."""
        for name, array in self._arrays().items():
            group.create_array(name, data=array, overwrite=True)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "pca_components": self.pca.components,
            "pca_mean": self.pca.mean,
            "centroids": self.lists.centroids,
            "list_bounds": self.lists.bounds,
            "cells": self.lists.cells,
            "cell_bounds": self.lists.cell_bounds,
            "code_ranges": self.ranges,
        }

    @classmethod
    def load(cls, group: zarr.Group, device: torch.device) -> ScaleModel:
        """Read what `save` wrote."""

        def read(name: str) -> np.ndarray:
            return np.asarray(group[name][:])  # type: ignore[index]

        return cls(
            PCA(read("pca_components"), read("pca_mean"), float(group.attrs["pca_energy"])),  # type: ignore[arg-type]
            InvertedLists(read("centroids"), read("list_bounds"), read("cells"), read("cell_bounds"), device),
            read("code_ranges"),
        )

    def encode(
        self, pixels: Tensor, geometry: Geometry, images: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield lists and codes of the patches of images, some images at a time.

        Parameters
        ----------
        pixels : Tensor, shape (N, H, W, C), uint8
        images : array of int, shape (n,)
            Numbers of those that are wanted.

        Yields
        ------
        int
            How many images are done.
        array of int64, shape (n,)
            The lists of their next n patches, in order of patch ids.
        array of uint8, shape (n, dims)
            Their codes.
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
    """Yield the projections of the patches of some images, (n, dims) float32 on the device.

    With each come the places [start, stop) in `images` of those whose patches they are.
    """
    height, width = geometry.size
    # An image in flight: padded pixels, projections in two layouts, and their codes.
    per_image = 4 * (4 * height * width * pixels.shape[3] + 4 * geometry.patches_per_image * pca.dims)
    step = max(1, CHUNK_BYTES // per_image)
    for start in range(0, len(images), step):
        some = torch.from_numpy(images[start : start + step])
        tile = to_unit(pixels[some].to(device).permute(0, 3, 1, 2))
        yield start, start + len(tile), pca.project_images(tile, geometry)
