"""What is in a store besides its scales: images first, and last what the store says of itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from patchindex.build.scale import ScaleBuild, sync, sync_file
from patchindex.build.train import Progress
from patchindex.build.workdir import IMAGES, has_images
from patchindex.dask_tasks import lost_workers, submit
from patchindex.images import ImageSource
from patchindex.images.by_label import TrainingImages
from patchindex.index.model import CHUNK_BYTES
from patchindex.index.patch_index import FORMAT_VERSION, scale_group, scales_of
from patchindex.index.scale import FAISS_ARRAY
from patchindex.runtime import require_faiss, threads
from patchindex.store.checksums import crc32c, image_block, list_scales, write_manifest
from patchindex.store.raw import RawWriter, raw_checksum

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["digest", "digest_of_images", "finish", "run_stages", "stages_on", "write_images"]


DIGEST_IMAGES = 1024
_threads = threads  # a parameter has this name


def write_images(folder: Path, training: TrainingImages, progress: Progress | None) -> None:
    """Write the images in label order, with labels and numbers; nothing to do where that is done."""
    group = zarr.open_group(folder, mode="a")
    if has_images(folder):
        return
    for name in ("images", "labels", "image_checksums", "source_ids"):
        shutil.rmtree(folder / name, ignore_errors=True)
    height, width, channels = training.source.shape[1:]
    block = image_block((height, width), channels)
    step = block * max(1, CHUNK_BYTES // (block * height * width * channels))
    checksums = []
    with RawWriter(folder, "images", "uint8", (height, width, channels)) as out:
        for start in range(0, len(training), step):
            pixels = training.read(start, start + step)
            out.write(pixels)
            checksums += [crc32c(pixels[i : i + block]) for i in range(0, len(pixels), block)]
            if progress is not None:
                progress("images", min(start + step, len(training)), len(training))
    if training.labels is not None:
        group.create_array("labels", data=training.labels)
    group.create_array("image_checksums", data=np.array(checksums, np.uint32))
    group.create_array("source_ids", data=training.source_ids)
    sync(folder)
    # With this it is done: arrays have their metadata before they have their contents.
    group.attrs[IMAGES] = True
    sync_file(folder / "zarr.json")
    sync_file(folder)


def run_stages(scale: ScaleBuild, progress: Progress | None) -> None:
    """Do what is left of a scale's build."""
    scale.begin(progress)
    scale.train(progress)
    for shard in scale.missing():
        scale.encode(shard, progress)
    scale.merge(progress)


def finish(
    folder: Path,
    settings: dict[str, Any],
    labels: np.ndarray | None,
    label_names: Sequence[str] | None,
    skipped: Sequence[str],
) -> None:
    """Write down what the store is; with this it is one."""
    scales = scales_of(folder)
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    fingerprint.update(raw_checksum(folder, "images").encode())
    for k in scales:
        fingerprint.update(raw_checksum(folder / scale_group(k), FAISS_ARRAY).encode())
    attributes = {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint.hexdigest()[:16],
        **{
            key: settings[key]
            for key in ("machine", "train_windows", "scales", "locality", "source", "shape")
        },
        "labels": None if labels is None else [int(label) for label in np.unique(labels)],
        "label_names": None if label_names is None else list(label_names),
        "skipped": list(skipped),
        "settings": settings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("patchindex", "torch", "numpy", "zarr")}
        | {"faiss": str(require_faiss().__version__) if scales else None},
    }
    zarr.open_group(folder, mode="a").attrs["patchindex"] = attributes
    write_manifest(folder)
    list_scales(folder, scales)
    sync(folder)


def digest(content: Any) -> str:
    """Return a short hash of an array's bytes, or of plain data."""
    data = (
        np.ascontiguousarray(content).tobytes()
        if isinstance(content, np.ndarray)
        else json.dumps(content, sort_keys=True).encode()
    )
    return hashlib.sha256(data).hexdigest()[:16]


def digest_of_images(source: ImageSource) -> str:
    """Return a short hash of up to 1 024 images, spread evenly: to read all of them takes too long."""
    return digest(source.read(np.linspace(0, len(source) - 1, min(DIGEST_IMAGES, len(source))).astype(int)))


def stages_on(client: Client, threads: int | None) -> Callable[[ScaleBuild, Progress | None], None]:
    """Return what does the stages of a scale's build on a cluster.

    Parameters
    ----------
    client : distributed.Client
    threads : int, optional
        Threads of each task: lists are the same for the same number only.
    """

    def run(scale: ScaleBuild, progress: Progress | None) -> None:
        from distributed import as_completed

        def start(stage: str, *arguments: Any) -> Future[Any]:
            return submit(client, _do, scale, stage, threads, *arguments)

        scale.begin(progress)
        with lost_workers("go on with resume=True"):
            start("train").result()
            futures = [start("encode", shard) for shard in scale.missing()]
            for done, future in enumerate(as_completed(futures)):
                future.result()
                if progress is not None:
                    progress(f"k = {scale.k}: assigning patches", done + 1, len(futures))
            start("merge").result()

    return run


def _do(scale: ScaleBuild, stage: str, threads: int | None, *arguments: Any) -> None:
    with _threads(threads):
        getattr(scale, stage)(*arguments)
