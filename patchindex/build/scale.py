"""The stages in which a scale is built: train, encode shard by shard, merge.

All that a stage needs to know is in the folder of the build, and each is recorded there when it is whole. So
any process that sees the folder can do the next one, after whatever has interrupted the last.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from filelock import FileLock, Timeout

from patchindex.build.merge import CodeMoments, write_index
from patchindex.build.shards import Shards, Sorted
from patchindex.build.train import Progress, train_scale
from patchindex.errors import PatchIndexError
from patchindex.geometry import Geometry
from patchindex.index.faiss_file import code_ranges, empty_index
from patchindex.index.model import ScaleModel
from patchindex.index.patch_index import attributes_of, scale_group
from patchindex.index.scale import FAISS_ARRAY
from patchindex.store.checksums import write_manifest
from patchindex.store.raw import RawWriter, open_raw, raw_checksum

__all__ = ["Progress", "ScaleBuild", "sync"]

SHARDS = "shards"
POLL, LONGEST_WAIT = 5, 6 * 3600  # seconds


class ScaleBuild:
    """One scale of a store, until it is whole.

    Parameters
    ----------
    root : Path
        The folder of the store, whose images are written.
    geometry : Geometry
        Machine and locality scale.
    dims, lists, seed : int
        As for `train_scale`; of no account once it is trained.
    device : torch.device
        Where lists are trained and patches assigned to them.
    of : str
        Which build it is part of: what another one has left is not gone on with.
    images : array of int, optional
        Numbers of the images that are to be encoded, ascending; by default all.
    """

    def __init__(
        self,
        root: Path,
        geometry: Geometry,
        dims: int,
        lists: int,
        seed: int,
        device: torch.device,
        of: str,
        images: np.ndarray | None = None,
    ) -> None:
        self._made_of = (root, geometry, dims, lists, seed, device, of, images)
        self.k, self.device, self._of = geometry.k, device, of
        self._geometry, self._dims, self._goal, self._seed = geometry, dims, lists, seed
        group = zarr.open_group(root, mode="r")
        self._pixels = torch.from_numpy(open_raw(root, "images"))
        self._images = np.arange(len(self._pixels)) if images is None else images
        self._labels = np.asarray(group["labels"][:]) if "labels" in group else None  # type: ignore[index]
        self._root, self._final = root, root / scale_group(self.k)
        self._folder = self._final.with_name(self._final.name + ".tmp")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes as what it was made of: they open the images for themselves."""
        return type(self), self._made_of

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self._final.exists()

    @property
    def _attributes(self) -> dict[str, Any]:
        found = attributes_of(self._folder)
        if found.get("of") != self._of:
            raise PatchIndexError(
                "is not of this build, or of none any more",
                where=self._folder,
                remedy="start the build again",
            )
        return found

    def _done(self, stage: str) -> bool:
        return stage in self._attributes.get("seconds", {})

    def begin(self, progress: Progress | None = None) -> None:
        """Make the folder that stages work in, or go on in it; only who holds the store's lock does this.

        No other stage makes the folder. So one that goes on when its build has ended, on a worker that its
        cluster or its user has given up, finds that it is of no use, and does no harm.
        """
        with self._alone(progress):
            if self.finished or attributes_of(self._folder).get("of") == self._of:
                return
            if self._folder.exists():
                shutil.rmtree(self._folder)
            attributes: dict[str, Any] = {
                "of": self._of,
                "k": self.k,
                "images": raw_checksum(self._root, "images"),
            }
            zarr.open_group(self._folder, mode="w", attributes=attributes)
            sync(self._folder)

    @contextmanager
    def _alone(self, progress: Progress | None = None) -> Iterator[None]:
        """Keep other processes from a stage: one that a cluster has given up may be alive, and at it."""
        lock = self._root.with_name(f"{self._root.name}.k{self.k:03d}.lock")
        holder = FileLock(lock)
        for waited in range(0, LONGEST_WAIT, POLL):
            try:
                holder.acquire(timeout=POLL)
                break
            except Timeout:
                if progress is not None:
                    progress(
                        f"k = {self.k}: waiting for another process",
                        min(waited + POLL, LONGEST_WAIT),
                        LONGEST_WAIT,
                    )
        else:
            raise PatchIndexError(
                "another process has been at it for hours", where=lock, remedy="end that, and go on"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            holder.release()

    def train(self, progress: Progress | None = None) -> None:
        """Find components and lists; nothing to do where that is done."""
        with self._alone(progress):
            if self.finished or self._done("train"):
                return
            model, facts = self._train(progress)
            self._done("train")  # the folder is still that of this build
            model.save(zarr.open_group(self._folder, mode="r+"))
            self.shards_folder.mkdir(exist_ok=True)
            sync(self._folder)
            self._record(facts)

    def _train(self, progress: Progress | None) -> tuple[ScaleModel, dict[str, Any]]:
        return train_scale(
            self._pixels, self._geometry, dims=self._dims, lists=self._goal, seed=self._seed,
            device=self.device, progress=progress,
        )  # fmt: skip

    def _others(self) -> Sorted | None:
        """Return patches of other images that are encoded already."""
        return None

    @cached_property
    def _model(self) -> ScaleModel:
        return ScaleModel.load(zarr.open_group(self._folder, mode="r"), self.device)

    @property
    def shards_folder(self) -> Path:
        """Where shards are, from when the scale is trained to when they are merged."""
        return self._folder / SHARDS

    @property
    def shards(self) -> Shards:
        """The shards, once the scale is trained."""
        return Shards(
            self.shards_folder, self._attributes["lists"], self._attributes["pca_dims"],
            images=self._images, patches_per_image=self._geometry.patches_per_image,
        )  # fmt: skip

    def missing(self) -> list[int]:
        """Return which shards are still to be encoded; none when they are merged."""
        return [] if self.finished or self._done("write") else self.shards.missing()

    def encode(self, shard: int, progress: Progress | None = None) -> None:
        """Encode the patches of a shard's images, and put them in order of their lists."""
        start, stop = self.shards.images(shard)
        began = time.perf_counter()
        n = (stop - start) * self._geometry.patches_per_image
        lists, codes = np.empty(n, np.int32), np.empty((n, self._model.pca.dims), np.uint8)
        filled = 0
        for done, assigned, encoded in self._model.encode(
            self._pixels, self._geometry, self._images[start:stop]
        ):
            rows = slice(filled, filled + len(assigned))
            lists[rows], codes[rows] = assigned, encoded
            filled = rows.stop
            if progress is not None:
                progress(f"k = {self.k}: assigning patches", start + done, len(self._images))
        self.shards.write(shard, lists, codes, time.perf_counter() - began)

    def merge(self, progress: Progress | None = None) -> None:
        """Write the index list by list, with what estimators know of each list, and finish the scale."""
        with self._alone(progress):
            if self.finished:
                return
            if not self._done("write"):
                self._merge(progress)
            self.shards.remove()
            write_manifest(self._folder)
            sync(self._folder)
            self._folder.rename(self._final)
            sync_file(self._final.parent)

    def _merge(self, progress: Progress | None) -> None:
        began = time.perf_counter()
        shards, per_image = self.shards, self._geometry.patches_per_image
        others = self._others()
        sizes = shards.sizes() if others is None else shards.sizes() + others.sizes()
        group = zarr.open_group(self._folder, mode="r+")
        index = empty_index(self._model.lists.centroids, self._model.ranges)
        moments = CodeMoments(len(sizes), self._model.pca.dims)
        label_of = (
            np.zeros(len(self._pixels), np.int64)
            if self._labels is None
            else np.unique(self._labels, return_inverse=True)[1]
        )
        by_label = np.zeros((int(label_of.max()) + 1, len(sizes)), np.int64)

        def counted():  # type: ignore[no-untyped-def]
            for bucket in moments.watch(shards.merged(others)):
                lists = np.repeat(np.arange(len(bucket.sizes)), bucket.sizes)
                flat = label_of[bucket.ids // per_image] * len(bucket.sizes) + lists
                counts = np.bincount(flat, minlength=len(by_label) * len(bucket.sizes))
                stop = bucket.first + len(bucket.sizes)
                by_label[:, bucket.first : stop] += counts.reshape(len(by_label), -1)
                yield bucket
                if progress is not None:
                    progress(f"k = {self.k}: merging lists", stop, len(sizes))

        shutil.rmtree(self._folder / FAISS_ARRAY, ignore_errors=True)
        with RawWriter(self._folder, FAISS_ARRAY, "uint8") as out:
            head, checksums = write_index(out, index, sizes, counted())
        means, variances = moments.decoded(*code_ranges(index))
        for name, array in (
            ("list_counts", by_label), ("list_means", means), ("list_variances", variances),
            ("list_checksums", checksums),
        ):  # fmt: skip
            group.create_array(name, data=array, overwrite=True)
        sync(self._folder)
        seconds = self._attributes["seconds"] | {
            "assign": round(shards.seconds(), 3), "write": round(time.perf_counter() - began, 3),
        }  # fmt: skip
        self._record({"patches": int(sizes.sum()), "head_checksum": head, "seconds": seconds})

    def _record(self, facts: dict[str, Any]) -> None:
        """Write down what a stage found: with this it is done."""
        zarr.open_group(self._folder, mode="r+").attrs.update(facts)
        sync_file(self._folder / "zarr.json")
        sync_file(self._folder)


def sync(folder: Path) -> None:
    """Have the system write all files of a folder to the disk, so that they outlive a loss of power."""
    for root, _, files in os.walk(folder):
        for path in (*(os.path.join(root, file) for file in files), root):
            sync_file(path)


def sync_file(path: str | Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
