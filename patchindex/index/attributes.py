"""The attributes of stores and scales, and operating curves: checked once, when they are read.

Each table has a check for each attribute. The attributes of a scale must follow from the images and from the
geometry of the scale, so that the shapes of all arrays follow from the attributes.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from patchindex.errors import InputError, StoreError
from patchindex.geometry import INDEXED_MACHINES, LARGEST_SCALE, MACHINES, TRAIN_WINDOWS, Geometry
from patchindex.images.preparation import Preparation
from patchindex.index.layout import BUILD_ID, HEADER_CHECKSUM, IMAGES_CHECKSUM
from patchindex.schedules import LocalitySchedule
from patchindex.store.checksums import REMEDY

__all__ = [
    "CURVE_MOVES",
    "CURVE_VERSION",
    "MOST_SIZE",
    "IndexedImages",
    "check_curve",
    "check_scale",
    "check_scale_numbers",
    "check_settings",
    "check_store",
]

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class IndexedImages:
    """The images that a scale indexes: `by_label`, int64 (labels or 1,), are the images of each label."""

    by_label: np.ndarray
    channels: int
    checksum: str

    def __len__(self) -> int:
        return int(self.by_label.sum())


CURVE_VERSION = 2  # of the layout of an operating curve
CURVE_MOVES = 10  # entries of `missed`
LARGEST = 1 << 62
ROUNDING = 1e-6
TEXT = 1 << 16  # characters of a name
MOST_EQUAL = 1 << 10  # pairs of equal images that an append records
MOST_SIZE = 1 << 15  # of probes and candidates: eight times what `tune` measures


def whole(low: int = 0, high: int = LARGEST) -> Check:
    """Return a check for an integer in [low, high]."""
    return lambda value: type(value) is int and low <= value <= high


def number(low: float = 0, high: float = math.inf) -> Check:
    """Return a check for a finite number in [low, high]."""
    return lambda value: (
        type(value) in (int, float) and abs(value) < LARGEST and math.isfinite(value) and low <= value <= high
    )


def text(value: Any) -> bool:
    """Return whether a value is a text of reasonable length."""
    return type(value) is str and len(value) <= TEXT


def sequence(of: Check, least: int = 0, most: int = LARGEST) -> Check:
    """Return a check for a list of `least` to `most` entries."""
    return lambda value: type(value) is list and least <= len(value) <= most and all(map(of, value))


def or_none(of: Check) -> Check:
    """Return a check for None or for what another check accepts."""
    return lambda value: value is None or of(value)


def fields(table: Mapping[str, Check], more: bool = True) -> Check:
    """Return a check for a dict with these fields, and with others if there may be `more`."""
    return lambda value: (
        type(value) is dict
        and all(name in value and check(value[name]) for name, check in table.items())
        and (more or len(value) == len(table))
    )


def fields_if_there(table: Mapping[str, Check]) -> Check:
    """Return a check for a dict whose fields with these names, if there are any, pass their checks."""
    return lambda value: (
        type(value) is dict and all(check(value[name]) for name, check in table.items() if name in value)
    )


def both(first: Check, second: Check) -> Check:
    """Return a check for what two checks accept."""
    return lambda value: first(value) and second(value)


def _is_ascending(value: Any) -> bool:
    return sequence(whole(-LARGEST))(value) and all(a < b for a, b in pairwise(value))


def _is_locality(value: Any) -> bool:
    try:
        return value is None or (type(value) is dict and LocalitySchedule.from_dict(value) is not None)
    except (InputError, TypeError, ValueError, AttributeError):
        return False


def _is_preparation(value: Any) -> bool:
    try:
        return Preparation.from_dict(value) is not None
    except InputError:
        return False


def _is_shape(value: list[int]) -> bool:
    return len(value) == 4 and value[3] in (1, 3)


STORE: dict[str, Check] = {
    "fingerprint": text,
    "machine": MACHINES.__contains__,
    "train_windows": TRAIN_WINDOWS.__contains__,
    "scales": sequence(whole(1, LARGEST_SCALE)),
    "locality": _is_locality,
    "source": text,
    "shape": sequence(whole(1)),
    "labels": or_none(_is_ascending),
    "label_names": or_none(sequence(text)),
    "skipped": sequence(text),
    "settings": fields({}),
    "created": text,
    "versions": fields({"patchindex": text}),
}
APPENDED = sequence(
    both(
        fields({"images": whole(1), "source": text}),
        fields_if_there(
            {
                "duplicates": fields({"store": whole(), "new": whole()}, more=False),
                "equal": sequence(sequence(whole(), 2, 2), most=MOST_EQUAL),
            }
        ),
    ),
    1,
)
SETTINGS: dict[str, Check] = {  # which older stores do not all have
    "appended": APPENDED,
    "locality": _is_locality,
    "scales": sequence(whole(1)),
    "prepared": _is_preparation,
}

SCALE: dict[str, Check] = {
    BUILD_ID: text,
    IMAGES_CHECKSUM: text,
    HEADER_CHECKSUM: whole(0, 0xFFFFFFFF),
    "seconds": lambda value: type(value) is dict and all(map(number(), value.values())),
}
DRIFT = fields(
    {
        "images": whole(1),
        "distance": or_none(number()),
        "left_out": or_none(number(-LARGEST)),
        "clipped": number(0, 1),
    }
)

CURVE: dict[str, Check] = {
    "images": whole(1),
    **dict.fromkeys(("exact", "scan", "single", "least"), number(0)),
}
SIZES = {"beta": number(1e-12, 1), "probes": whole(1, MOST_SIZE), "candidates": whole(1, MOST_SIZE)}
NEAR = SIZES | {
    "seconds": number(),
    "again": number(),
    "variance": sequence(number(), 1),
    "missed": or_none(sequence(number(), CURVE_MOVES, CURVE_MOVES)),
}
TOP = SIZES | {"seconds": number(), "mass": number(-ROUNDING, 1 + ROUNDING)}


def _refuse(found: Mapping[str, Any], table: Mapping[str, Check], where: object) -> None:
    """Raise StoreError for the first attribute that is missing or does not pass its check."""
    for name, check in table.items():
        if name not in found:
            raise StoreError(f"has no attribute {name!r}", where=where, remedy=REMEDY)
        if not _passes(check, found[name]):
            what = f"its attribute {name!r} cannot be {reprlib.repr(found[name])}"
            raise StoreError(what, where=where, remedy=REMEDY)


def _passes(check: Check, value: Any) -> bool:
    try:
        return bool(check(value))
    except TypeError:  # a list or a dict is in no set
        return False


def check_store(found: Mapping[str, Any], where: object) -> None:
    """Check the attributes of a store; raise StoreError for the first wrong one."""
    _refuse(found, STORE, where)
    labels, names = found["labels"], found["label_names"]
    more: dict[str, Check] = {
        "shape": _is_shape,
        "train_windows": lambda windows: windows == "valid" or found["machine"] == "ELS",
        "scales": lambda scales: not scales or found["machine"] in INDEXED_MACHINES,
        "labels": lambda _: labels != [],
        "settings": lambda settings: all(
            number < found["shape"][0]
            for call in settings.get("appended", [])
            for pair in call.get("equal", [])
            for number in pair
        ),
        # A label of -1 is common for "unknown", and has no name of its own.
        "label_names": lambda _: (
            names is None or labels is None or (labels[0] >= -len(names) and labels[-1] < len(names))
        ),
    }
    _refuse_optional(found["settings"], where)
    _refuse(found, more, where)


def check_settings(found: Any, where: object) -> None:
    """Check the settings of an unfinished build; raise StoreError for the first wrong one."""
    required = {name: STORE[name] for name in ("machine", "train_windows", "scales", "source")}
    _refuse(found, {**required, "shape": both(sequence(whole(1)), _is_shape)}, where)
    _refuse_optional(found, where)


def _refuse_optional(settings: Mapping[str, Any], where: object) -> None:
    _refuse(settings, {name: check for name, check in SETTINGS.items() if name in settings}, where)


def check_scale(found: Mapping[str, Any], geometry: Geometry, images: IndexedImages, where: object) -> None:
    """Check the attributes of a scale; raise StoreError for the first wrong one."""
    if (found.get("k"), found.get(IMAGES_CHECKSUM)) != (geometry.k, images.checksum):
        raise StoreError("is of other images or of another locality scale", where=where, remedy=REMEDY)
    patches = len(images) * geometry.patches_per_image
    _refuse(found, SCALE | {"patches": whole(patches, patches)}, where)
    check_scale_numbers(found, geometry, len(images), images.channels, where)
    if "drift" in found:
        _refuse(found, {"drift": sequence(DRIFT)}, where)


def check_scale_numbers(
    found: Mapping[str, Any], geometry: Geometry, images: int, channels: int, where: object
) -> None:
    """Check the attributes of a scale that is trained; raise StoreError for the first wrong one."""
    patches, classes = images * geometry.patches_per_image, geometry.n_classes
    table = {
        "k": whole(geometry.k, geometry.k),
        "lists": whole(classes, patches),
        "position_classes": whole(classes, classes),
        "pca_dims": whole(1, geometry.k**2 * channels),
        "pca_energy": number(0, 1 + ROUNDING),
    }
    _refuse(found, table, where)


def check_curve(found: Any, where: object, remedy: Any) -> None:
    """Check an operating curve of `CURVE_VERSION`; raise StoreError when a part of it is wrong."""
    table = CURVE | {
        "near": sequence(fields(NEAR, more=False), 1),
        "top": sequence(fields(TOP, more=False), 1),
    }
    for name, check in table.items():
        if name not in found or not _passes(check, found[name]):
            raise StoreError(f"its {name!r} is missing or damaged", where=where, remedy=remedy)
    if unknown := set(found) - {*table, "version"}:
        raise StoreError(f"has an unknown field {min(unknown)!r}", where=where, remedy=remedy)
