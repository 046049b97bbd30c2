"""Images of any source, transformed as they are read."""

from __future__ import annotations

import numpy as np
from PIL import Image

from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform

__all__ = ["TransformedSource", "transformed"]


class TransformedSource(ImageSource):
    """Images of another source, transformed as they are read."""

    def __init__(self, parent: ImageSource, transform: Transform) -> None:
        count, height, width, channels = parent.shape
        size = transform.size(height, width, where=parent.name)
        super().__init__(
            parent.name,
            (count, *size, 1 if transform.grayscale else channels),
            labels=parent.labels,
            label_names=parent.label_names,
        )
        self.chunk, self.skipped, self.file_names = parent.chunk, parent.skipped, parent.file_names
        self._parent, self._transform = parent, transform

    @property
    def packed(self) -> bool:
        """True if several images of the parent are unpacked to read one image."""
        return self._parent.packed

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        images = self._parent.read(index)
        mode = "L" if self.shape[3] == 1 else "RGB"
        result = np.empty((len(images), *self.shape[1:]), np.uint8)
        for row, image in enumerate(images):
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            result[row] = self._transform.apply(picture, mode)
        return result


def transformed(source: ImageSource, transform: Transform) -> ImageSource:
    """Return the transformed source; the source itself if the transform changes nothing."""
    return source if transform == Transform() else TransformedSource(source, transform)
