"""One locality scale of an index, opened and searched: trained model, moments of the lists, FAISS file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchindex.errors import InputError, Option, PatchIndexWarning, StoreError, warn
from patchindex.geometry import Geometry
from patchindex.index.attributes import CURVE_VERSION, IndexedImages, check_curve, check_scale
from patchindex.index.drift import has_blind_codes
from patchindex.index.faiss_file import ID_BYTES, head_bytes, problem_of_head
from patchindex.index.layout import BUILD_ID, FAISS_ARRAY, HEADER_CHECKSUM, IMAGES_CHECKSUM
from patchindex.index.lists import to_gpu
from patchindex.index.model import ScaleModel
from patchindex.index.moments import ListMoments
from patchindex.index.values import list_arrays
from patchindex.kernels.codes import Codes
from patchindex.kernels.list_ids import first_wrong_list
from patchindex.kernels.simd import LANES
from patchindex.runtime import MAX_GPU_SELECTION, require_faiss
from patchindex.store.arrays import REMEDY, read_group
from patchindex.store.checksums import (
    CURVE,
    check_small_files,
    crc32c,
    read_checksummed,
    write_checksummed,
)
from patchindex.store.raw import open_raw, raw_path

__all__ = ["ScaleIndex"]

MEASURE_AGAIN = ("measure it again: tune with ", Option("overwrite", True))


def never_mended(file: Path) -> bool:
    """Return False: a damaged file of a store on this machine cannot be fetched again."""
    return False


class ScaleIndex:
    """The patches of one locality scale, in inverted lists.

    Attributes
    ----------
    path : Path
        Folder of the scale in the store.
    geometry : Geometry
        Machine and locality scale.
    attributes : dict
        Attributes in the store: patches, lists, dims, energy, bytes, seconds; and the operating curve.
    images_checksum, build_id : str
        Checksum of the images that the scale indexes, and the build that wrote the scale.
    model : ScaleModel
        The trained model that the builder saved; `pca` and `lists` are its parts.
    moments : ListMoments
        Size, mean and variance of each list.
    checked : array of bool, shape (lists,)
        Lists that were compared with their checksums.
    """

    def __init__(
        self,
        path: Path,
        geometry: Geometry,
        device: torch.device,
        images: IndexedImages,
        checked: np.ndarray | None = None,
        mend: Callable[[Path], bool] = never_mended,
    ) -> None:
        self._mend = mend
        self.path, self.geometry, self.device = path, geometry, device
        check_small_files(path)
        self.attributes: dict[str, Any] = read_group(path) or {}
        check_scale(self.attributes, geometry, images, path)
        self.images_checksum, self.build_id = map(self.attributes.get, (IMAGES_CHECKSUM, BUILD_ID))
        self.attributes |= self._curve()
        # The size of the FAISS file bounds all arrays of the scale.
        lists, dims = self.attributes["lists"], self.attributes["pca_dims"]
        self._head_bytes = head_bytes(lists, dims)
        size = self._head_bytes + self.attributes["patches"] * (dims + ID_BYTES)
        # A memory map of the FAISS file, which stays the same when another store replaces this one.
        self._raw, self._file = open_raw(path, FAISS_ARRAY, "uint8", (size,)), raw_path(path, FAISS_ARRAY, 1)
        self._inode = self._file.stat().st_ino
        self.model = ScaleModel.load(path, geometry, images.channels, self.attributes, device)
        self.pca, self.lists = self.model.pca, self.model.lists
        found = list_arrays(path, geometry, images, self.lists.bounds, self.pca.dims)
        self.moments = ListMoments(
            self.lists, found["list_counts"], found["list_means"], found["list_variances"]
        )
        self._checksums = found["list_checksums"]
        self._label_ends = np.cumsum(images.by_label) * geometry.patches_per_image
        self._head_is_checked = self._has_warned = False
        same = checked is not None and len(checked) == lists
        self.checked: np.ndarray = checked if same else np.zeros(lists, bool)  # type: ignore[assignment]

    def _curve(self) -> dict[str, Any]:
        """Return the operating curve as an attribute; an empty dict if there is none."""
        file = self.path / CURVE
        if not os.path.lexists(file):
            return {}
        try:
            curve = read_checksummed(file)
        except StoreError as error:
            raise StoreError(error.what, where=file, remedy=MEASURE_AGAIN) from error
        if not isinstance(curve, dict) or curve.pop("scale", None) != self._measured_scale:
            raise StoreError("is of another scale", where=file, remedy=MEASURE_AGAIN)
        if curve.get("version") == CURVE_VERSION:  # others are ignored
            check_curve(curve, file, MEASURE_AGAIN)
        return {"operating_curve": curve}

    def warn_of_drift(self) -> None:
        """Warn, once, when images were appended that estimators may miss."""
        drifts, energy = self.attributes.get("drift", []), self.pca.energy
        if not self._has_warned and any(has_blind_codes(drift, energy) for drift in drifts):
            warning = PatchIndexWarning(
                "its codes tell patches of appended images apart badly: auto and topk may miss them, and "
                "standard errors may be too small",
                where=self.path,
                remedy="build the store again from all images",
            )
            warn(warning)
        self._has_warned = True

    def save_curve(self, curve: dict[str, Any]) -> None:
        """Write the operating curve of this scale, over any that is there."""
        write_checksummed(self.path / CURVE, curve | {"scale": self._measured_scale})

    @property
    def _measured_scale(self) -> dict[str, Any]:
        """The scale that an operating curve was measured with, as the file of the curve names it."""
        k = self.attributes.get("k")
        return {"k": k, IMAGES_CHECKSUM: self.images_checksum, BUILD_ID: self.build_id}

    @cached_property
    def faiss(self) -> Any:
        """The FAISS index, memory-mapped on the CPU or cloned to a GPU."""
        if self.device.type != "cpu":
            self._check_lists(np.arange(len(self.checked)))
        return to_gpu(self._faiss_file, self.device)

    @cached_property
    def _faiss_file(self) -> Any:
        self.check_head()
        faiss, file = require_faiss(), self._file
        try:
            index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StoreError(
                f"FAISS cannot read it ({reason})", where=file, remedy="build the store again"
            ) from error
        if not file.exists() or file.stat().st_ino != self._inode:
            raise StoreError("was replaced since it was opened", where=self.path, remedy="open it again")
        return index

    @property
    def mapped(self) -> tuple[np.memmap, Path]:
        """The memory map of the FAISS file, and its path."""
        return self._raw, self._file

    def check_head(self) -> None:
        """Compare the head of the FAISS file with its checksum, and with the model and the list sizes.

        Raises
        ------
        StoreError
            When the head is damaged, or is that of another index.
        """
        if self._head_is_checked:
            return
        head = self._raw[: self._head_bytes].tobytes()
        if crc32c(head) != self.attributes[HEADER_CHECKSUM] and self._mend(self._file):
            head = self._raw[: self._head_bytes].tobytes()
        if crc32c(head) != self.attributes[HEADER_CHECKSUM]:
            raise StoreError("its header is damaged (checksum mismatch)", where=self._file, remedy=REMEDY)
        ranges = self.model.ranges
        problem = problem_of_head(head, self.lists.centroids, ranges, self.list_sizes())
        if problem is not None:
            what = f"its header is of another index: {problem}"
            raise StoreError(what, where=self._file, remedy=REMEDY)
        self._head_is_checked = True

    @cached_property
    def _list_offsets(self) -> np.ndarray:
        """First byte of each list, and the end of the last."""
        before = np.concatenate([[0], np.cumsum(self.list_sizes())])
        return self._head_bytes + before * (self.pca.dims + ID_BYTES)

    @cached_property
    def _class_of_list(self) -> np.ndarray:
        """The position class of each list, int64."""
        return np.repeat(np.arange(self.geometry.n_classes), np.diff(self.lists.bounds))

    def members(self, lo: int = 0, hi: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield number, patch ids, int64 (n,), and codes, uint8 (n, dims), of the lists lo to hi - 1."""
        sizes = self.list_sizes()
        for c in range(lo, len(sizes) if hi is None else hi):
            yield c, *self.part(c, 0, int(sizes[c]))

    def part(self, c: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return patch ids, int64 (n,), and codes, uint8 (n, dims), of members [start, stop) of list c."""
        self._check_lists(np.array([c]))
        whole = self._raw[self._list_offsets[c] : self._list_offsets[c + 1]]
        codes, ids = np.split(whole, [len(whole) // (self.pca.dims + ID_BYTES) * self.pca.dims])
        return (
            np.frombuffer(ids[ID_BYTES * start : ID_BYTES * stop].tobytes(), "<i8"),
            codes.reshape(-1, self.pca.dims)[start:stop],
        )

    def _check_lists(self, lists: np.ndarray) -> None:
        """Compare the lists that were not checked before with their checksums, then check their ids."""
        new = lists[~self.checked[lists]]
        if not len(new):
            return
        offsets = self._list_offsets
        for c in new.tolist():
            while crc32c(self._raw[offsets[c] : offsets[c + 1]]) != self._checksums[c]:
                if self._mend(self._file):
                    continue
                raise StoreError(
                    f"list {c} is damaged (checksum mismatch)",
                    where=self._file,
                    remedy=REMEDY,
                )
        wrong, one_class = np.zeros(1, np.int64), self.geometry.n_classes == 1
        first_wrong_list(
            self._raw, offsets[:-1] + self.list_sizes() * self.pca.dims, new, self._class_of_list,
            self.geometry.train_classes[: 0 if one_class else None], self._label_ends, self.moments.counts,
            wrong,
        )  # fmt: skip
        if wrong[0] >= 0:
            raise StoreError(
                f"list {wrong[0]} has wrong patch ids: they must ascend, belong to its position class, and "
                "be as many of each label as the store says",
                where=self._file,
                remedy=REMEDY,
            )
        self.checked[new] = True

    def search(
        self, vectors: np.ndarray, keys: np.ndarray, candidates: int, images: tuple[int, int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest codes of vectors `z / a`, float32 (n, dims), in the lists `keys`, (n, probes).

        Distances to vectors over the signal scale have the order of the logits. -1 in `keys` is no list.
        Returns squared distances, ascending, and patch ids, (n, candidates), -1 where the lists hold fewer
        patches. `images` restricts the search to patches of the images [lo, hi).
        """
        faiss, n = require_faiss(), len(vectors)
        on_gpu = self.device.type == "cuda"
        per_image = self.geometry.patches_per_image
        wanted = candidates
        if on_gpu:
            self._check_gpu(candidates, keys.shape[1])
            if images is not None:
                # FAISS on a GPU ignores selectors: find more, drop patches of other images.
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
        coarse = np.zeros(keys.shape, np.float32)  # FAISS reads these only for codes of residuals
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
        """The largest number of lists that a search can probe."""
        every = len(self.lists.centroids)
        return every if self.device.type == "cpu" else min(every, MAX_GPU_SELECTION)

    def _check_gpu(self, candidates: int, probes: int) -> None:
        for name, value in (("candidates", candidates), ("probes", probes)):
            if value > MAX_GPU_SELECTION:
                raise InputError(
                    f"FAISS on a GPU takes at most {MAX_GPU_SELECTION}, got {value}",
                    parameter=name,
                    remedy=["use fewer, or ", Option("device", "cpu")],
                )

    def list_sizes(self, label_index: int | None = None) -> np.ndarray:
        """Return the number of patches in each list, of all labels or of the label with this index."""
        return self.moments.sizes(label_index)

    def codes(self, c: int, label_index: int | None = None) -> tuple[Codes, np.ndarray]:
        """Return the codes of a position class's lists, and the first byte of each list's ids.

        With a label index, only the codes of that label: images are in label order, so the codes of a label
        are neighbours in each list.
        """
        lists = slice(int(self.lists.bounds[c]), int(self.lists.bounds[c + 1]))
        file, low, step = self._code_file
        self._check_lists(np.arange(lists.start, lists.stop))
        sizes = self.list_sizes()
        first = np.zeros_like(sizes) if label_index is None else self.moments.counts[:label_index].sum(0)
        offset = self._list_offsets[:-1]
        codes = Codes(
            file,
            (offset + first * self.pca.dims)[lists],
            self.list_sizes(label_index)[lists],
            low,
            step,
            self.pca.dims,
        )
        return codes, (offset + sizes * self.pca.dims + first * ID_BYTES)[lists]

    @cached_property
    def _code_file(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The FAISS file, and lowest value and step of each dimension, padded to whole vectors."""
        self.check_head()
        low, width = self.model.ranges
        step = width / 255
        padding = (0, -len(low) % LANES)
        return self._raw, np.pad(low, padding), np.pad(step, padding)
