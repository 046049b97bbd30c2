"""The images that a network was trained on: their fingerprint, to compare them with other images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from patchindex.build.settings import FINGERPRINT_IMAGES, some_images
from patchindex.images import ImageSource
from patchindex.images.by_label import TrainingImages
from patchindex.store.checksums import fingerprint

__all__ = ["ImagesRecord"]


@dataclass(frozen=True)
class ImagesRecord:
    """A description of training images that tells other images apart.

    Attributes
    ----------
    source : str
        The source as the user typed it. Records of the same images are equal, whatever their source is.
    count : int
    fingerprint : str
        Fingerprint of up to 1024 images, spread evenly over the source, as in the settings of a store.
    labels : str or None
        Fingerprint of the labels.
    """

    source: str = field(compare=False)
    count: int
    fingerprint: str
    labels: str | None

    @classmethod
    def of(cls, images: ImageSource | TrainingImages) -> ImagesRecord:
        """Describe images in the order of their source."""
        source = images.in_source_order() if isinstance(images, TrainingImages) else images
        return cls(
            source.name,
            len(source),
            fingerprint(some_images(source, FINGERPRINT_IMAGES)),
            None if source.labels is None else fingerprint(source.labels),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON data."""
        return {
            "source": self.source,
            "count": self.count,
            "fingerprint": self.fingerprint,
            "labels": self.labels,
        }
