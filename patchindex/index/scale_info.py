"""A store and its scales as `patchindex info` describes them: attributes, bytes and operating curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchindex.errors import StoreError
from patchindex.geometry import Geometry
from patchindex.index.attributes import CURVE_VERSION, IndexedImages, check_curve, check_scale
from patchindex.index.layout import APPENDED_FINGERPRINT, NAMES
from patchindex.store.arrays import REMEDY, read_file, read_group
from patchindex.store.checksums import CURVE, bytes_of, crc32c, read_checksummed, read_manifest
from patchindex.store.remote import ATTRIBUTES

__all__ = ["attributes_info", "read_scale_info"]


def attributes_info(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a store with the names that they have in Python."""
    settings = dict(attributes["settings"])
    if "appended" in settings:
        names = {APPENDED_FINGERPRINT: "fingerprint"}
        settings["appended"] = [
            {names.get(name, name): value for name, value in call.items()} for call in settings["appended"]
        ]
    return {**attributes, "settings": settings}


def read_scale_info(folder: Path, geometry: Geometry, images: IndexedImages) -> dict[str, Any]:
    """Return the attributes, the bytes and the operating curve of the scale in a folder.

    Attributes have the names that they have in Python, which differ from the names on disk.

    Raises StoreError when one of the small files of the scale is damaged.
    """
    attributes = folder / ATTRIBUTES
    content = read_file(folder, ATTRIBUTES)
    if f"{crc32c(content):08x}" != read_manifest(folder).get(ATTRIBUTES, (0, ""))[1]:
        raise StoreError("is missing or damaged", where=attributes, remedy=REMEDY)
    found = read_group(folder) or {}
    check_scale(found, geometry, images, folder)
    info: dict[str, Any] = {NAMES.get(name, name): value for name, value in found.items()}
    info["bytes"] = bytes_of(folder)
    if (folder / CURVE).exists():
        info["operating_curve"] = dict(read_checksummed(folder / CURVE))
        info["operating_curve"].pop("scale", None)
        if info["operating_curve"].get("version") == CURVE_VERSION:
            check_curve(info["operating_curve"], folder / CURVE, REMEDY)
    return info
