"""One locality scale of an index, opened and searched: PCA, inverted lists and a FAISS index."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from patchindex.errors import InputError, StoreError
from patchindex.geometry import Geometry
from patchindex.index.faiss_file import ID_BYTES, code_ranges, lists_offset
from patchindex.index.lists import InvertedLists, to_gpu
from patchindex.index.moments import ListMoments
from patchindex.index.pca import PCA
from patchindex.kernels.codes import Codes
from patchindex.kernels.simd import LANES
from patchindex.runtime import MAX_GPU_SELECTION, require_faiss
from patchindex.store.checksums import (
    CURVE,
    REMEDY,
    check_small_files,
    crc32c,
    read_checksummed,
    write_checksummed,
)
from patchindex.store.raw import open_raw, raw_path

__all__ = ["FAISS_ARRAY", "ScaleIndex"]

FAISS_ARRAY = "faiss"
ARRAYS = (
    "pca_components",
    "pca_mean",
    "centroids",
    "list_bounds",
    "cells",
    "cell_bounds",
    "list_counts",
    "list_means",
    "list_variances",
    "list_checksums",
    "code_ranges",
)
FACTS = ("patches", "pca_energy", "head_checksum")  # that must be among the attributes
MEASURE_AGAIN = "measure it again: tune with overwrite=True"


class ScaleIndex:
    """The patches of one locality scale, by nearest neighbour.

    Attributes
    ----------
    path : Path
        Folder of the scale in the store.
    geometry : Geometry
        Machine and locality scale.
    attributes : dict
        What the builder wrote down: patches, lists, dims, energy, bytes.
    pca : PCA
    lists : InvertedLists
    moments : ListMoments
        What is known of each list.
    code_ranges : array, shape (2, dims), float32
        Lowest value and width of what codes can express in each dimension.
    whole : array of bool, shape (lists,)
        Lists that were compared with their checksums.
    identity : dict
        Locality scale, checksum of the images whose patches it has, and the build that it is of.
    """

    def __init__(
        self, path: Path, geometry: Geometry, device: torch.device, whole: np.ndarray | None = None
    ) -> None:
        self.path, self.geometry, self.device = path, geometry, device
        check_small_files(path)
        group = zarr.open_group(path, mode="r")
        self.attributes: dict[str, Any] = dict(group.attrs)
        self.identity = {name: self.attributes.get(name) for name in ("k", "images", "of")}
        if (path / CURVE).exists():
            self.attributes["operating_curve"] = self._curve()
        found = {name: group.get(name) for name in ARRAYS}
        missing = [name for name, array in found.items() if not isinstance(array, zarr.Array)]
        missing += [name for name in FACTS if not isinstance(self.attributes.get(name), int | float)]
        if missing:
            raise StoreError(f"is without {', '.join(missing)}", where=path, remedy="build the store again")
        arrays = {name: np.asarray(array[:]) for name, array in found.items()}  # type: ignore[index]
        self.pca = PCA(arrays["pca_components"], arrays["pca_mean"], float(self.attributes["pca_energy"]))
        self.lists = InvertedLists(
            arrays["centroids"], arrays["list_bounds"], arrays["cells"], arrays["cell_bounds"], device
        )
        self.code_ranges = arrays["code_ranges"]
        self._checksums = arrays["list_checksums"]
        # FAISS's file, memory-mapped: it stays the same when another store takes the place of this one.
        self._raw = open_raw(path, FAISS_ARRAY)
        self._inode = raw_path(path, FAISS_ARRAY, 1).stat().st_ino
        # Lists that were compared with them, by this or by an earlier opening.
        self.whole = np.zeros(len(self._checksums), bool) if whole is None else whole
        self.moments = ListMoments(
            self.lists, arrays["list_counts"], arrays["list_means"], arrays["list_variances"], device
        )

    def _curve(self) -> dict[str, Any]:
        file = self.path / CURVE
        try:
            curve = read_checksummed(file)
        except StoreError as error:
            raise StoreError(error.what, where=file, remedy=MEASURE_AGAIN) from error
        if not isinstance(curve, dict) or curve.pop("scale", None) != self.identity:
            raise StoreError("is of another scale", where=file, remedy=MEASURE_AGAIN)
        return curve

    def save_curve(self, curve: dict[str, Any]) -> None:
        """Write an operating curve of this scale, in place of one that is there."""
        write_checksummed(self.path / CURVE, curve | {"scale": self.identity})

    @cached_property
    def faiss(self) -> Any:
        """The FAISS index, memory-mapped on the CPU or cloned to a GPU."""
        if self.device.type != "cpu":
            self._check_lists(np.arange(len(self.whole)))
        return to_gpu(self._faiss_file, self.device)

    @cached_property
    def _faiss_file(self) -> Any:
        faiss = require_faiss()
        file = raw_path(self.path, FAISS_ARRAY, 1)
        if crc32c(self._raw[: self._list_offsets[0]]) != self.attributes["head_checksum"]:
            raise StoreError("its head is damaged: its checksum is another", where=file, remedy=REMEDY)
        try:
            index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StoreError(
                f"FAISS cannot read it ({reason})", where=file, remedy="build the store again"
            ) from error
        if not file.exists() or file.stat().st_ino != self._inode:
            raise StoreError("was replaced since it was opened", where=self.path, remedy="open it again")
        if index.ntotal != self.attributes["patches"]:
            raise StoreError(
                f"holds {index.ntotal} patches, not {self.attributes['patches']}",
                where=file,
                remedy="build the store again",
            )
        return index

    @cached_property
    def _list_offsets(self) -> np.ndarray:
        """Byte where each list begins, and where the last ends."""
        bytes_before = np.concatenate([[0], np.cumsum(self.list_sizes())]) * (self.pca.dims + ID_BYTES)
        return bytes_before + lists_offset(len(self._raw), self.list_sizes(), self.pca.dims)

    def members(self, lo: int = 0, hi: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield number, patch ids, int64 (n,), and codes, uint8 (n, dims), of lists lo to hi - 1."""
        sizes = self.list_sizes()
        for c in range(lo, len(sizes) if hi is None else hi):
            yield c, *self.part(c, 0, int(sizes[c]))

    def part(self, c: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return patch ids, int64 (n,), and codes, uint8 (n, dims), of some members of list c."""
        self._check_lists(np.array([c]))
        whole = self._raw[self._list_offsets[c] : self._list_offsets[c + 1]]
        codes, ids = np.split(whole, [len(whole) // (self.pca.dims + ID_BYTES) * self.pca.dims])
        return (
            np.frombuffer(ids[ID_BYTES * start : ID_BYTES * stop].tobytes(), "<i8"),
            codes.reshape(-1, self.pca.dims)[start:stop],
        )

    def _check_lists(self, lists: np.ndarray) -> None:
        """Compare lists with their checksums, those that were not before.

        Raises
        ------
        StoreError
            When one is damaged.
        """
        for c in lists[~self.whole[lists]].tolist():
            if crc32c(self._raw[self._list_offsets[c] : self._list_offsets[c + 1]]) != self._checksums[c]:
                raise StoreError(
                    f"list {c} is damaged: its checksum is another",
                    where=raw_path(self.path, FAISS_ARRAY, 1),
                    remedy=REMEDY,
                )
            self.whole[c] = True

    def search(
        self, vectors: np.ndarray, keys: np.ndarray, candidates: int, images: tuple[int, int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest codes in given lists.

        Parameters
        ----------
        vectors : array, shape (n, dims), float32
            `z / a`: projected queries over the signal scale, so that the order of the distances is the order
            of the logits.
        keys : array of int64, shape (n, probes)
            The lists to look into; -1 for none.
        candidates : int
            How many patches to find.
        images : (int, int), optional
            Only patches of images [lo, hi).

        Returns
        -------
        distances : array, shape (n, candidates), float32
            Squared distances to the codes, ascending.
        ids : array, shape (n, candidates), int64
            Patch ids; -1 where there are no more.
        """
        faiss, n = require_faiss(), len(vectors)
        on_gpu = self.device.type == "cuda"
        per_image = self.geometry.patches_per_image
        wanted = candidates
        if on_gpu:
            self._check_gpu(candidates, keys.shape[1])
            if images is not None:  # the GPU side ignores selectors: look for more, and drop what is outside
                share = (images[1] - images[0]) * per_image / self.attributes["patches"]
                wanted = min(MAX_GPU_SELECTION, round(2 * candidates / share))
        selector = (
            None
            if images is None or on_gpu
            # Images were added in order, so ids ascend inside each list.
            else faiss.IDSelectorRange(images[0] * per_image, images[1] * per_image, True)
        )
        self._check_lists(np.unique(keys[keys >= 0]))
        vectors, keys = np.ascontiguousarray(vectors), np.ascontiguousarray(keys)
        coarse = np.zeros(keys.shape, np.float32)  # the codes are no residuals: FAISS does not look at these
        distances, ids = np.empty((n, wanted), np.float32), np.empty((n, wanted), np.int64)
        pointers = [faiss.swig_ptr(array) for array in (vectors, keys, coarse, distances, ids)]
        parameters = faiss.IVFSearchParameters(nprobe=keys.shape[1], sel=selector)
        self.faiss.search_preassigned_c(n, pointers[0], wanted, *pointers[1:], False, parameters)
        if images is not None and on_gpu:
            outside = (ids < images[0] * per_image) | (ids >= images[1] * per_image)
            order = np.argsort(outside, axis=1, kind="stable")[:, :candidates]
            ids[outside] = -1
            return np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1)
        return distances, ids

    @property
    def most_probes(self) -> int:
        """How many lists a search can look into."""
        every = len(self.lists.centroids)
        return every if self.device.type == "cpu" else min(every, MAX_GPU_SELECTION)

    def _check_gpu(self, candidates: int, probes: int) -> None:
        for name, value in (("candidates", candidates), ("probes", probes)):
            if value > MAX_GPU_SELECTION:
                raise InputError(
                    f"FAISS's GPU side takes at most {MAX_GPU_SELECTION}, got {value}",
                    where=name,
                    remedy="use fewer, or device cpu",
                )

    def list_sizes(self, label_index: int | None = None) -> np.ndarray:
        """Return how many patches each list holds, of all labels or of the label with this index."""
        return self.moments.sizes(label_index)

    def codes(self, c: int, label_index: int | None = None) -> tuple[Codes, np.ndarray]:
        """Return the codes of a position class's lists, and the byte where each list's ids begin.

        Of all images, or of those of the label with this index: images are in label order, so that their
        codes are neighbours in each list.
        """
        lists = slice(int(self.lists.bounds[c]), int(self.lists.bounds[c + 1]))
        file, low, step = self._code_file
        self._check_lists(np.arange(lists.start, lists.stop))
        sizes = self.list_sizes()
        before = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        first = np.zeros_like(sizes) if label_index is None else self.moments.counts[:label_index].sum(0)
        offset = self._list_offsets[:-1]
        codes = Codes(
            file,
            (offset + first * self.pca.dims)[lists],
            (before + first)[lists],
            self.list_sizes(label_index)[lists],
            low,
            step,
            self.pca.dims,
        )
        return codes, (offset + sizes * self.pca.dims + first * ID_BYTES)[lists]

    @cached_property
    def _code_file(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """FAISS's file, and what its codes stand for, padded for the kernels."""
        low, step = code_ranges(self._faiss_file)
        padding = (0, -len(low) % LANES)
        return self._raw, np.pad(low, padding), np.pad(step, padding)
