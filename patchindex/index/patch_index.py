"""A store as it is opened: the training images, and the index of each locality scale."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

import numpy as np
import torch

from patchindex.checks import check_least, check_path, path_exists
from patchindex.devices import device_of_faiss, free_bytes, resolve_devices
from patchindex.errors import DeviceError, InputError, Option, SourceNotFoundError, StoreError
from patchindex.geometry import Geometry
from patchindex.images.arrays import ArraySource
from patchindex.images.by_label import TrainingImages
from patchindex.images.file_names import numbered
from patchindex.images.on_device import resident
from patchindex.index.attributes import IndexedImages, check_store
from patchindex.index.layout import (
    FORMAT_VERSION,
    listed_scales,
    read_attributes,
    refuse_linked_group,
    replaced_path,
    scale_group,
    scales_of,
)
from patchindex.index.scale import ScaleIndex, never_mended
from patchindex.index.scale_info import attributes_info, read_scale_info
from patchindex.index.values import image_columns, image_names
from patchindex.notebook import html_table
from patchindex.schedules import LocalitySchedule
from patchindex.store.arrays import REMEDY
from patchindex.store.checksums import MANIFEST, bytes_of, check_small_files, crc32c, image_block
from patchindex.store.raw import is_shorter, open_raw, raw_checksum, raw_path
from patchindex.store.remote import Remote, is_url

__all__ = ["PatchIndex", "open_index"]

log = logging.getLogger(__name__)

SCALES_HELD = 2  # open scales; centroids and moments take 100 MiB or more per scale


def open_index(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    storage_options: dict[str, Any] | None = None,
) -> PatchIndex:
    """Open a store that `build_index` made.

    Parameters
    ----------
    path : str or Path
        Folder of the store, or a URL that `fsspec` can read, such as `s3://bucket/faces.zarr`. From a URL,
        opening copies the images to the cache folder (`PATCHINDEX_CACHE`), and the first use of a scale
        copies the scale; the copies are kept.
    device : str or torch.device, optional
        Device that searches the lists: `"cpu"` (default, memory-mapped) or a CUDA device. Of several devices,
        as in `"cuda:all"`, the first. The CPU searches the lists for devices that FAISS does not support.
    storage_options : dict, optional
        Options of `fsspec` for a URL.

    Returns
    -------
    PatchIndex

    Raises
    ------
    SourceNotFoundError
        When nothing is at the path.
    InputError
        When the path is not a store, or cannot be accessed.
    StoreError
        When the store is damaged or has another format.

    Examples
    --------
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> path = pi.build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=[3]).path
    >>> open_index(path).scales
    (3,)
    """
    check_path(path)
    where, remote = device_of_faiss(resolve_devices(device)[0]), None
    if is_url(path):
        remote = Remote(str(path), storage_options)
        path = remote.fetch()
    path = Path(path)
    if not path_exists(path):
        replaced = replaced_path(path)
        raise SourceNotFoundError(
            "no such store",
            where=path,
            remedy=[
                f"a build stopped while it replaced {replaced.name}: run it again with ",
                Option("resume", True),
            ]
            if replaced.exists()
            else "check the path, or build it first",
        )
    attributes = read_attributes(path)
    if attributes is None and (path / MANIFEST).is_file():
        raise StoreError("zarr.json is damaged: it has no attributes", where=path, remedy=REMEDY)
    if attributes is None:
        raise InputError(
            "not a patchindex store", where=path, remedy="give a folder made by patchindex build"
        )
    if attributes.get("format") != FORMAT_VERSION:
        raise StoreError(
            f"has format {attributes.get('format')}; this version reads {FORMAT_VERSION}",
            where=path,
            remedy="build it again, or use the version of patchindex that made it",
        )
    check_small_files(path)
    check_store(attributes, path)
    log.info("opened %s, fingerprint %s", path, attributes["fingerprint"])
    return PatchIndex(path, attributes, where, remote)


class PatchIndex:
    """Training images and, for ELS and bbELS, an index of all their patches at several scales.

    `open_index` and `build_index` return it.

    Attributes
    ----------
    path : Path
        Folder of the store, or of the copy of a store at a URL.
    machine : str
        The score machine that the store was built for.
    train_windows : str
        `"valid"` or `"wrapped"`.
    scales : tuple of int
        Locality scales with an index, ascending; empty for IS and LS.
    locality : LocalitySchedule or None
        The schedule that the store was built for, rounded to the nearest of its scales.
    training : TrainingImages
        The images in label order, memory-mapped.
    pixels : Tensor, shape (N, H, W, C), uint8
        The same images as one tensor.
    attributes : dict
        The attributes of the store: settings, labels, provenance, fingerprint.
    """

    def __init__(
        self, path: Path, attributes: dict[str, Any], device: torch.device, remote: Remote | None = None
    ) -> None:
        self.path, self.attributes, self.device, self._remote = path, attributes, device, remote
        # Not a method of this object: scales keep it, and a cycle would keep the memory maps open.
        self._mend = never_mended if remote is None else remote.mend
        self.machine: str = attributes["machine"]
        self.train_windows: str = attributes["train_windows"]
        # A scale that was lost stays listed: without it the schedule would change silently.
        self.scales: tuple[int, ...] = tuple(sorted({*listed_scales(path), *scales_of(path)}))
        shape = tuple(attributes["shape"])
        images = open_raw(path, "images", "uint8", shape)
        self._check_scales(shape[1:3])
        schedule = attributes["locality"]
        self.locality = LocalitySchedule.from_dict(schedule) if schedule else None
        if self.locality is not None and self.scales:
            self.locality = self.locality.nearest(self.scales)
        self._map, self._file = images, raw_path(path, "images", len(shape))
        self.pixels: torch.Tensor = torch.from_numpy(images)
        blocks = -(-shape[0] // image_block(shape[1:3], shape[3]))
        self._image_checksums, labels, ids = image_columns(path, shape[0], blocks, attributes["labels"])
        self._checked = np.zeros(blocks, bool)
        source = ArraySource(images, name=attributes["source"], labels=labels, axes="NHWC")
        names: list[str] | None = attributes["label_names"]
        source.label_names = None if names is None else tuple(names)
        source.file_names = image_names(path, shape[0])
        self.training = TrainingImages(source, source_ids=ids)
        by_label = np.array([shape[0]]) if labels is None else np.unique(labels, return_counts=True)[1]
        self._images = IndexedImages(by_label, shape[3], raw_checksum(path, "images"))
        self._scales, self._opening = dict[int, ScaleIndex](), RLock()  # threads share open scales
        self._lists_checked: dict[int, np.ndarray] = {}  # `ScaleIndex.checked`, kept when a scale is closed

    def __len__(self) -> int:
        """Return the number of training images."""
        return len(self.training)

    def __repr__(self) -> str:
        n, (height, width) = len(self.training), self.training.size
        scales = f", scales {', '.join(map(str, self.scales))}" if self.scales else ""
        return f"PatchIndex({self.path}: {self.machine}, {n} images of {height} x {width}{scales})"

    def _repr_html_(self) -> str:
        """Return a table of the scales, for a notebook."""
        columns = ("patches", "lists", "pca_dims", "bytes")
        rows = ((k, *(f"{scale[name]:,}" for name in columns)) for k, scale in self.info()["indexes"].items())
        return html_table(repr(self), ("k", "patches", "lists", "bytes of a code", "bytes"), rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: another process opens the store again, if it is the same store."""
        options = None if self._remote is None else self._remote.options
        # The other process may have another working directory.
        path = self.path.absolute() if self._remote is None else self._remote.url
        return _open_same, (path, self.attributes["fingerprint"], str(self.device), options)

    def _check_scales(self, size: tuple[int, int]) -> None:
        """Raise StoreError when the machine has no such training windows, or no such scale at this size."""
        for k in self.scales or (1,):
            try:
                Geometry.of(self.machine, k, size, self.train_windows)
            except InputError as error:
                raise StoreError(error.what, where=self.path, remedy=REMEDY) from None

    def image_names(self, image_ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the file names of training images, by their numbers in the source.

        Parameters
        ----------
        image_ids : sequence of int
            Numbers of images, as `Attribution.image` and all other results have them.

        Returns
        -------
        list of str
            Names relative to the source, such as `"cats/17.png"`; empty for an image that was no file of its
            own, and for all images of a store without names. A name may hold any characters: print it with
            `patchindex.errors.printable`.

        Raises
        ------
        InputError
            When there is no image of one of these numbers.

        Examples
        --------
        >>> import tempfile, patchindex as pi
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, level in (("b.png", 200), ("a.png", 100)):
        ...     Image.new("L", (12, 12), level).save(folder / name)
        >>> pi.build_index(folder, folder / "s.zarr", scales=[3]).image_names([1, 0])
        ['b.png', 'a.png']
        """
        return self.training.image_names(image_ids)

    def geometry(self, k: int | None) -> Geometry:
        """Return the geometry of this store's machine at locality scale k."""
        return Geometry.of(self.machine, k, self.training.size, self.train_windows)

    def scale(self, k: int) -> ScaleIndex:
        """Return the index of locality scale k.

        Raises
        ------
        InputError
            When the store has no index of this scale.
        StoreError
            When the scale is missing, damaged or of another store, or the store was replaced.
        """
        check_least(k=(k, 1))
        if k not in self.scales:
            held = ", ".join(map(str, self.scales)) or "none"
            raise InputError(
                f"the store has no index for it, only for {held}",
                where=f"locality scale {k}",
                remedy=[
                    *("index it with ", Option("add_scales")),
                    ", move the schedule to those scales with ",
                    Option("nearest_scales", python="LocalitySchedule.nearest"),
                    *(", or compute exact scores, which need no index, with ", Option("estimator", "exact")),
                ],
            )
        with self._opening:
            if k not in self._scales:
                while len(self._scales) >= SCALES_HELD:
                    self._scales.pop(next(iter(self._scales)))
                try:
                    scale = self._open_scale(k)
                finally:  # the files of a store that replaced this one do not fit: their errors would mislead
                    self._check_not_replaced()
                self._scales[k], self._lists_checked[k] = scale, scale.checked
                log.debug("opened scale %d in %s", k, scale.path)
            return self._scales[k]

    def _open_scale(self, k: int) -> ScaleIndex:
        group = scale_group(k)
        if self._remote is None:
            refuse_linked_group(self.path, group)
        folder = self.path / group if self._remote is None else self._remote.fetch(group)
        if not folder.is_dir():
            raise StoreError("is missing", where=folder, remedy=["add it again with ", Option("add_scales")])
        checked = self._lists_checked.get(k)
        return ScaleIndex(folder, self.geometry(k), self.device, self._images, checked, self._mend)

    def _check_not_replaced(self) -> None:
        """Raise StoreError when another store has replaced this one."""
        now = read_attributes(self.path)
        if now is None or now.get("fingerprint") != self.attributes["fingerprint"]:
            raise StoreError("was replaced since it was opened", where=self.path, remedy="open it again")

    def check_images(self, lo: int, hi: int) -> None:
        """Compare the images [lo, hi) that were not checked before with their checksums.

        A damaged copy of a remote store is fetched again once. The sizes of all mapped files are compared.

        Raises
        ------
        StoreError
            When an image is damaged, or a mapped file became shorter.
        """
        with self._opening:
            scales = list(self._scales.values())
        for array, file in ((self._map, self._file), *(scale.mapped for scale in scales)):
            while is_shorter(array):
                if self._mend(file):
                    continue
                raise StoreError(
                    "became shorter while it was in use", where=file, remedy="restore it, and open it again"
                )
        _, height, width, channels = self.pixels.shape
        block = image_block((height, width), channels)
        first, last = lo // block, -(-hi // block)
        for i in first + np.flatnonzero(~self._checked[first:last]):
            images = self.pixels[i * block : (i + 1) * block].numpy()
            while crc32c(images) != self._image_checksums[i]:
                if self._mend(self._file):
                    continue
                ends = (int(i) * block, int(i) * block + len(images) - 1)
                raise StoreError(
                    f"images {' to '.join(map(self._numbered, ends))} are damaged (checksum mismatch)",
                    where=self.path,
                    remedy=REMEDY,
                )
            self._checked[i] = True

    def _numbered(self, place: int) -> str:
        """Return the place of an image in the store with its file name, as it is printed."""
        names = self.training.source.file_names
        return numbered(place, names[[place]][0] if names is not None else "")

    def pixels_on(self, device: torch.device) -> torch.Tensor:
        """Return the images as a uint8 tensor (N, H, W, C) in label order, on a device.

        On the CPU this is the memory map itself. A copy on another device is made once and kept, and exact
        scans use the same copy.

        Raises
        ------
        DeviceError
            When the device has too little free memory.
        """
        if device.type == "cpu":
            return self.pixels
        if (copy := resident(self.training, device, share=1.0)) is None:
            raise DeviceError(
                f"the images take {self.pixels.numel() / 2**30:.1f} GiB, and"
                f" {free_bytes(device) / 2**30:.1f} GiB are free",
                where=f"device {device}",
                remedy=["use ", Option("estimator", "exact"), ", which streams images, or another device"],
            )
        return copy

    def info(self) -> dict[str, Any]:
        """Return the settings, the provenance and the size of each scale, as `patchindex info` prints them.

        Reads only small files; copies only these from a URL.

        Raises
        ------
        StoreError
            When one of these files is damaged.
        """
        scales, names = {}, self.training.source.file_names
        for k in self.scales:
            group, remote = scale_group(k), self._remote
            with TemporaryDirectory(prefix="patchindex-") as folder:
                found = self.path / group if remote is None else remote.fetch_attributes(group, Path(folder))
                scales[str(k)] = read_scale_info(found, self.geometry(k), self._images)
        return {
            "path": str(self.path),
            **attributes_info(self.attributes),
            "scales": list(self.scales),
            "locality": None if self.locality is None else self.locality.as_dict(),
            "images": len(self.training),
            "named_images": 0 if names is None else int(np.count_nonzero(np.diff(names.bounds))),
            "bytes": bytes_of(self.path) + sum(scale["bytes"] for scale in scales.values()),
            "indexes": scales,
        }


def _open_same(
    path: str | Path, fingerprint: str, device: str, storage_options: dict[str, Any] | None
) -> PatchIndex:
    """Open the store that was pickled."""
    index = open_index(path, device=device, storage_options=storage_options)
    if index.attributes["fingerprint"] != fingerprint:
        raise StoreError("is another store than the pickled one", where=path, remedy="open it again")
    return index
