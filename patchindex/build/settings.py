"""Settings of a build: checked once, and compared with the settings of a store or of an unfinished build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchindex.checks import check_least, check_optional, is_whole
from patchindex.errors import InputError
from patchindex.images import ImageSource
from patchindex.index.layout import APPENDED_FINGERPRINT
from patchindex.schedules import LocalitySchedule
from patchindex.schedules.checks import problem_of_scale
from patchindex.store.checksums import fingerprint
from patchindex.store.text_files import as_json

__all__ = ["BuildSettings", "appended_settings", "changed_settings", "some_images"]

FINGERPRINT_IMAGES = 1024  # reading all images takes too long
# The same images may have two names, such as a relative and an absolute path: fingerprints are compared.
# The record of how images were opened says no more than the images, and duplicates are counted later.
NOT_COMPARED = ("source", "prepared", "duplicates", "equal")


@dataclass(frozen=True)
class BuildSettings:
    """The settings that determine a store's content; see `build_index`."""

    scales: Any = None  # a tuple of int or None, once checked
    machine: str = "ELS"
    train_windows: str = "valid"
    locality: Any = None
    pca_dims: int | None = None
    lists: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(seed=(self.seed, 0))
        check_optional(pca_dims=(self.pca_dims, 1), lists=(self.lists, 1))
        for name in ("seed", "pca_dims", "lists"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, int(value))  # FAISS takes no numbers of NumPy
        if self.scales is not None:
            try:
                scales = (self.scales,) if is_whole(self.scales) else tuple(self.scales)
            except TypeError:
                raise InputError(
                    f"must be a sequence, got {self.scales!r}",
                    parameter="scales",
                    remedy="give for example [3, 5]",
                ) from None
            for k in scales:
                if (problem := problem_of_scale(k)) is not None:
                    raise InputError(problem, parameter="scales", remedy="give for example [3, 5]")
            object.__setattr__(self, "scales", tuple(map(int, scales)))
        locality = None if self.locality is None else LocalitySchedule.of(self.locality)
        object.__setattr__(self, "locality", locality)

    def to_json(
        self, source: ImageSource, scales: Sequence[int], nearest: LocalitySchedule | None
    ) -> dict[str, Any]:
        """Return the settings as a store keeps them, with fingerprints of the images and labels.

        `scales` are the scales of the index, and `nearest` is the schedule moved to the nearest scales.
        """
        # A store with an index keeps the schedule as given: `add_scales` may add scales of the schedule.
        locality = self.locality if scales else nearest
        return as_json(
            {
                "machine": self.machine,
                "train_windows": self.train_windows,
                "scales": list(scales),
                "locality": locality and locality.as_dict(),
                "pca_dims": self.pca_dims,
                "lists": self.lists,
                "seed": self.seed,
                "source": source.name,
                "shape": source.shape,
                "images": fingerprint(some_images(source, FINGERPRINT_IMAGES)),
                "labels": _fingerprint_of_labels(source),
                "prepared": source.prepared.as_dict(),
            }
        )


def appended_settings(
    before: dict[str, Any], scales: Sequence[int], both: ImageSource, new: ImageSource
) -> dict[str, Any]:
    """Return the settings of a store after `new` images are appended; `both` are the old and new images."""
    appended = {
        "images": len(new),
        "source": new.name,
        APPENDED_FINGERPRINT: fingerprint(some_images(new, FINGERPRINT_IMAGES)),
        "labels": _fingerprint_of_labels(new),
    }
    changed = {
        "shape": both.shape,
        "labels": _fingerprint_of_labels(both),
        "scales": list(scales),
        "appended": [*before.get("appended", []), appended],
    }
    return as_json(before | changed)


def changed_settings(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the names of the settings in `wanted` that differ from the settings in `found`."""
    found, wanted = _compared(found), _compared(wanted)
    if found.get("locality"):  # a store of an earlier release has it in another form
        found["locality"] = LocalitySchedule.from_dict(found["locality"]).as_dict()
    return sorted(name for name in wanted if found.get(name) != wanted[name])


def _compared(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_compared(entry) for entry in settings]
    if isinstance(settings, dict):
        return {name: _compared(value) for name, value in settings.items() if name not in NOT_COMPARED}
    return settings


def some_images(source: ImageSource, most: int) -> np.ndarray:
    """Read up to `most` images, spread evenly over a source: uint8 (n, H, W, C)."""
    return source.read(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int))


def _fingerprint_of_labels(source: ImageSource) -> str | None:
    return None if source.labels is None else fingerprint(source.labels)
