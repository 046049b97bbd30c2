"""Image sources: `open_images`, and one file per format.

`open_images` takes arrays, files, folders and names of known sets. It returns an `ImageSource`: uint8 images
(N, H, W, C) that are read on demand, and their labels.

Examples
--------
>>> import numpy as np
>>> source = open_images(np.zeros((10, 8, 8), np.uint8))
>>> [(start, images.shape) for start, images in source.chunks(6)]
[(0, (6, 8, 8, 1)), (6, (4, 8, 8, 1))]
"""

from patchindex.images.labels import LabelsLike, LabelSpec
from patchindex.images.registry import KNOWN_SETS, ImageOptions, ImagesLike, open_images
from patchindex.images.source import ImageSource

__all__ = [
    "KNOWN_SETS",
    "ImageOptions",
    "ImageSource",
    "ImagesLike",
    "LabelSpec",
    "LabelsLike",
    "open_images",
]
