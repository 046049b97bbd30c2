"""The stages that build a scale: train, encode shard by shard, merge.

Each stage reads its input from the working directory, and records its result there when it is complete. So
any process that sees the folder can run the next stage, after any interruption of the last one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from filelock import Timeout

from patchindex.build.merge import Bucket, CodeMoments, LabelCounts, write_index
from patchindex.build.plan import ScalePlan
from patchindex.build.shards import Shards, SortedPatches
from patchindex.build.train import train_scale
from patchindex.build.workdir import hold_lock
from patchindex.errors import PatchIndexError
from patchindex.geometry import Geometry
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
from patchindex.store.atomic import publish, sync, sync_file
from patchindex.store.checksums import write_manifest
from patchindex.store.raw import open_raw, raw_checksum, write_raw

__all__ = ["ScaleBuild"]

SHARDS = "shards"
LONGEST_WAIT = 6 * 3600  # seconds


class ScaleBuild:
    """The build of one scale in `root`: a store, or a working directory with all images.

    `images` are the numbers of the images to encode, ascending; by default all images.
    """

    def __init__(
        self,
        root: Path,
        geometry: Geometry,
        plan: ScalePlan,
        *,
        seed: int,
        device: torch.device,
        build_id: str,
        images: np.ndarray | None = None,
    ) -> None:
        self._make = partial(
            ScaleBuild, root, geometry, plan, seed=seed, device=device, build_id=build_id, images=images
        )
        self.k, self._root, self._geometry, self._plan = geometry.k, root, geometry, plan
        self._seed, self._device, self._build_id = seed, device, build_id
        group = zarr.open_group(root, mode="r")
        self._pixels = torch.from_numpy(open_raw(root, "images"))
        self._images = np.arange(len(self._pixels)) if images is None else images
        self._labels = np.asarray(group["labels"][:]) if "labels" in group else None  # type: ignore[index]
        self._final = root / scale_group(self.k)
        self._folder = self._final.with_name(self._final.name + ".tmp")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments of the constructor: other processes map the images themselves."""
        return self._make, ()

    @property
    def finished(self) -> bool:
        """True when all stages are done."""
        return self._final.exists()

    @property
    def _attributes(self) -> dict[str, Any]:
        found = attributes_of(self._folder)
        if found.get(BUILD_ID) != self._build_id:
            raise PatchIndexError(
                "belongs to another build, or to none", where=self._folder, remedy="start the build again"
            )
        return found

    def _is_done(self, stage: str) -> bool:
        return stage in self._attributes.get("seconds", {})

    def begin(self, progress: Progress = no_progress) -> None:
        """Make the folder that the stages work in, or keep the folder of the same build.

        Only the process that holds the store's lock calls this, and no other stage makes the folder. So a
        stage that an earlier build left running on a worker finds no folder of its build, and does no harm.
        """
        with self._alone(progress):
            if self.finished or attributes_of(self._folder).get(BUILD_ID) == self._build_id:
                return
            if self._folder.exists():
                shutil.rmtree(self._folder)
            attributes: dict[str, Any] = {
                BUILD_ID: self._build_id,
                "k": self.k,
                IMAGES_CHECKSUM: raw_checksum(self._root, "images"),
            }
            zarr.open_group(self._folder, mode="w", attributes=attributes)
            sync(self._folder)

    @contextmanager
    def _alone(self, progress: Progress) -> Iterator[None]:
        """Keep other processes from the scale: a worker that the cluster gave up may still be running."""
        lock = self._root.with_name(f"{self._root.name}.k{self.k:03d}.lock")

        def waiting() -> None:
            progress(f"k = {self.k}: waiting for another process", 0, 1)

        with ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(lock, timeout=LONGEST_WAIT, waiting=waiting))
            except Timeout:
                raise PatchIndexError(
                    f"another process has held the lock for {LONGEST_WAIT // 3600} hours",
                    where=lock,
                    remedy="end that process, and resume the build",
                ) from None
            yield

    def train(self, progress: Progress = no_progress) -> None:
        """Find the principal components and the lists, unless that is done."""
        with self._alone(progress):
            if self.finished or self._is_done("train"):
                return
            model, attributes = self._train(progress)
            self._is_done("train")  # raises if another build has taken the folder meanwhile
            model.save(zarr.open_group(self._folder, mode="r+"))
            self.shards_folder.mkdir(exist_ok=True)
            sync(self._folder)
            self._record(attributes)

    def _train(self, progress: Progress) -> tuple[ScaleModel, dict[str, Any]]:
        return train_scale(
            self._pixels, self._geometry, dims=self._plan.dims, lists=self._plan.list_goal, seed=self._seed,
            device=self._device, progress=progress,
        )  # fmt: skip

    def _others(self) -> SortedPatches | None:
        """Return the patches of other images that are encoded already."""
        return None

    @cached_property
    def _model(self) -> ScaleModel:
        return ScaleModel.load(zarr.open_group(self._folder, mode="r"), self._device)

    @property
    def shards_folder(self) -> Path:
        """The folder of the shards. It exists when the scale is trained and not merged."""
        return self._folder / SHARDS

    @property
    def shards(self) -> Shards:
        """The shards of a trained scale."""
        return Shards(
            self.shards_folder, self._attributes["lists"], self._attributes["pca_dims"],
            images=self._images, patches_per_image=self._geometry.patches_per_image,
        )  # fmt: skip

    def missing(self) -> list[int]:
        """Return the shards that are not encoded; none when they are merged."""
        return [] if self.finished or self._is_done("write") else self.shards.missing()

    def encode(self, shard: int, progress: Progress = no_progress) -> None:
        """Encode the patches of a shard's images, and write them sorted by list."""
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
            progress(f"k = {self.k}: assigning patches", start + done, len(self._images))
        self.shards.write(shard, lists, codes, time.perf_counter() - began)

    def merge(self, progress: Progress = no_progress) -> None:
        """Write the index and the moments of the lists, and give the scale its final name."""
        with self._alone(progress):
            if self.finished:
                return
            if not self._is_done("write"):
                self._merge(progress)
            self.shards.remove()
            write_manifest(self._folder)
            publish(self._folder, self._final)

    def _merge(self, progress: Progress) -> None:
        began = time.perf_counter()
        shards, others = self.shards, self._others()
        sizes = shards.sizes() if others is None else shards.sizes() + others.sizes()
        index = empty_index(self._model.lists.centroids, self._model.ranges)
        moments = CodeMoments(len(sizes), self._model.pca.dims)
        counts = LabelCounts(self._label_indexes(), len(sizes), self._geometry.patches_per_image)

        def reported(buckets: Iterator[Bucket]) -> Iterator[Bucket]:
            for bucket in buckets:
                yield bucket
                progress(f"k = {self.k}: merging lists", bucket.first + len(bucket.sizes), len(sizes))

        buckets = reported(counts.watch(moments.watch(shards.merged(others))))
        shutil.rmtree(self._folder / FAISS_ARRAY, ignore_errors=True)
        with write_raw(self._folder, FAISS_ARRAY, "uint8") as out:
            header, checksums = write_index(out, index, sizes, buckets, self._folder)
        means, variances = moments.decoded(*code_ranges(index))
        arrays = {
            "list_counts": counts.counts,
            "list_means": means,
            "list_variances": variances,
            "list_checksums": checksums,
        }
        group = zarr.open_group(self._folder, mode="r+")
        for name, array in arrays.items():
            group.create_array(name, data=array, overwrite=True)
        sync(self._folder)
        seconds = {
            "assign": round(shards.seconds(), 3),
            "write": round(time.perf_counter() - began, 3),
        }
        self._record(
            {
                "patches": int(sizes.sum()),
                HEADER_CHECKSUM: header,
                "seconds": self._attributes["seconds"] | seconds,
            }
        )

    def _label_indexes(self) -> np.ndarray:
        if self._labels is None:
            return np.zeros(len(self._pixels), np.int64)
        return np.unique(self._labels, return_inverse=True)[1]

    def _record(self, attributes: dict[str, Any]) -> None:
        """Write the attributes of a stage, which mark the stage as done."""
        zarr.open_group(self._folder, mode="r+").attrs.update(attributes)
        sync_file(self._folder / "zarr.json")
        sync_file(self._folder)
