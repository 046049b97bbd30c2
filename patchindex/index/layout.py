"""The store: a zarr v3 group with the training images, and one group per locality scale.

store.zarr/
  zarr.json           attributes: machine, scales, settings, provenance, fingerprint
  scales.json         the scales of the store                          }
  settings.json       the arguments of the build                       } each with its own checksum
  manifest.json       size and checksum of all files except in scales/ }
  images/             uint8 (N, H, W, C) in label order, one raw file
  image_checksums/    uint32 (blocks,), one per block of images
  labels/             int64 (N,), ascending; absent when the images have no labels
  source_ids/         int64 (N,), the number of each image in the source
  image_names/        uint8, the file names in UTF-8, one after the other, one raw file   } absent when images
  image_name_bounds/  int64 (N + 1,), where each name begins and ends, one raw file       } are no files
  scales/k007/        attributes: patches, lists, dims, energy, seconds
    faiss/            uint8: the FAISS file, one raw file
    pca_components/   float32 (dims, k, k, C)       pca_mean/  float32 (k, k, C)
    centroids/        float32 (lists, dims)         list_bounds/  int64 (classes + 1,)
    cells/            float32 (cells, dims)         cell_bounds/  int64 (cells + 1,)
    list_means/       float32 (lists, dims)         list_variances/  float32 (lists, dims)
    list_counts/      int64 (labels or 1, lists)    list_checksums/  uint32 (lists,)
    code_ranges/      float32 (2, dims)
    manifest.json     size and checksum of the files of the scale      } each with its own checksum
    operating_curve.json   once `tune` has measured it                 }
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from patchindex.checks import accessing
from patchindex.errors import StoreError
from patchindex.geometry import LARGEST_SCALE
from patchindex.regular_files import IrregularFileError, refuse_links
from patchindex.store.arrays import METADATA, REMEDY, read_group
from patchindex.store.checksums import MANIFEST, SCALES, read_checksummed
from patchindex.store.remote import ATTRIBUTES

__all__ = [
    "APPENDED_FINGERPRINT",
    "BUILD_ID",
    "FAISS_ARRAY",
    "FORMAT_VERSION",
    "HEADER_CHECKSUM",
    "IMAGES_CHECKSUM",
    "IMAGE_NAMES",
    "IMAGE_NAME_BOUNDS",
    "NAMES",
    "attributes_of",
    "listed_scales",
    "read_attributes",
    "refuse_linked_group",
    "replaced_path",
    "scale_group",
    "scales_of",
]

FORMAT_VERSION = 4
FAISS_ARRAY = "faiss"
IMAGE_NAMES, IMAGE_NAME_BOUNDS = "image_names", "image_name_bounds"
# Attributes whose names on disk differ from the names in Python, which `info` has.
BUILD_ID = "of"  # the build that wrote the scale
IMAGES_CHECKSUM = "images"  # checksum of the store's images
HEADER_CHECKSUM = "head_checksum"  # checksum of the FAISS file in front of its lists
APPENDED_FINGERPRINT = "digest"  # fingerprint of appended images, in the settings of a store
NAMES = {BUILD_ID: "build_id", IMAGES_CHECKSUM: "images_checksum", HEADER_CHECKSUM: "header_checksum"}
SCALE_NAME = re.compile(r"k[0-9]{3,4}")


def scale_group(k: int) -> str:
    """Return the name of a scale's group in the store."""
    return f"scales/k{k:03d}"


def scales_of(path: Path) -> list[int]:
    """Return the scales with a finished index, ascending."""
    names = (folder.name for folder in (path / "scales").glob("k*"))
    numbers = (int(name[1:]) for name in names if SCALE_NAME.fullmatch(name))
    return sorted({k for k in numbers if (path / scale_group(k)).is_dir()})


def listed_scales(path: Path) -> list[int]:
    """Return the scales that a store lists; each was finished once."""
    listed = read_checksummed(path / SCALES)
    if not isinstance(listed, list) or not all(type(k) is int and 1 <= k <= LARGEST_SCALE for k in listed):
        raise StoreError("is no list of scales", where=path / SCALES, remedy=REMEDY)
    return listed


def replaced_path(path: Path) -> Path:
    """Return the path to which a store is moved while another takes its place."""
    return path.with_name(path.name + ".replaced")


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Return the attributes of a store, or None when the path is no finished store."""
    with accessing(path):
        if not (path / METADATA).is_file():
            return None
    try:
        found = (read_group(path) or {}).get("patchindex")
    except StoreError:
        if (path / MANIFEST).is_file():
            raise
        return None  # metadata of other software
    return found if isinstance(found, dict) else None


def attributes_of(folder: Path) -> dict[str, Any]:
    """Return the attributes of a group, empty when the group is absent or damaged."""
    try:
        return read_group(folder) or {}
    except StoreError:
        return {}


def refuse_linked_group(path: Path, group: str) -> None:
    """Refuse a group of a store that is reached by a link: raise StoreError."""
    try:
        refuse_links(path, f"{group}/{ATTRIBUTES}")
    except IrregularFileError as error:
        raise StoreError(error.what, where=path / group, remedy=REMEDY) from None
