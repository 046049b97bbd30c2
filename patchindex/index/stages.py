"""The stages in which a scale is built: train, encode shard by shard, merge.

All that a stage needs to know is in the folder of the build, and each is recorded there when it is whole. So
any process that sees the folder can do the next one, after whatever has interrupted the last.
"""

from __future__ import annotations

import os
import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from patchindex.index.ivf import empty_index, write_index
from patchindex.index.model import ScaleModel
from patchindex.index.raw import RawWriter, open_raw
from patchindex.index.scale import FAISS_ARRAY
from patchindex.index.shards import Shards
from patchindex.index.statistics import CodeMoments, code_ranges
from patchindex.index.store import scale_group
from patchindex.index.train import Progress, train_scale
from patchindex.patches import Geometry

__all__ = ["BUILDING", "CHOSEN", "ScaleBuild", "sync"]

# Attributes of the folder of a build: its settings; and scale, size of codes and lists, for each scale.
BUILDING, CHOSEN = "building", "chosen"
SHARDS = "shards"


class ScaleBuild:
    """One scale of an unfinished store.

    Parameters
    ----------
    building : Path
        The folder of the build, whose images are written.
    k : int
        The locality scale.
    device : torch.device
        Where lists are trained and patches assigned to them.
    """

    def __init__(self, building: Path, k: int, device: torch.device) -> None:
        self.k, self.device = k, device
        group = zarr.open_group(building, mode="r")
        settings: Any = group.attrs[BUILDING]
        chosen: Any = group.attrs[CHOSEN]
        self._seed = settings["seed"]
        self._dims, self._goal = next((dims, lists) for scale, dims, lists in chosen if scale == k)
        self._pixels = torch.from_numpy(open_raw(building, "images"))
        self._labels = np.asarray(group["labels"][:]) if "labels" in group else None  # type: ignore[index]
        height, width = self._pixels.shape[1:3]
        self._geometry = Geometry.of(settings["machine"], k, (height, width), settings["train_windows"])
        self._final = building / scale_group(k)
        self._folder = self._final.with_name(self._final.name + ".tmp")

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self._final.exists()

    @property
    def _attributes(self) -> dict[str, Any]:
        if not (self._folder / "zarr.json").exists():
            return {}
        return dict(zarr.open_group(self._folder, mode="r").attrs)

    def _done(self, stage: str) -> bool:
        return stage in self._attributes.get("seconds", {})

    def train(self, progress: Progress | None = None) -> None:
        """Find components and lists; nothing to do where that is done."""
        if self.finished or self._done("train"):
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        model, facts = train_scale(
            self._pixels, self._geometry, dims=self._dims, lists=self._goal, seed=self._seed,
            device=self.device, progress=progress,
        )  # fmt: skip
        group = zarr.open_group(self._folder, mode="w")
        model.save(group)
        sync(self._folder)
        group.attrs.update(facts)  # with this it is done

    @cached_property
    def _model(self) -> ScaleModel:
        return ScaleModel.load(zarr.open_group(self._folder, mode="r"), self.device)

    @property
    def shards(self) -> Shards:
        """The shards, once the scale is trained."""
        return Shards(
            self._folder / SHARDS, self._attributes["lists"], self._attributes["pca_dims"],
            images=len(self._pixels), patches_per_image=self._geometry.patches_per_image,
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
        for done, assigned, encoded in self._model.encode(self._pixels[start:stop], self._geometry):
            rows = slice(filled, filled + len(assigned))
            lists[rows], codes[rows] = assigned, encoded
            filled = rows.stop
            if progress is not None:
                progress(f"k={self.k} assigning patches", start + done, len(self._pixels))
        self.shards.write(shard, lists, codes, time.perf_counter() - began)

    def merge(self, progress: Progress | None = None) -> None:
        """Write the index list by list, with what estimators know of each list, and finish the scale."""
        if self.finished:
            return
        if not self._done("write"):
            self._merge(progress)
        self.shards.remove()
        self._folder.rename(self._final)

    def _merge(self, progress: Progress | None) -> None:
        began = time.perf_counter()
        shards, per_image = self.shards, self._geometry.patches_per_image
        sizes = shards.sizes()
        group = zarr.open_group(self._folder, mode="a")
        index = empty_index(self._model.lists.centroids, self._model.ranges)
        moments = CodeMoments(len(sizes), self._model.pca.dims)
        label_of = (
            np.zeros(len(self._pixels), np.int64)
            if self._labels is None
            else np.unique(self._labels, return_inverse=True)[1]
        )
        by_label = np.zeros((int(label_of.max()) + 1, len(sizes)), np.int64)

        def counted():  # type: ignore[no-untyped-def]
            for bucket in moments.watch(shards.merged()):
                lists = np.repeat(np.arange(len(bucket.sizes)), bucket.sizes)
                flat = label_of[bucket.ids // per_image] * len(bucket.sizes) + lists
                counts = np.bincount(flat, minlength=len(by_label) * len(bucket.sizes))
                stop = bucket.first + len(bucket.sizes)
                by_label[:, bucket.first : stop] = counts.reshape(len(by_label), -1)
                yield bucket
                if progress is not None:
                    progress(f"k={self.k} merging lists", stop, len(sizes))

        shutil.rmtree(self._folder / FAISS_ARRAY, ignore_errors=True)
        with RawWriter(self._folder, FAISS_ARRAY, "uint8") as out:
            write_index(out, index, sizes, counted())
        means, variances = moments.decoded(*code_ranges(index))
        for name, array in (
            ("list_counts", by_label), ("list_means", means), ("list_variances", variances),
        ):  # fmt: skip
            group.create_array(name, data=array, overwrite=True)
        sync(self._folder)
        seconds = self._attributes["seconds"] | {
            "assign": round(shards.seconds(), 3), "write": round(time.perf_counter() - began, 3),
        }  # fmt: skip
        group.attrs.update({"patches": int(sizes.sum()), "seconds": seconds})  # with this it is done


def sync(folder: Path) -> None:
    """Have the system write all files of a folder to the disk, so that they outlive a loss of power."""
    for root, _, files in os.walk(folder):
        for path in (*(os.path.join(root, file) for file in files), root):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
