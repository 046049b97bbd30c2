"""The record of how images were opened, which a store keeps for images that are appended later."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from patchindex.errors import InputError
from patchindex.images.labels import ATTRIBUTES, LabelSpec
from patchindex.images.transform import Transform

__all__ = ["Preparation"]

FIELDS = ("crop", "resize", "grayscale", "labels")


@dataclass(frozen=True)
class Preparation:
    """The options of `open_images` that more images of the same kind need as well.

    Attributes
    ----------
    transform : Transform
    labels : str or None
        `"folders"`, `"none"` or `"attr:NAMES"`; None for labels that are stored with the images, and for a
        file or an array of labels, which belong to no other images.
    """

    transform: Transform = field(default_factory=Transform)
    labels: str | None = None

    @classmethod
    def of(cls, transform: Transform, labels: LabelSpec) -> Preparation:
        """Return the record of checked options."""
        if labels.kind == "attributes":
            return cls(transform, ATTRIBUTES + ",".join(labels.attributes))
        return cls(transform, labels.kind if labels.kind in ("folders", "none") else None)

    def then(self, transform: Transform, labels: LabelSpec) -> Preparation:
        """Return the record of images that were opened this way, and then again with other options.

        Two transforms in a row are no transform of `open_images`: the record has none then.
        """
        nothing = Transform()
        later = Preparation.of(transform, labels)
        own = later.transform if self.transform == nothing else self.transform
        both = self.transform != nothing and later.transform != nothing
        return Preparation(nothing if both else own, self.labels if labels.kind == "stored" else later.labels)

    def options(self) -> dict[str, Any]:
        """Return the options of `open_images` that differ from their defaults."""
        return {name: value for name, value in self.as_dict().items() if value}

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {**asdict(self.transform), "labels": self.labels}

    @classmethod
    def from_dict(cls, found: Any) -> Preparation:
        """Return the record that `as_dict` returned; raise `InputError` for anything else.

        The labels of the record never name a file: a store of a stranger could name any file.
        """
        if not isinstance(found, dict) or set(found) != set(FIELDS) or type(found["grayscale"]) is not bool:
            raise InputError("is no record of how images were opened", where=repr(found))
        labels = found["labels"]
        if not isinstance(labels, str | None):
            raise InputError(f"{labels!r} is no text", parameter="labels")
        spec = LabelSpec.parse(labels)
        if spec.kind not in ("stored", "none", "folders", "attributes"):
            raise InputError(f"{labels!r} names a file", parameter="labels")
        transform = Transform.parse(found["crop"], found["resize"], found["grayscale"])
        return cls.of(transform, spec)
