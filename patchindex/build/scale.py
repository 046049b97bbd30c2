"""The stages that build a scale: train, encode shard by shard, merge.

Each stage reads its input from the working directory, and records its result there when it is complete. So
any process that sees the folder can run the next stage, after any interruption of the last one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from patchindex.build.merge import Bucket, ListStatistics, write_index
from patchindex.build.plan import ScalePlan
from patchindex.build.shards import OldLists, Shards
from patchindex.build.train import keep_model, train_scale
from patchindex.build.workdir import GO_ON, hold_lock
from patchindex.errors import Option, PatchIndexError
from patchindex.geometry import Geometry
from patchindex.index.attributes import check_scale_numbers
from patchindex.index.faiss_file import code_ranges, empty_index
from patchindex.index.layout import (
    BUILD_ID,
    FAISS_ARRAY,
    HEADER_CHECKSUM,
    IMAGES_CHECKSUM,
    attributes_of,
    scale_group,
)
from patchindex.index.model import ScaleModel
from patchindex.runtime import Progress, no_progress
from patchindex.store.arrays import read_array
from patchindex.store.atomic import publish, sync, sync_file
from patchindex.store.checksums import write_manifest
from patchindex.store.raw import open_raw, raw_checksum, write_raw

__all__ = ["ScaleBuild"]

SHARDS = "shards"
LONGEST_WAIT = 6 * 3600  # seconds


@dataclass(eq=False)
class ScaleBuild:
    """The build of one scale in `root`: a store, or a working directory with all images."""

    root: Path
    geometry: Geometry
    plan: ScalePlan  # number of lists and code size; not used once the scale is trained
    seed: int
    device: torch.device  # trains lists and assigns patches
    build_id: str  # the folder of another build is removed
    old: OldLists | None = None  # the trained scale and its images, when images are appended
    new_images: np.ndarray | None = None  # numbers of the images to encode, ascending; by default all
    go_on: Sequence[str | Option] = GO_ON  # in a remedy: how the caller continues

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields only: other processes map the images themselves."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def k(self) -> int:
        """The locality scale."""
        return self.geometry.k

    @property
    def finished(self) -> bool:
        """True when all stages are done."""
        return self._final.exists()

    @property
    def _final(self) -> Path:
        return self.root / scale_group(self.k)

    @property
    def _folder(self) -> Path:
        return self._final.with_name(self._final.name + ".tmp")

    @cached_property
    def _pixels(self) -> Tensor:
        return torch.from_numpy(open_raw(self.root, "images"))

    @cached_property
    def _images(self) -> np.ndarray:
        return np.arange(len(self._pixels)) if self.new_images is None else self.new_images

    @cached_property
    def _model(self) -> ScaleModel:
        attributes, channels = self._attributes, self._pixels.shape[3]
        check_scale_numbers(attributes, self.geometry, len(self._pixels), channels, self._folder)
        return ScaleModel.load(self._folder, self.geometry, channels, attributes, self.device)

    @property
    def _attributes(self) -> dict[str, Any]:
        found = attributes_of(self._folder)
        if found.get(BUILD_ID) != self.build_id:
            raise PatchIndexError(
                "belongs to another build, or to none", where=self._folder, remedy=self.go_on
            )
        return found

    @property
    def _shards(self) -> Shards:
        attributes = self._attributes
        return Shards(
            self._folder / SHARDS, attributes["lists"], attributes["pca_dims"], self._images,
            self.geometry.patches_per_image, self.old, self.go_on,
        )  # fmt: skip

    def _is_done(self, stage: str) -> bool:
        return stage in self._attributes.get("seconds", {})

    def _alone(self, progress: Progress) -> AbstractContextManager[None]:
        """Keep other processes from the scale: a worker that the cluster gave up may still be running."""
        lock = self.root.with_name(f"{self.root.name}.k{self.k:03d}.lock")
        refused = PatchIndexError(
            f"another process has held the lock for {LONGEST_WAIT // 3600} hours",
            where=lock,
            remedy=["end that process, and ", *self.go_on],
        )

        def waiting() -> None:
            progress(f"k = {self.k}: waiting for another process", 0, 1)

        return hold_lock(lock, refused, timeout=LONGEST_WAIT, waiting=waiting)

    def run(self, progress: Progress) -> None:
        """Run the stages that are not done yet."""
        self.begin(progress)
        self.train(progress)
        for shard in self.missing():
            self.encode(shard, progress)
        self.merge(progress)

    def begin(self, progress: Progress = no_progress) -> None:
        """Make the folder that the stages work in, or keep the folder of the same build.

        Only the process that holds the store's lock calls this, and no other stage makes the folder. So a
        stage that an earlier build left running on a worker finds no folder of its build, and does no harm.
        """
        with self._alone(progress):
            if self.finished or attributes_of(self._folder).get(BUILD_ID) == self.build_id:
                return
            if self._folder.exists():
                shutil.rmtree(self._folder)
            attributes: dict[str, Any] = {
                BUILD_ID: self.build_id,
                "k": self.k,
                IMAGES_CHECKSUM: raw_checksum(self.root, "images"),
            }
            zarr.open_group(self._folder, mode="w", attributes=attributes)
            sync(self._folder)

    def train(self, progress: Progress = no_progress) -> None:
        """Find the principal components and the lists, unless that is done."""
        with self._alone(progress):
            if self.finished or self._is_done("train"):
                return
            model, attributes = self._train(progress)
            self._is_done("train")  # raises if another build has taken the folder meanwhile
            model.save(zarr.open_group(self._folder, mode="r+"))
            (self._folder / SHARDS).mkdir(exist_ok=True)
            sync(self._folder)
            self._record(attributes)

    def _train(self, progress: Progress) -> tuple[ScaleModel, dict[str, Any]]:
        if self.old is not None:
            return keep_model(self.old.scale, self._pixels, self.old.images, self._images)
        return train_scale(
            self._pixels, self.geometry, dims=self.plan.dims, lists=self.plan.list_goal, seed=self.seed,
            device=self.device, progress=progress,
        )  # fmt: skip

    def missing(self) -> list[int]:
        """Return the shards that are not encoded; none when they are merged."""
        return [] if self.finished or self._is_done("write") else self._shards.missing()

    def encode(self, shard: int, progress: Progress = no_progress) -> None:
        """Encode the patches of a shard's images, and write them sorted by list."""
        shards = self._shards
        start, stop = shards.images(shard)
        began = time.perf_counter()
        n = (stop - start) * self.geometry.patches_per_image
        lists, codes = np.empty(n, np.int32), np.empty((n, self._model.pca.dims), np.uint8)
        filled = 0
        images = self._images[start:stop]
        for done, assigned, encoded in self._model.encode(self._pixels, self.geometry, images):
            rows = slice(filled, filled + len(assigned))
            lists[rows], codes[rows] = assigned, encoded
            filled = rows.stop
            progress(f"k = {self.k}: assigning patches", start + done, len(self._images))
        shards.write(shard, lists, codes, time.perf_counter() - began)

    def merge(self, progress: Progress = no_progress) -> None:
        """Write the index and the moments of the lists, and give the scale its final name."""
        with self._alone(progress):
            if self.finished:
                return
            if not self._is_done("write"):
                self._merge(progress)
            if (self._folder / SHARDS).exists():
                shutil.rmtree(self._folder / SHARDS)
            write_manifest(self._folder)
            publish(self._folder, self._final)

    def _merge(self, progress: Progress) -> None:
        began = time.perf_counter()
        shards, group = self._shards, zarr.open_group(self._folder, mode="r+")
        sizes = shards.sizes()
        index = empty_index(self._model.lists.centroids, self._model.ranges)
        statistics = ListStatistics(
            len(sizes), self._model.pca.dims, self._label_indexes(), self.geometry.patches_per_image
        )

        def counted() -> Iterator[Bucket]:
            for bucket in shards.merged():
                statistics.add(bucket)
                yield bucket
                progress(f"k = {self.k}: merging lists", bucket.first + len(bucket.sizes), len(sizes))

        shutil.rmtree(self._folder / FAISS_ARRAY, ignore_errors=True)
        with write_raw(self._folder, FAISS_ARRAY, "uint8") as out:
            header, checksums = write_index(out, index, sizes, counted(), self._folder)
        means, variances = statistics.moments(*code_ranges(index))
        arrays = {
            "list_counts": statistics.counts,
            "list_means": means,
            "list_variances": variances,
            "list_checksums": checksums,
        }
        for name, array in arrays.items():
            group.create_array(name, data=array, overwrite=True)
        sync(self._folder)
        seconds = {"assign": round(shards.seconds(), 3), "write": round(time.perf_counter() - began, 3)}
        self._record(
            {
                "patches": int(sizes.sum()),
                HEADER_CHECKSUM: header,
                "seconds": self._attributes["seconds"] | seconds,
            }
        )

    def _label_indexes(self) -> np.ndarray:
        if not (self.root / "labels").exists():
            return np.zeros(len(self._pixels), np.int64)
        labels = read_array(self.root, "labels", "int64", (len(self._pixels),))
        return np.unique(labels, return_inverse=True)[1]

    def _record(self, attributes: dict[str, Any]) -> None:
        """Write the attributes of a stage, which mark the stage as done."""
        zarr.open_group(self._folder, mode="r+").attrs.update(attributes)
        sync_file(self._folder / "zarr.json")
        sync_file(self._folder)
