"""The contents of a store besides its scales: images first, and the store's attributes last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchindex.build.workdir import IMAGES, has_images
from patchindex.errors import InputError, StoreError
from patchindex.images import ImageSource
from patchindex.images.by_label import TrainingImages
from patchindex.index.attributes import check_store
from patchindex.index.layout import (
    FAISS_ARRAY,
    FORMAT_VERSION,
    IMAGE_NAME_BOUNDS,
    IMAGE_NAMES,
    scale_group,
    scales_of,
)
from patchindex.index.model import CHUNK_BYTES
from patchindex.runtime import Progress, require_faiss
from patchindex.store.arrays import JSON_BYTES
from patchindex.store.atomic import sync, sync_file
from patchindex.store.checksums import crc32c, fingerprint, image_block, write_manifest, write_scales
from patchindex.store.raw import raw_checksum, write_raw

__all__ = ["check_attributes", "write_attributes", "write_images"]

OTHER_BYTES = 1 << 20  # of the metadata of a store, besides the attributes


def write_images(folder: Path, training: TrainingImages, progress: Progress) -> None:
    """Write the images in label order, their labels, source ids and names, unless all are written already."""
    if has_images(folder):
        return
    group = zarr.open_group(folder, mode="a")
    for name in ("images", "labels", "image_checksums", "source_ids", IMAGE_NAMES, IMAGE_NAME_BOUNDS):
        shutil.rmtree(folder / name, ignore_errors=True)
    height, width, channels = training.source.shape[1:]
    block = image_block((height, width), channels)
    step = block * max(1, CHUNK_BYTES // (block * height * width * channels))
    checksums = []
    with write_raw(folder, "images", "uint8", (height, width, channels)) as out:
        for start in range(0, len(training), step):
            pixels = training.read(start, start + step)
            out.write(pixels)
            checksums += [crc32c(pixels[i : i + block]) for i in range(0, len(pixels), block)]
            progress("images", min(start + step, len(training)), len(training))
    if training.labels is not None:
        group.create_array("labels", data=training.labels)
    group.create_array("image_checksums", data=np.array(checksums, np.uint32))
    group.create_array("source_ids", data=training.source_ids)
    names = training.file_names()
    if names is not None and len(names.content):
        for name, values in ((IMAGE_NAMES, names.content), (IMAGE_NAME_BOUNDS, names.bounds)):
            with write_raw(folder, name, values.dtype.name) as out:
                out.write(values)
    sync(folder)
    # An array can have metadata and no data, so only this attribute says that the images are complete.
    group.attrs[IMAGES] = True
    sync_file(folder / "zarr.json")
    sync_file(folder)


def write_attributes(
    folder: Path, settings: dict[str, Any], source: ImageSource, skipped: Sequence[str]
) -> None:
    """Write the attributes, the manifest and the list of scales, which make a folder a store."""
    scales = scales_of(folder)
    content = json.dumps(settings, sort_keys=True) + raw_checksum(folder, "images")
    content += "".join(raw_checksum(folder / scale_group(k), FAISS_ARRAY) for k in scales)
    found = fingerprint(content.encode())
    zarr.open_group(folder, mode="a").attrs["patchindex"] = _attributes(settings, source, skipped, found)
    write_manifest(folder)
    write_scales(folder, scales)


def check_attributes(settings: dict[str, Any], source: ImageSource, skipped: Sequence[str]) -> None:
    """Refuse, before any work, attributes that `open_index` would refuse, for their number or length."""
    attributes = _attributes(settings, source, skipped, "")
    try:
        check_store(attributes, source.name)
    except StoreError as error:
        raise InputError(error.what, where=source.name, remedy="give other images or labels") from None
    nbytes = len(json.dumps({"attributes": {"patchindex": attributes}}, indent=2))  # as zarr writes them
    if nbytes > JSON_BYTES - OTHER_BYTES:
        labels = len(attributes["labels"] or ())
        raise InputError(
            f"the names of {len(skipped):,} skipped files and {labels:,} labels take {nbytes:,} bytes in the "
            f"store, over the limit of {JSON_BYTES - OTHER_BYTES:,}",
            where=source.name,
            remedy="remove the files that cannot be decoded, or give fewer labels",
        )


def _attributes(
    settings: dict[str, Any], source: ImageSource, skipped: Sequence[str], contents: str
) -> dict[str, Any]:
    """Return the attributes of a store; `contents` is the fingerprint of its contents."""
    copied = ("machine", "train_windows", "scales", "locality", "source", "shape")
    return {
        "format": FORMAT_VERSION,
        "fingerprint": contents,
        **{name: settings[name] for name in copied},
        "labels": None if source.labels is None else np.unique(source.labels).tolist(),
        "label_names": None if source.label_names is None else list(source.label_names),
        "skipped": list(skipped),
        "settings": settings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("patchindex", "torch", "numpy", "zarr")}
        | {"faiss": str(require_faiss().__version__) if settings["scales"] else None},
    }
